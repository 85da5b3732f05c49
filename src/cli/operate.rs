//! The operator's subcommands: apps, devices, sending and tracing.
//!
//! Results go to stdout, as JSON or, for devices, as CSV; nothing else does.

use std::io::{self, Write};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::client::{self, Node, Which, segment};

#[derive(Debug, Subcommand)]
pub(super) enum App {
    /// Create an app; prints its key and secret, which are shown only now
    Create {
        /// Its name
        id: String,
        /// Who may bind an alias: the device, with a token of the app server, or the app server alone
        #[arg(long, default_value = "open", value_parser = ["open", "signed", "server"])]
        alias_policy: String,
        /// Demand sealed payloads; prints the public key that ships inside the app
        #[arg(long)]
        sealed: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Demand sealed payloads of an app, or no longer; prints its public keys, newest last
    Seal {
        /// The app
        id: String,
        /// No longer demand them; registrations that have a key stay sealed
        #[arg(long, conflicts_with = "keys_only")]
        off: bool,
        /// Make a key, and leave it as it is whether they are demanded: for an app that is to get the key first
        #[arg(long)]
        keys_only: bool,
        /// Make one more key, for new registrations
        #[arg(long)]
        new_key: bool,
        /// Take no new registrations with older keys
        #[arg(long)]
        revoke_older: bool,
        #[command(flatten)]
        which: Which,
    },
    /// List the apps
    List {
        #[command(flatten)]
        which: Which,
    },
    /// Give an app one more secret; prints it
    RotateSecret {
        /// The app
        id: String,
        /// End the older secrets now
        #[arg(long)]
        revoke_older: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Give an app another key; prints it. Devices can no longer register with the old one
    RotateKey {
        /// The app
        id: String,
        #[command(flatten)]
        which: Which,
    },
    /// End an app for good: its key, its secrets and all its registrations
    Revoke {
        /// The app
        id: String,
        #[command(flatten)]
        which: Which,
    },
}

impl App {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Create { id, alias_policy, sealed, which } => {
                let body = json!({ "app_id": id, "alias_policy": alias_policy, "sealed": sealed });
                print_answer(which, Call::Post("/admin/v1/apps".into(), body))
            }
            Self::Seal { id, off, keys_only, new_key, revoke_older, which } => {
                let demanded = (!keys_only).then_some(!off);
                let body = json!({
                    "demanded": demanded, "new_key": new_key, "revoke_older": revoke_older,
                });
                let path = format!("/admin/v1/apps/{}/seal", segment(&id));
                print_answer(which, Call::Post(path, body))
            }
            Self::List { which } => print_answer(which, Call::Read("/admin/v1/apps".into())),
            Self::RotateSecret { id, revoke_older, which } => {
                let path = format!("/admin/v1/apps/{}/secrets", segment(&id));
                print_answer(which, Call::Post(path, json!({ "revoke_older": revoke_older })))
            }
            Self::RotateKey { id, which } => {
                let path = format!("/admin/v1/apps/{}/key", segment(&id));
                print_answer(which, Call::Post(path, json!({})))
            }
            Self::Revoke { id, which } => {
                print_answer(which, Call::Delete(format!("/admin/v1/apps/{}", segment(&id))))
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Device {
    /// Create device accounts with a registration each; prints CSV
    Create {
        /// The app
        #[arg(long)]
        app: String,
        /// How many
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        count: u64,
        #[command(flatten)]
        which: Which,
    },
    /// End a device account: its connection and its registrations of all apps
    Revoke {
        /// The device
        device_id: String,
        #[command(flatten)]
        which: Which,
    },
}

/// A device account as the admin door answers it.
#[derive(Deserialize)]
struct Created {
    device_id: String,
    secret: String,
    regid: Option<String>,
}

impl Device {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Create { app, count, which } => {
                let node = which.node()?;
                client::block_on(create_devices(&node, &app, count))
            }
            Self::Revoke { device_id, which } => {
                let path = format!("/admin/v1/devices/{}", segment(&device_id));
                print_answer(which, Call::Delete(path))
            }
        }
    }
}

async fn create_devices(node: &Node, app: &str, count: u64) -> anyhow::Result<()> {
    let path = format!("/admin/v1/apps/{}/devices", segment(app));
    let mut left = count;
    while left > 0 {
        let now = left.min(DEVICES_A_CALL);
        let created: Vec<Created> = node.post(&path, &json!({ "count": now })).await?;
        // The header comes with the first devices: a refused command prints nothing.
        print_csv(left == count, &created).context("cannot write to stdout")?;
        left -= now;
    }
    Ok(())
}

fn print_csv(with_header: bool, devices: &[Created]) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    if with_header {
        writeln!(out, "device_id,secret,regid")?;
    }
    for Created { device_id, secret, regid } in devices {
        writeln!(out, "{device_id},{secret},{}", regid.as_deref().unwrap_or_default())?;
    }
    out.flush()
}

#[derive(Debug, Args)]
pub(super) struct Send {
    /// The app
    #[arg(long)]
    app: String,
    #[command(flatten)]
    target: Target,
    /// For how many seconds it lives
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// The title of a notification
    #[arg(long)]
    title: Option<String>,
    /// The text of a notification
    #[arg(long)]
    body: Option<String>,
    /// JSON; anything else is sent as a JSON string
    payload: String,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args, Serialize)]
