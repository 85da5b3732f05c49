//! Strangers as devices: stock MQTT clients, which know nothing of Carillon, and
//! a device in another language, written from docs/PROTOCOL.md alone.
//!
//! Each stock client receives by all four targets, goes offline, comes back with
//! its persistent session and receives exactly what it missed.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

#[path = "foreign/frames.rs"]
mod frames;
mod support;

use std::{collections::BTreeMap, fs, time::Duration};

use serde_json::{Value, json};
use support::{
    Device, Node, Options,
    client::{Client, Message},
    rumqtt,
    script::{self, Script, Transport, Version},
};

/// A whole scenario, the start of its node included.
const SCENARIO_DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn mosquitto_sub_3_1_1_is_a_complete_device() {
    a_script_is_a_complete_device("mosquitto_sub.sh", Transport::Tcp, Version::V311).await;
}

#[tokio::test]
async fn mosquitto_sub_5_is_a_complete_device() {
    a_script_is_a_complete_device("mosquitto_sub.sh", Transport::Tcp, Version::V5).await;
}

#[tokio::test]
async fn mosquitto_sub_3_1_1_over_tls_is_a_complete_device() {
    a_script_is_a_complete_device("mosquitto_sub.sh", Transport::Tls, Version::V311).await;
}

#[tokio::test]
async fn mosquitto_sub_5_over_tls_is_a_complete_device() {
    a_script_is_a_complete_device("mosquitto_sub.sh", Transport::Tls, Version::V5).await;
}

#[tokio::test]
async fn paho_3_1_1_is_a_complete_device() {
    a_script_is_a_complete_device("stock_paho.py", Transport::Tcp, Version::V311).await;
}

#[tokio::test]
async fn paho_5_is_a_complete_device() {
    a_script_is_a_complete_device("stock_paho.py", Transport::Tcp, Version::V5).await;
}

#[tokio::test]
async fn mqttjs_3_1_1_is_a_complete_device() {
    a_script_is_a_complete_device("mqttjs.cjs", Transport::Tcp, Version::V311).await;
}

#[tokio::test]
async fn mqttjs_5_is_a_complete_device() {
    a_script_is_a_complete_device("mqttjs.cjs", Transport::Tcp, Version::V5).await;
}

#[tokio::test]
async fn mqttjs_3_1_1_over_websocket_is_a_complete_device() {
    a_script_is_a_complete_device("mqttjs.cjs", Transport::WebSocket, Version::V311).await;
}

#[tokio::test]
async fn mqttjs_5_over_websocket_is_a_complete_device() {
    a_script_is_a_complete_device("mqttjs.cjs", Transport::WebSocket, Version::V5).await;
}

#[tokio::test]
async fn rumqttc_3_1_1_is_a_complete_device() {
    is_a_complete_device(rumqtt::connect_v4).await;
}

#[tokio::test]
async fn rumqttc_5_is_a_complete_device() {
    is_a_complete_device(rumqtt::connect_v5).await;
}

#[tokio::test]
async fn a_stock_client_receives_what_was_accepted_before_the_node_was_killed() {
    // Pointers of the last moment may be lost in a crash: this makes it a short one.
    let config = Some("[store]\npointer_flush_ms = 1\n".to_owned());
    let mut scene = Scene::on(Options { config, ..Options::default() }).await;
    let script =
        Script { file: "mosquitto_sub.sh", transport: Transport::Tcp, version: Version::V311 };
    let mut client = script.connect(&scene.node, &scene.device, &["push", "topic/news"]);
    client.ready().await;
    scene.send_to_all_targets(1).await;
    scene.receives_what_was_sent(&mut client).await;
    scene.goes_offline(client).await;

    scene.send_to_all_targets(3).await;
    scene.node.kill9();
    scene.node.restart().await;
    let mut client = script.connect(&scene.node, &scene.device, &["push", "topic/news"]);
    client.ready().await;
    scene.receives_what_was_sent(&mut client).await;
    scene.goes_offline(client).await;
    let ended = scene.node.terminate().await;
    assert!(ended.success(), "{}", support::how_ended(ended));
}

