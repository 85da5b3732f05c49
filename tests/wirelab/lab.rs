//! The node under abuse: devices in numbers, its memory, and a witness who must be served.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    bytes::Version,
    seen::Seen,
    wire::{DEADLINE, Wire},
};
use crate::support::{APP, AppCredentials, Device, Node, Options, poll_until};

/// A device that has done nothing wrong and is connected all the time.
pub struct Witness {
    pub device: Device,
    wire: Wire,
    count: usize,
}

impl Witness {
    /// Connects it, as a device of an app of its own.
    pub async fn new(node: &Node) -> Self {
        create_app(node, WITNESS).await;
        let device = devices_of(node, WITNESS, 1).await.remove(0);
        let mut wire = Wire::clean(node, &device, Version::V5).await;
        assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
        Self { device, wire, count: 0 }
    }

    /// The node is well: it says so, and the witness gets its next message and nothing else.
    pub async fn is_served(&mut self, node: &Node) {
        self.count += 1;
        let text = format!("witness {}", self.count);
        let target = json!({"regids": [self.device.regid]});
        node.send_for(WITNESS, target, json!(text)).await;
        let push = self.wire.push().await;
        assert_eq!(push.text(), json!(text).to_string());
        self.wire.ack(push.id).await;
        assert_eq!(self.wire.settle().await, []);
        let health = node.call(Method::GET, "/readyz", None).await;
        assert_eq!(health.status, 200, "{}", health.body);
    }
}

const WITNESS: &str = "witness";

/// Creates an app whose devices may bind aliases by themselves.
pub async fn create_app(node: &Node, app: &str) -> AppCredentials {
    let body = Some(json!({"app_id": app}));
    let made = node.call(Method::POST, "/admin/v1/apps", body).await;
    assert_eq!(made.status, 201, "{}", made.body);
    serde_json::from_value(made.body).expect("an app's credentials")
}

/// Many devices of the demo app at once.
pub async fn devices(node: &Node, count: usize) -> Vec<Device> {
    devices_of(node, APP, count).await
}

/// Many devices of an app at once.
pub async fn devices_of(node: &Node, app: &str, count: usize) -> Vec<Device> {
    let path = format!("/admin/v1/apps/{app}/devices");
    let made = node.call(Method::POST, &path, Some(json!({"count": count}))).await;
    assert_eq!(made.status, 201, "{}", made.body);
    serde_json::from_value(made.body).expect("devices")
}

/// Ends a registration as its app does.
pub async fn revoke(node: &Node, app: &str, regid: &str) {
    let path = format!("/v1/apps/{app}/registrations/{regid}");
    let ended = node.call(Method::DELETE, &path, None).await;
    assert_eq!(ended.status, 204, "{}", ended.body);
}

/// Sends the numbers `from..to` to a registration, one message each, in order.
pub async fn send_numbers(node: &Node, regid: &str, numbers: std::ops::Range<usize>) {
    for number in numbers {
        node.send(json!({"regids": [regid]}), json!(number)).await;
    }
}

/// A send, whatever the answer is.
pub async fn try_send(node: &Node, app: &str, target: Value, payload: Value) -> Value {
    let body = json!({"target": target, "payload": payload});
    node.call(Method::POST, &format!("/v1/apps/{app}/messages"), Some(body)).await.body
}

/// The node's memory that is not backed by files, in KiB.
pub fn memory_kib(node: &Node) -> usize {
    status_kib(node, "RssAnon:")
}

/// What the node has asked the system for, touched or not, in KiB.
pub fn asked_kib(node: &Node) -> usize {
    status_kib(node, "VmData:")
}

fn status_kib(node: &Node, name: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}

/// How many files and sockets the node holds.
pub fn open_files(node: &Node) -> usize {
    fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("it runs").count()
}

/// No bound on how fast a connection says things: for tests of what it says.
pub const UNPACED: &str = "[edge.gate]\npackets_per_s = 0\nrequests_per_s = 0\n";

/// A node under abuse: somebody misbehaves, and a witness must not notice.
pub struct Patient {
    pub node: Node,
    pub device: Device,
    witness: Witness,
}

impl Patient {
    pub async fn new() -> Self {
        Self::with("").await
    }

    /// With this text as its configuration.
    pub async fn with(config: &str) -> Self {
        let options = Options { config: Some(config.to_owned()), ..Options::default() };
        Self::with_options(options).await
    }

    /// Started like this.
    pub async fn with_options(options: Options) -> Self {
        let node = Node::start_with(options).await;
        let witness = Witness::new(&node).await;
        let device = node.create_device().await;
        Self { node, device, witness }
    }

    /// A connection that has said nothing.
    pub async fn open(&self, version: Version) -> Wire {
        Wire::open(self.node.listen().mqtt, version).await
    }

    /// The misbehaving device, connected.
    pub async fn clean(&self, version: Version) -> Wire {
        Wire::clean(&self.node, &self.device, version).await
    }

    /// Says this on a connection of its own, which must end with one of these codes.
    pub async fn ends(&self, version: Version, bytes: &[u8], codes: &[u8]) {
        let mut wire = self.clean(version).await;
        wire.send(bytes).await;
        let all = wire.until_closed().await;
        if version == Version::V5 {
            let is_named =
                matches!(all.last(), Some(Seen::Disconnect { code }) if codes.contains(code));
            assert!(is_named, "{bytes:02x?} was answered by {all:02x?}, not one of {codes:02x?}");
        }
    }

    /// Waits until the witness alone is connected.
    pub async fn until_gone(&self) {
        self.until_gone_but(1).await;
    }

    /// Waits until no more than so many are connected.
    pub async fn until_gone_but(&self, count: usize) {
        let left = async || self.metric("carillon_connections").await as usize;
        let is_alone = async || (left().await == count).then_some(());
        assert!(poll_until(DEADLINE, is_alone).await.is_some(), "connections are left");
    }

    /// Waits until the node holds no more files and sockets than so many.
    pub async fn until_files(&self, max: usize) {
        let is_free = async || (open_files(&self.node) <= max).then_some(());
        let freed = poll_until(DEADLINE, is_free).await;
        assert!(freed.is_some(), "{} are open, more than {max}", open_files(&self.node));
    }

    /// The sum of a metric over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.node.metrics().await;
        let samples = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let matches = series == name || series.starts_with(&format!("{name}{{"));
            matches.then(|| value.parse::<f64>().expect("a number"))
        });
        samples.sum()
    }

    /// The witness is served, the node is ready and nothing panicked.
    pub async fn is_well(&mut self) {
        self.witness.is_served(&self.node).await;
        let log = self.node.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}
