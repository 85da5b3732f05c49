//! A device in Python over frames: `device.py`, with Apache Thrift's own code for the IDL.

use std::{path::Path, process::Command};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{AppCredentials, Device, Node, Options, dialogue::Dialogue, script, tools};

const SECOND: &str = "second";
const ALIAS: &str = "ann";
const TOPIC: &str = "news";

#[tokio::test]
async fn a_python_device_registers_receives_and_resumes_by_digest() {
    let mut scene = Scene::set().await;

    scene.send_to_all_targets(2).await;
    scene.receives_what_was_sent().await;
    scene.goes_offline().await;

    scene.send_to_all_targets(30).await;
    let before = scene.comes_back().await;
    assert!(!told(&before, "asked"), "equal digests need no positions: {before:#?}");
    scene.receives_what_was_sent().await;
    scene.goes_offline().await;
}

#[tokio::test]
async fn a_python_device_that_lost_positions_states_what_it_has() {
    let mut scene = Scene::set().await;
    scene.send_to_all_targets(3).await;
    scene.receives_what_was_sent().await;
    scene.goes_offline().await;

    let regid = scene.regid.clone();
    scene.device.obey(json!({"do": "lose", "regid": regid, "queue": "topic/news"})).await;
    scene.device.obey(json!({"do": "move", "regid": regid, "queue": "alias/ann", "by": -2})).await;
    scene.send_to_all_targets(1).await;
    let before = scene.comes_back().await;
    assert!(told(&before, "asked"), "the digests differ: {before:#?}");

    // 4 new messages; again come 2 of the alias and 3 of the topic, which has no position.
    let events = scene.device.until_count("message", 4 + 2 + 3).await;
    let ranges = deltas(&events);
    let of = |queue: &str| -> Vec<_> { ranges.iter().filter(|d| d.queue == queue).collect() };
    assert!(of("topic/news").iter().all(|d| d.rule == 1 || d.rule == 2), "{events:#?}");
    assert_eq!(of("topic/news")[0].jump, Some("NEW".to_owned()), "{events:#?}");
    assert!(of("alias/ann").iter().all(|d| d.rule == 2), "the stated position wins: {events:#?}");
    assert_eq!(payloads(&events, true), scene.take_sent(), "each message is shown once");
    assert_eq!(payloads(&events, false).len(), 5, "what was handled before comes again");
    scene.goes_offline().await;
}

#[tokio::test]
async fn a_python_device_meets_an_overlap_and_a_gap() {
    let mut scene = Scene::set().await;
    scene.node.send(json!({"all": true}), json!({"target": "of the other registration"})).await;
    scene.device.until("message").await;
    scene.send_to_all_targets(3).await;
    scene.receives_what_was_sent().await;
    scene.node.wait_until_acknowledged_for(SECOND, &scene.regid).await;
    let regid = scene.regid.clone();

    // It states less than it has: the delta overlaps, and nothing is applied twice.
    scene.device.obey(json!({"do": "state", "regid": regid, "queue": "alias/ann", "by": -2})).await;
    scene.device.until("resumed").await;
    let events = scene.device.until("delta").await;
    let overlap = deltas(&events).pop().expect("a delta");
    assert_eq!((overlap.queue.as_str(), overlap.rule), ("alias/ann", 3), "{events:#?}");
    assert!(!told(&events, "message"), "{events:#?}");

    // It has less than it states: the next delta has a gap, and it states what it has.
    scene.device.obey(json!({"do": "move", "regid": regid, "queue": "alias/ann", "by": -2})).await;
    scene.node.send_for(SECOND, json!({"aliases": [ALIAS]}), json!({"n": "next"})).await;
    let events = scene.device.until("resumed").await;
    let gap = deltas(&events).pop().expect("a delta");
    assert_eq!((gap.queue.as_str(), gap.rule), ("alias/ann", 4), "{events:#?}");
    assert!(!told(&events, "message"), "{events:#?}");
    let events = scene.device.until_count("message", 3).await;
    // The other registration's positions were not stated, and nothing of it comes again.
    assert!(deltas(&events).iter().all(|d| d.rule == 2), "{events:#?}");
    assert_eq!(payloads(&events, true), [json!({"n": "next"}).to_string()]);
    assert!(events.iter().all(|event| event["regid"] == regid), "{events:#?}");
    scene.goes_offline().await;
}

