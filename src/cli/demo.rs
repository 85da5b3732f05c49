//! `carillon demo`: the whole story on this machine by itself, in under a minute.
//!
//! A node in a directory of its own, three devices, messages by regID, alias, topic and to all; one device goes
//! offline, the node is killed and started again; and the ledger at the end must show every message exactly once.
//! It ends what it started, by process id, and removes its directory.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use carillon_sdk::{Credentials, Device, Endpoint, Message, Received, RegId};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

use super::client;
use crate::{
    admin::AdminFile,
    base::{ids::base32, ids::random_bytes, keys::Secret},
};

/// Nothing to choose.
#[derive(Debug, Args)]
pub(super) struct Demo {}

/// The time line that people read.
#[derive(Clone, Copy)]
struct Story {
    start: Instant,
}

/// The node of the demo and its directory; both are gone when this is dropped.
struct Node {
    directory: PathBuf,
    child: Option<Child>,
    /// Where each door listens: anywhere at the first start, and there again at the next.
    doors: BTreeMap<String, String>,
}

/// The app that the node made at its first start.
#[derive(Deserialize)]
struct DemoApp {
    app_id: String,
    app_key: Secret,
    app_secret: Secret,
}

#[derive(Deserialize)]
struct NewDevice {
    device_id: String,
    secret: String,
}

/// The app server.
struct Sender {
    client: reqwest::Client,
    url: String,
    app: DemoApp,
    sent: u32,
    ledger: Ledger,
}

/// One of the three.
struct Phone {
    name: &'static str,
    regid: RegId,
    credentials: Credentials,
    device: Device,
}

/// What each device must receive, and has received: the handlers write the second half.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    owed: BTreeMap<&'static str, Vec<u32>>,
    received: BTreeMap<&'static str, Vec<u32>>,
}

impl Demo {
    pub(super) fn run(self) -> anyhow::Result<()> {
        client::block_on(async {
            let story = Story { start: Instant::now() };
            let told = tokio::select! {
                told = tell(story) => told,
                interrupted = interrupted() => Err(interrupted),
            };
            if told.is_ok() {
                story.line("everything arrived exactly once");
            }
            told
        })
    }
}

/// By Ctrl-C or SIGTERM; what was started ends with the story's future.
async fn interrupted() -> anyhow::Error {
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => return error.into(),
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    anyhow!("interrupted; the node is stopped and its directory is gone")
}

async fn tell(story: Story) -> anyhow::Result<()> {
    let mut node = Node::prepare()?;
    node.start().await?;
    story.line("a node is up: MQTT over TLS for devices, HTTPS for app servers");
    let ledger = Ledger::default();
    let mut server = Sender::new(&node, ledger.clone())?;
    let mut phones = Vec::new();
    for name in NAMES {
        phones.push(Phone::new(name, &node, &server, story, &ledger).await?);
        story.line(&format!("{name} has registered, with the alias `{}`", alias(name)));
    }
    let [ada, ben, cleo] = &mut phones[..] else { bail!("three devices were made") };
    for phone in [&*ada, &*cleo] {
        phone.device.subscribe(&phone.regid, &[TOPIC]).await?;
    }
    story.line("Ada and Cleo follow the topic `weather`");

    server.send("Ada's regID", json!({"regids": [ada.regid.as_str()]}), &["Ada"], story).await?;
    server.send("the alias `ben`", json!({"aliases": ["ben"]}), &["Ben"], story).await?;
    server.send("the topic `weather`", json!({"topic": TOPIC}), &["Ada", "Cleo"], story).await?;
    server.send("all", json!({"all": true}), &NAMES, story).await?;
    ledger.settle().await?;

    cleo.device.shutdown().await;
    story.line("Cleo is offline");
    server.send("Cleo's regID", json!({"regids": [cleo.regid.as_str()]}), &["Cleo"], story).await?;
    server.send("the topic `weather`", json!({"topic": TOPIC}), &["Ada", "Cleo"], story).await?;
    server.send("all", json!({"all": true}), &NAMES, story).await?;
    node.kill()?;
    story.line("the node is killed (SIGKILL) right after it answered");
    node.start().await?;
    story.line("the node is up again, on the same ports");

    cleo.start(&node, story, &ledger).await?;
    story.line("Cleo is back");
    server.send("the alias `cleo`", json!({"aliases": ["cleo"]}), &["Cleo"], story).await?;
    for phone in [&*ada, &*ben] {
        timeout(PATIENCE, phone.device.online()).await.context("a device does not come back")??;
    }
    server.send("all", json!({"all": true}), &NAMES, story).await?;
    ledger.settle().await?;
    for phone in &phones {
        phone.device.shutdown().await;
    }
    ledger.print();
    ledger.judge()
}

