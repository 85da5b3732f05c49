//! Foreign clients: a script in `tests/foreign/` as a process.
//!
//! A script is told everything by environment variables, prints `ready` when its
//! subscriptions are granted and `message TOPIC PAYLOAD` for each message, and
//! disconnects in good order on SIGTERM.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{
    Device, Node,
    client::{Client, Event, Feed, Message},
    tools,
};

/// What a script is to do.
#[derive(Clone, Debug)]
pub struct Script {
    /// Its file in `tests/foreign/`.
    pub file: &'static str,
    /// By which door it comes.
    pub transport: Transport,
    /// Which MQTT it speaks.
    pub version: Version,
}

/// By which door a client comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Tls,
    WebSocket,
}

/// Which MQTT a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V311,
    V5,
}

impl Script {
    /// Starts it as this device.
    pub fn connect(&self, node: &Node, device: &Device, filters: &[&str]) -> Client {
        let mut command = command(self.file);
        self.tell(&mut command, node, device).env("FILTERS", filters.join(" "));
        let name = format!("{} {:?} {:?}", self.file, self.transport, self.version);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name}: {error}"));
        Client::start(name, move |feed| run(child, feed))
    }

    /// Sets the variables that every script reads.
    pub fn tell<'a>(
        &self,
        command: &'a mut Command,
        node: &Node,
        device: &Device,
    ) -> &'a mut Command {
        let (transport, address) = match self.transport {
            Transport::Tcp => ("tcp", node.listen().mqtt),
            Transport::Tls => ("tls", node.listen().mqtts),
            Transport::WebSocket => ("ws", node.listen().ws),
        };
        let version = match self.version {
            Version::V311 => "4",
            Version::V5 => "5",
        };
        command
            .env("TRANSPORT", transport)
            .env("HOST", address.ip().to_string())
            .env("PORT", address.port().to_string())
            .env("CA_FILE", node.ca_file())
            .env("MQTT_VERSION", version)
            .env("DEVICE_ID", &device.device_id)
            .env("SECRET", &device.secret)
    }
}

/// The command that runs a script, by the kind of its file; it ends with its handle.
pub fn command(file: &str) -> Command {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(file);
    let mut command = match file.rsplit_once('.').expect("an extension").1 {
        "sh" => Command::new("bash"),
        "py" => Command::new(tools::python()),
        "cjs" => Command::new(tools::program("node")),
        other => panic!("no interpreter for .{other}"),
    };
    if file.ends_with(".cjs") {
        command.env("NODE_PATH", tools::node_modules());
    }
    command.arg(path).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a script to its end, within a deadline: its output, and its exit code.
pub async fn output(mut command: Command, within: Duration) -> std::process::Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    match timeout(within, command.output()).await {
        Ok(output) => output.expect("the script starts"),
        Err(_) => panic!("{command:?} did not end in {within:?}"),
    }
}

async fn run(mut child: Child, mut feed: Feed) -> Result<(), String> {
    let mut errors = child.stderr.take().expect("a pipe");
    let errors = tokio::spawn(async move {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text).await;
        text
    });
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut stopped = false;
    loop {
        tokio::select! {
            line = lines.next_line() => match line.map_err(|error| error.to_string())? {
                Some(line) => if let Some(event) = parse(&line) {
                    let _ = feed.events.send(event).await;
                },
                None => break,
            },
            _ = &mut feed.stop, if !stopped => {
                stopped = true;
                terminate(&child);
            }
        }
    }
    drop(feed.events);
    let status = child.wait().await.map_err(|error| error.to_string())?;
    if stopped && status.success() {
        return Ok(());
    }
    let errors = errors.await.unwrap_or_default();
    Err(format!("{}\n{errors}", super::how_ended(status)))
}

fn parse(line: &str) -> Option<Event> {
    if line == "ready" {
        return Some(Event::Ready);
    }
    let (topic, payload) = line.strip_prefix("message ")?.split_once(' ')?;
    let (topic, payload) = (topic.to_owned(), payload.to_owned());
    Some(Event::Message(Message { topic, payload, properties: Vec::new() }))
}

fn terminate(child: &Child) {
    if let Some(id) = child.id() {
        let _ = std::process::Command::new("kill").args(["-s", "TERM", &id.to_string()]).status();
    }
}