#[tokio::test]
async fn a_python_device_acknowledges_only_what_it_has_handled() {
    let mut scene = Scene::set().await;
    scene.device.obey(json!({"do": "hold"})).await;
    scene.send_to_all_targets(1).await;
    scene.receives_what_was_sent().await;
    let pending = scene.node.registration_for(SECOND, &scene.regid).await;
    let behind = |p: &&Value| p["acked"] != p["head"];
    let behind = pending["pointers"].as_array().expect("pointers").iter().filter(behind).count();
    assert_eq!(behind, 4, "no pointer moves without a PUBACK: {pending}");
    scene.device.obey(json!({"do": "release"})).await;
    scene.node.wait_until_acknowledged_for(SECOND, &scene.regid).await;
}

#[tokio::test]
async fn a_python_device_opens_what_is_sealed_for_it() {
    let mut scene = Scene::set_sealed().await;
    scene.send_to_all_targets(2).await;
    scene.receives_what_was_sent().await;
    scene.goes_offline().await;
    scene.send_to_all_targets(5).await;
    let before = scene.comes_back().await;
    assert!(!told(&before, "asked"), "equal digests need no positions: {before:#?}");
    scene.receives_what_was_sent().await;

    // Its position of the own queue goes back: what it opened before is not opened again.
    let regid = scene.regid.clone();
    scene.node.wait_until_acknowledged_for(SECOND, &regid).await;
    scene.device.obey(json!({"do": "move", "regid": regid, "queue": "own", "by": -2})).await;
    scene.goes_offline().await;
    let before = scene.comes_back().await;
    assert!(told(&before, "asked"), "the digests differ: {before:#?}");
    scene.send_to_all_targets(1).await;
    let events = scene.device.until_count("message", 4).await;
    assert!(!told(&events, "refused"), "{events:#?}");
    assert_eq!(payloads(&events, true), scene.take_sent());
    assert!(payloads(&events, false).is_empty(), "{events:#?}");
    scene.goes_offline().await;
}

#[tokio::test]
async fn a_python_device_unpacks_what_it_missed() {
    let config = Some("[edge]\npack_bytes_min = 1024\n".to_owned());
    let node = Node::start_with(Options { config, ..Options::default() }).await;
    let second = node.create_app(SECOND).await;
    let mut scene = Scene::set_with(node, second, None).await;
    scene.send_to_all_targets(1).await;
    scene.receives_what_was_sent().await;
    scene.goes_offline().await;

    scene.send_to_all_targets(20).await;
    let mut events = scene.comes_back().await;
    assert!(!told(&events, "asked"), "equal digests need no positions: {events:#?}");
    let sent = scene.take_sent();
    events.extend(scene.device.until_count("message", sent.len()).await);
    assert!(told(&events, "packed"), "{events:#?}");
    assert_eq!(payloads(&events, true), sent);
    scene.goes_offline().await;
    let before = scene.comes_back().await;
    assert!(!told(&before, "asked"), "acknowledged as any frame: {before:#?}");
    scene.goes_offline().await;
}