#[tokio::test]
async fn mqtt_5_messages_say_where_they_come_from() {
    let node = Node::start().await;
    let device = node.create_device().await;
    node.bind(&device.regid, "user-7").await;
    let mut client = rumqtt::connect_v5(&node, &device, &["push", "topic/news"]);
    client.ready().await;
    for (target, queue) in [
        (json!({"regids": [device.regid]}), "own"),
        (json!({"aliases": ["user-7"]}), "alias/user-7"),
        (json!({"topic": "news"}), "topic/news"),
        (json!({"all": true}), "all"),
    ] {
        let id = node.send(target, json!(queue)).await;
        let message = client.message().await;
        let property = |name: &str| {
            let found = message.properties.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        assert_eq!((property("id"), property("queue")), (id.as_str(), queue));
        let registration = node.registration(&device.regid).await;
        let pointers = registration["pointers"].as_array().expect("pointers");
        let pointer = pointers.iter().find(|p| p["queue"] == queue);
        assert_eq!(pointer.expect("a pointer")["head"], property("position"), "{registration}");
    }
    client.stop().await;
}

#[tokio::test]
async fn only_filters_with_an_app_are_valid_with_several_registrations() {
    let (node, device, second) = frames::device_with_two_registrations().await;
    let refused = rumqtt::connect_v5(&node, &device, &["push"]).refused().await;
    assert!(refused.contains("refused"), "{refused}");
    let filters = ["push/second", "topic/second/sport"];
    let mut client = rumqtt::connect_v5(&node, &device, &filters);
    client.ready().await;
    node.send(json!({"regids": [device.regid]}), json!("of the other app")).await;
    for target in [json!({"topic": "sport"}), json!({"regids": [second]}), json!({"all": true})] {
        node.send_for("second", target.clone(), target.clone()).await;
        assert_eq!(client.message().await.payload, target.to_string());
    }
    client.stop().await;
}

/// An `Up` made by hand: `{2: Resume {1: 0}}`, Thrift compact protocol.
const RESUME: [u8; 5] = [
    0x2c, // field 2 (0 + 2), a struct
    0x16, // field 1 (0 + 1), an i64
    0x00, // 0, zigzag
    0x00, // the end of Resume
    0x00, // the end of Up
];

#[tokio::test]
async fn mosquitto_pub_sends_a_frame_made_by_hand() {
    for (transport, version) in [
        (Transport::Tcp, Version::V311),
        (Transport::Tcp, Version::V5),
        (Transport::Tls, Version::V5),
    ] {
        let (code, output) = mosquitto_pub(transport, version, "up").await;
        assert_eq!(code, Some(0), "{transport:?} {version:?}: {output}");
        assert!(output.contains("received PUBACK (Mid: 1, RC:0)"), "{output}");
    }
}

#[tokio::test]
async fn mosquitto_pub_to_a_foreign_topic_is_refused() {
    let (_, output) = mosquitto_pub(Transport::Tcp, Version::V5, "somebody/else").await;
    assert!(output.contains("received PUBACK (Mid: 1, RC:135)"), "not authorized: {output}");
    // In 3.1.1 a PUBACK cannot refuse: the connection ends without one.
    let (code, output) = mosquitto_pub(Transport::Tcp, Version::V311, "somebody/else").await;
    assert_ne!(code, Some(0), "{output}");
    assert!(!output.contains("received PUBACK"), "{output}");
}

async fn mosquitto_pub(
    transport: Transport,
    version: Version,
    topic: &str,
) -> (Option<i32>, String) {
    let node = Node::start().await;
    let device = node.create_device().await;
    let folder = tempfile::tempdir().unwrap();
    let frame = folder.path().join("up.bin");
    fs::write(&frame, RESUME).unwrap();
    let script = Script { file: "mosquitto_pub.sh", transport, version };
    let mut command = script::command(script.file);
    script.tell(&mut command, &node, &device).env("TOPIC", topic).env("FRAME", &frame);
    let output = script::output(command, Duration::from_secs(30)).await;
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

async fn a_script_is_a_complete_device(file: &'static str, transport: Transport, version: Version) {
    let script = Script { file, transport, version };
    is_a_complete_device(|node, device, filters| script.connect(node, device, filters)).await;
}

async fn is_a_complete_device(connect: impl Fn(&Node, &Device, &[&str]) -> Client) {
    let scenario = async {
        let mut scene = Scene::set().await;
        let online = async |scene: &Scene| {
            let mut client = connect(&scene.node, &scene.device, &["push", "topic/news"]);
            client.ready().await;
            client
        };

        let mut client = online(&scene).await;
        scene.send_to_all_targets(3).await;
        scene.receives_what_was_sent(&mut client).await;
        scene.goes_offline(client).await;

        // More than the connection's window has room for.
        scene.send_to_all_targets(10).await;
        let mut client = online(&scene).await;
        scene.receives_what_was_sent(&mut client).await;
        scene.goes_offline(client).await;

        // What comes next is new: nothing comes twice.
        let mut client = online(&scene).await;
        scene.send_to_all_targets(1).await;
        scene.receives_what_was_sent(&mut client).await;
        client.stop().await;
    };
    tokio::time::timeout(SCENARIO_DEADLINE, scenario).await.expect("the scenario ends in time");
}

/// A node, a device that follows a queue of each kind, and what was sent to it.
struct Scene {
    node: Node,
    device: Device,
    rounds: u64,
    expected: BTreeMap<&'static str, Vec<String>>,
}

/// Each queue that the device follows: what the payloads call it and the MQTT topic of its messages.
const QUEUES: [(&str, &str); 5] = [
    ("own", "push"),
    ("alias", "push"),
    ("topic by the API", "push"),
    ("topic by the device", "topic/news"),
    ("all", "push"),
];

impl Scene {
    async fn set() -> Self {
        Self::on(Options::default()).await
    }

    async fn on(options: Options) -> Self {
        let node = Node::start_with(options).await;
        let device = node.create_device().await;
        node.bind(&device.regid, "user-7").await;
        node.subscribe(&device.regid, "weather").await;
        Self { node, device, rounds: 0, expected: BTreeMap::new() }
    }

    async fn send_to_all_targets(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.rounds += 1;
            for (queue, _) in QUEUES {
                let payload = json!({"n": self.rounds, "queue": queue, "text": "grüße, 世界"});
                self.node.send(self.target(queue), payload.clone()).await;
                self.expected.entry(queue).or_default().push(payload.to_string());
            }
        }
    }

    fn target(&self, queue: &str) -> Value {
        match queue {
            "own" => json!({"regids": [self.device.regid]}),
            "alias" => json!({"aliases": ["user-7"]}),
            "topic by the API" => json!({"topic": "weather"}),
            "topic by the device" => json!({"topic": "news"}),
            _ => json!({"all": true}),
        }
    }

    /// Exactly what was sent since the last time, in order in each queue.
    async fn receives_what_was_sent(&mut self, client: &mut Client) {
        let expected = std::mem::take(&mut self.expected);
        let count = expected.values().map(Vec::len).sum();
        let mut received: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for message in client.messages(count).await {
            received.entry(queue_of(&message)).or_default().push(message.payload);
        }
        assert_eq!(received, expected);
    }

    async fn goes_offline(&self, client: Client) {
        self.node.wait_until_acknowledged(&self.device.regid).await;
        client.stop().await;
        self.node.wait_until_online(&self.device.regid, false).await;
    }
}

fn queue_of(message: &Message) -> &'static str {
    let payload: Value = serde_json::from_str(&message.payload).expect("a payload of ours");
    let known = QUEUES.iter().find(|(queue, _)| payload["queue"] == *queue);
    let (queue, topic) = known.expect("a queue of ours");
    assert_eq!(message.topic, *topic, "{payload}");
    queue
}