impl Story {
    fn line(&self, text: &str) {
        println!("{:7.3} s  {text}", self.start.elapsed().as_secs_f64());
    }
}

impl Node {
    fn prepare() -> anyhow::Result<Self> {
        let name = format!("carillon-demo-{}", base32(&random_bytes::<10>()));
        let directory = std::env::temp_dir().join(name);
        let mut private = fs::DirBuilder::new();
        private.mode(0o700).create(&directory).with_context(|| directory.display().to_string())?;
        let free = "127.0.0.1:0";
        let doors =
            [("mqtt", "off"), ("ws", "off"), ("mqtts", free), ("https", free), ("admin", free)];
        let doors = doors.map(|(door, address)| (door.to_owned(), address.to_owned())).into();
        Ok(Self { directory, child: None, doors })
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Starts the node and waits until its doors are open.
    async fn start(&mut self) -> anyhow::Result<()> {
        let admin_file = AdminFile::path(&self.data());
        // That of a node that was killed.
        let _ = fs::remove_file(&admin_file);
        let log_path = self.directory.join("node.log");
        let log = fs::File::create(&log_path).context("cannot write a log")?;
        let flags = self.doors.iter().map(|(door, address)| format!("--{door}={address}"));
        let spawned = Command::new(std::env::current_exe().context("cannot find this program")?)
            .args(["serve", "--data"])
            .arg(self.data())
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot write a log")?)
            .stderr(log)
            .spawn();
        let child = self.child.insert(spawned.context("cannot start the node")?);
        let deadline = Instant::now() + PATIENCE;
        while !admin_file.exists() {
            let is_over = child.try_wait()?.is_some() || Instant::now() > deadline;
            ensure!(!is_over, "the node does not start: {}", last_lines(&log_path));
            sleep(POLL).await;
        }
        let mut listen = AdminFile::read(&self.data())?.listen;
        self.doors.append(&mut listen);
        Ok(())
    }

    /// Where a door listens.
    fn door(&self, door: &str) -> anyhow::Result<&str> {
        self.doors.get(door).map(String::as_str).with_context(|| format!("no door {door}"))
    }

    /// SIGKILL.
    fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().context("cannot kill the node")?;
        child.wait().context("cannot wait for the node")?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may be gone already; a directory that stays is only untidy.
        let _ = self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Sender {
    fn new(node: &Node, ledger: Ledger) -> anyhow::Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
        let ca = reqwest::Certificate::from_pem(&read(&node.data().join("tls/ca.pem"))?)?;
        // The default may be set already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .tls_certs_only([ca])
            .build()
            .context("cannot make an HTTP client")?;
        let app = serde_json::from_slice(&read(&node.data().join("demo-app.json"))?)?;
        let url = format!("https://{}", node.door("https")?);
        Ok(Self { client, url, app, sent: 0, ledger })
    }

    /// Sends the next message and writes down who must receive it.
    async fn send(
        &mut self,
        whom: &str,
        target: Value,
        receivers: &[&'static str],
        story: Story,
    ) -> anyhow::Result<()> {
        self.sent += 1;
        let number = self.sent;
        self.ledger.owe(number, receivers);
        let path = format!("/v1/apps/{}/messages", self.app.app_id);
        let body = json!({"target": target, "payload": {"number": number}});
        let request = self.client.post(self.url.clone() + &path);
        let request = request.bearer_auth(self.app.app_secret.reveal()).json(&body);
        answer(request).await.with_context(|| format!("message {number}"))?;
        story.line(&format!("message {number} to {whom}: accepted, so it is on the disk"));
        Ok(())
    }

    async fn new_device(&self) -> anyhow::Result<NewDevice> {
        let (app_id, app_key) = (&self.app.app_id, self.app.app_key.reveal());
        let body = json!({"app_id": app_id, "app_key": app_key, "register": false});
        let request = self.client.post(self.url.clone() + "/v1/devices").json(&body);
        let created = answer(request).await.context("a new device")?;
        Ok(serde_json::from_value(created)?)
    }
}

async fn answer(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    let answer = request.send().await?;
    let status = answer.status();
    let body = answer.text().await?;
    ensure!(status.is_success(), "the API answered {status}: {body}");
    Ok(serde_json::from_str(&body)?)
}

impl Phone {
    async fn new(
        name: &'static str,
        node: &Node,
        server: &Sender,
        story: Story,
        ledger: &Ledger,
    ) -> anyhow::Result<Self> {
        let NewDevice { device_id, secret } = server.new_device().await?;
        let credentials = Credentials { device_id, secret };
        let device = connect(name, node, &credentials, story, ledger).await?;
        let app = &server.app;
        let regid = device.register(&app.app_id, app.app_key.reveal()).await?;
        device.bind(&regid, &alias(name), None).await?;
        Ok(Self { name, regid, credentials, device })
    }

    /// Starts again from what it has on its disk.
    async fn start(&mut self, node: &Node, story: Story, ledger: &Ledger) -> anyhow::Result<()> {
        self.device = connect(self.name, node, &self.credentials, story, ledger).await?;
        Ok(())
    }
}

async fn connect(
    name: &'static str,
    node: &Node,
    credentials: &Credentials,
    story: Story,
    ledger: &Ledger,
) -> anyhow::Result<Device> {
    let endpoint: Endpoint = format!("tls://{}", node.door("mqtts")?).parse()?;
    let endpoint = endpoint.trust(&node.data().join("tls/ca.pem"))?;
    let state = node.directory.join(name);
    let ledger = ledger.clone();
    let device = Device::builder(endpoint, credentials.clone(), state)
        .connect_with(move |received| {
            if let Received::Message(message) = &received {
                ledger.receive(name, message, story);
            }
            std::future::ready(())
        })
        .await?;
    timeout(PATIENCE, device.online()).await.context("a device does not get through")??;
    Ok(device)
}

impl Ledger {
    fn with<T>(&self, look: impl FnOnce(&mut Pages) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn owe(&self, number: u32, receivers: &[&'static str]) {
        self.with(|pages| {
            for name in receivers {
                pages.owed.entry(name).or_default().push(number);
            }
        });
    }

    /// A payload that is not ours is number 0, which nobody is owed.
    fn receive(&self, name: &'static str, message: &Message, story: Story) {
        let payload: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let number = payload["number"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        story.line(&format!("    {name} receives message {number} by `{}`", message.queue));
        self.with(|pages| pages.received.entry(name).or_default().push(number));
    }

    /// Waits until nobody is owed anything, and a little longer for what should not come.
    async fn settle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.with(|pages| pages.judge().is_err()) && Instant::now() < deadline {
            sleep(POLL).await;
        }
        sleep(QUIET).await;
        self.judge()
    }

    fn judge(&self) -> anyhow::Result<()> {
        self.with(|pages| pages.judge())
    }

    fn print(&self) {
        self.with(|pages| {
            for (name, numbers) in &pages.received {
                println!("           {name:<5} {numbers:?}");
            }
        });
    }
}

impl Pages {
    fn judge(&self) -> anyhow::Result<()> {
        for name in NAMES {
            let of = |page: &BTreeMap<&str, Vec<u32>>| {
                let mut numbers = page.get(name).cloned().unwrap_or_default();
                numbers.sort_unstable();
                numbers
            };
            let (owed, received) = (of(&self.owed), of(&self.received));
            ensure!(owed == received, "{name} must have {owed:?} and has {received:?}");
        }
        Ok(())
    }
}

fn alias(name: &str) -> String {
    name.to_lowercase()
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

const NAMES: [&str; 3] = ["Ada", "Ben", "Cleo"];
const TOPIC: &str = "weather";
/// For anything that should be quick.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Without anything new.
const QUIET: Duration = Duration::from_millis(500);