#[group(required = true, multiple = false)]
struct Target {
    /// To this registration; may be given again
    #[arg(long = "regid", value_name = "REGID")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    regids: Vec<String>,
    /// To this alias; may be given again
    #[arg(long = "alias", value_name = "ALIAS")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    /// To the followers of a topic
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    /// To every registration of the app
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    all: bool,
}

/// A send as the API wants it.
#[derive(Serialize)]
struct Message {
    target: Target,
    payload: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notification: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_s: Option<u64>,
}

impl Send {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let path = format!("/v1/apps/{}/messages", segment(&self.app));
        let message = Message {
            target: self.target,
            payload: payload(self.payload)?,
            notification: notification(self.title, self.body),
            ttl_s: self.ttl,
        };
        let node = self.which.node()?;
        client::block_on(async { print(&node.post(&path, &message).await?) })
    }
}

fn payload(text: String) -> anyhow::Result<Box<RawValue>> {
    if let Ok(json) = serde_json::from_str(&text) {
        return Ok(json);
    }
    let string = serde_json::to_string(&text).and_then(RawValue::from_string);
    string.context("the payload cannot be sent")
}

fn notification(title: Option<String>, body: Option<String>) -> Option<Value> {
    let fields = [("title", title), ("body", body)];
    let set: serde_json::Map<_, _> =
        fields.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?.into()))).collect();
    (!set.is_empty()).then_some(Value::Object(set))
}

#[derive(Debug, Args)]
pub(super) struct Trace {
    /// The message
    id: String,
    /// The app
    #[arg(long)]
    app: String,
    /// Its way to this registration
    #[arg(long)]
    regid: Option<String>,
    #[command(flatten)]
    which: Which,
}

impl Trace {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let message = format!("/v1/apps/{}/messages/{}", segment(&self.app), segment(&self.id));
        let path = match &self.regid {
            Some(regid) => format!("{message}/trace?regid={}", segment(regid)),
            None => message,
        };
        print_answer(self.which, Call::Read(path))
    }
}

#[derive(Debug, Args)]
pub(super) struct Drain {
    #[command(flatten)]
    which: Which,
}

impl Drain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        print_answer(self.which, Call::Post("/admin/v1/drain".into(), json!({})))
    }
}

#[derive(Debug, Args)]
pub(super) struct Reload {
    #[command(flatten)]
    which: Which,
}

impl Reload {
    pub(super) fn run(self) -> anyhow::Result<()> {
        print_answer(self.which, Call::Post("/admin/v1/reload".into(), json!({})))
    }
}

enum Call {
    Read(String),
    Post(String, Value),
    Delete(String),
}

fn print_answer(which: Which, call: Call) -> anyhow::Result<()> {
    let node = which.node()?;
    client::block_on(async {
        let answer = match call {
            Call::Read(path) => node.read(&path).await?,
            Call::Post(path, body) => node.post(&path, &body).await?,
            Call::Delete(path) => node.delete(&path).await?,
        };
        print(&answer)
    })
}

fn print(answer: &Value) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{answer:#}").context("cannot write to stdout")
}

/// What one call of the admin door makes at most.
const DEVICES_A_CALL: u64 = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_json_is_sent_as_a_string() {
        let sent = |text: &str| payload(text.to_owned()).unwrap().get().to_owned();
        assert_eq!(sent(r#"{"b":1,"a":2}"#), r#"{"b":1,"a":2}"#);
        assert_eq!(sent("hello, \"you\""), r#""hello, \"you\"""#);
    }
}