#[test]
fn the_documents_vectors_are_what_python_makes_of_them() {
    let mut command = Command::new(tools::python());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    command.arg(root.join("tests/foreign/seal.py")).arg(root.join("docs/PROTOCOL.md"));
    let output = command.output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A node, and a device that is offline: its registration of the demo app, and the regID of another.
pub async fn device_with_two_registrations() -> (Node, Device, String) {
    let mut scene = Scene::set().await;
    scene.goes_offline().await;
    (scene.node, scene.account, scene.regid)
}

/// A node with two apps, and a device with a registration of each: the second by a frame.
struct Scene {
    node: Node,
    account: Device,
    device: Dialogue,
    regid: String,
    sent: Vec<String>,
    _folder: TempDir,
}

impl Scene {
    async fn set() -> Self {
        let node = Node::start().await;
        let second = node.create_app(SECOND).await;
        Self::set_with(node, second, None).await
    }

    /// The second app demands sealed payloads.
    async fn set_sealed() -> Self {
        let node = Node::start().await;
        let second = node.create_app(SECOND).await;
        let shown = node.cli(&["app", "seal", SECOND]).await;
        let shown: Value = serde_json::from_str(&shown).expect("its keys");
        let key = shown["keys"][0].as_str().expect("a key").to_owned();
        Self::set_with(node, second, Some(key)).await
    }

    async fn set_with(node: Node, second: AppCredentials, seal: Option<String>) -> Self {
        let account = node.create_device().await;
        let folder = tempfile::tempdir().unwrap();
        let mut device = start(&node, &account, folder.path());
        device.until("started").await;
        device.obey(json!({"do": "know", "regid": account.regid})).await;
        device.obey(json!({"do": "connect"})).await;
        device.until("resumed").await;
        let regid = register(&mut device, &second, seal).await;
        device.obey(json!({"do": "bind", "request": 2, "regid": regid, "alias": ALIAS})).await;
        ok(&mut device, 2).await;
        let subscribe = json!({"do": "subscribe", "request": 3, "regid": regid, "topics": [TOPIC]});
        device.obey(subscribe).await;
        ok(&mut device, 3).await;
        node.wait_until_acknowledged_for(SECOND, &regid).await;
        node.wait_until_acknowledged(&account.regid).await;
        Self { node, account, device, regid, sent: Vec::new(), _folder: folder }
    }

    async fn send_to_all_targets(&mut self, rounds: usize) {
        let targets = [
            json!({"regids": [self.regid]}),
            json!({"aliases": [ALIAS]}),
            json!({"topic": TOPIC}),
            json!({"all": true}),
        ];
        for round in 0..rounds {
            for target in &targets {
                let payload = json!({"target": target, "n": self.sent.len(), "round": round});
                self.sent.push(payload.to_string());
                self.node.send_for(SECOND, target.clone(), payload).await;
            }
        }
    }

    /// Exactly what was sent, in order in each queue, by nothing but deltas that continue.
    async fn receives_what_was_sent(&mut self) {
        let events = self.device.until_count("message", self.sent.len()).await;
        assert!(deltas(&events).iter().all(|delta| delta.rule == 2), "{events:#?}");
        assert_eq!(payloads(&events, true), self.take_sent());
    }

    /// Payloads that were sent since the last time, grouped by queue.
    fn take_sent(&mut self) -> Vec<String> {
        by_queue(std::mem::take(&mut self.sent))
    }

    async fn goes_offline(&mut self) {
        self.node.wait_until_acknowledged_for(SECOND, &self.regid).await;
        self.device.obey(json!({"do": "disconnect"})).await;
        self.device.until("offline").await;
    }

    /// Connects and gives everything that happened until the gateway pushes.
    async fn comes_back(&mut self) -> Vec<Value> {
        self.device.obey(json!({"do": "connect"})).await;
        self.device.until("resumed").await
    }
}

fn start(node: &Node, account: &Device, folder: &Path) -> Dialogue {
    let idl = concat!(env!("CARGO_MANIFEST_DIR"), "/thrift/device.thrift");
    let mut thrift = Command::new(tools::program("thrift"));
    let made = thrift.args(["--gen", "py", "-out"]).arg(folder).arg(idl).status().unwrap();
    assert!(made.success(), "thrift --gen py: {made}");
    let address = node.listen().mqtt;
    let mut command = script::command("device.py");
    command
        .env("PYTHONPATH", folder)
        .env("STATE_FILE", folder.join("state.json"))
        .env("DICTIONARY", concat!(env!("CARGO_MANIFEST_DIR"), "/wire/dictionary/1.bin"))
        .env("HOST", address.ip().to_string())
        .env("PORT", address.port().to_string())
        .env("DEVICE_ID", &account.device_id)
        .env("SECRET", &account.secret);
    Dialogue::start(command)
}

async fn register(device: &mut Dialogue, app: &AppCredentials, seal: Option<String>) -> String {
    let (id, key) = (&app.app_id, &app.app_key);
    let command =
        json!({"do": "register", "request": 1, "app_id": id, "app_key": key, "seal": seal});
    device.obey(command).await;
    let result = ok(device, 1).await;
    result["regid"].as_str().expect("a regid").to_owned()
}

async fn ok(device: &mut Dialogue, request: i64) -> Value {
    let result = device.until("result").await.pop().expect("the result");
    assert_eq!((&result["request"], &result["code"]), (&json!(request), &json!(0)), "{result}");
    result
}

/// A delta as the device met it.
struct Delta {
    queue: String,
    rule: u64,
    jump: Option<String>,
}

fn deltas(events: &[Value]) -> Vec<Delta> {
    let deltas = events.iter().filter(|event| event["event"] == "delta");
    deltas
        .map(|delta| Delta {
            queue: delta["queue"].as_str().expect("a queue").to_owned(),
            rule: delta["rule"].as_u64().expect("a rule"),
            jump: delta["jump"].as_str().map(str::to_owned),
        })
        .collect()
}

fn told(events: &[Value], kind: &str) -> bool {
    events.iter().any(|event| event["event"] == kind)
}

/// The payloads of messages, new ones or repeated ones, grouped by queue.
fn payloads(events: &[Value], new: bool) -> Vec<String> {
    let messages = events.iter().filter(|e| e["event"] == "message" && e["new"] == new);
    by_queue(messages.map(|e| e["payload"].as_str().expect("text").to_owned()).collect())
}

/// A stable sort: order is promised within a queue, not between queues.
fn by_queue(mut payloads: Vec<String>) -> Vec<String> {
    payloads.sort_by_key(|payload| {
        let payload: Value = serde_json::from_str(payload).expect("a payload of ours");
        payload["target"].to_string()
    });
    payloads
}
