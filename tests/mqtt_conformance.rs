//! MQTT 3.1.1 and 5 byte by byte, part one: who is let in, what is granted, what is refused.
//!
//! Each test is a table over one node. A failure names the case.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use serde_json::json;
use support::{Device, Node};
use wirelab::{
    bytes::{
        Connect, PUBACK, PUBCOMP, PUBREC, PUBREL, Publish, VERSIONS, Version, Will, ack,
        auth_method, disconnect_with, header, number2, packet, packet_max, receive_max,
        session_expiry, subscribe, subscribe_with, text, topic_alias, unsubscribe, user_property,
    },
    frames::{self, Framed},
    lab::Witness,
    seen::Seen,
    transport::{self, Cut},
    wire::{Wire, device_connect},
};

use Version::{V5, V311};

/// What CONNACK says of a first packet; `None`: the stream ends without one.
struct Greeting {
    what: &'static str,
    bytes: Vec<u8>,
    /// How the answer is read.
    version: Version,
    code: Option<u8>,
}

fn greetings(device: &Device) -> Vec<Greeting> {
    let good = |version| device_connect(device, version);
    let mut all = Vec::new();
    let mut case = |what, version, bytes, code| {
        all.push(Greeting { what, bytes, version, code });
    };
    let other = |version, change: fn(&mut Connect)| {
        let mut connect = good(version);
        change(&mut connect);
        connect.bytes()
    };
    for (version, bad, invalid) in [(V5, 0x86, 0x85), (V311, 4, 2)] {
        case("good", version, good(version).bytes(), Some(0));
        let wrong = other(version, |c| c.password = Some(b"wrong".to_vec()));
        case("wrong secret", version, wrong, Some(bad));
        let nobody = other(version, |c| {
            (c.client_id, c.user) =
                (b"nobodynobodynobo".to_vec(), Some(b"nobodynobodynobo".to_vec()));
        });
        case("unknown device", version, nobody, Some(bad));
        let someone = other(version, |c| c.user = Some(b"someone".to_vec()));
        case("another user name", version, someone, Some(bad));
        let bare = other(version, |c| (c.user, c.password) = (None, None));
        case("no credentials", version, bare, Some(bad));
        let secretless = other(version, |c| c.password = Some(Vec::new()));
        case("empty secret", version, secretless, Some(bad));
        let anonymous = other(version, |c| c.client_id.clear());
        case("empty client id", version, anonymous, Some(invalid));
        let kept = other(version, |c| (c.client_id, c.is_clean) = (Vec::new(), false));
        case("empty client id with a session", version, kept, Some(invalid));
    }
    case("good without a user", V5, other(V5, |c| c.user = None), Some(0));
    let method = good(V5).with(auth_method("SCRAM-SHA-256")).bytes();
    case("authentication method", V5, method, Some(0x8C));
    for level in [0, 3, 6, 0x84, 255] {
        let mut bytes = good(V311).bytes();
        let at = bytes.windows(4).position(|four| four == b"MQTT").unwrap() + 4;
        bytes[at] = level;
        case("unknown level", V311, bytes, Some(1));
    }
    let old = packet(0x10, &[&text("MQIsdp")[..], &[3, 2, 0, 60], &text("x")].concat());
    case("MQTT 3.1", V311, old, Some(1));
    all.extend(broken_greetings(device));
    all
}

/// CONNECTs that are none. 3.1.1 has no code for them.
fn broken_greetings(device: &Device) -> Vec<Greeting> {
    let mut all = Vec::new();
    for (version, malformed, protocol) in [(V5, Some(0x81), Some(0x82)), (V311, None, None)] {
        let good = device_connect(device, version);
        let mut case = |what, bytes, code| all.push(Greeting { what, bytes, version, code });
        let mut reserved = good.bytes();
        reserved[header(0x10, good.body().len()).len() + 7] |= 1;
        case("reserved connect flag", reserved, malformed);
        let mut flags = good.bytes();
        flags[0] = 0x11;
        case("reserved header flags", flags, None);
        let will = |qos| Will { topic: b"t".to_vec(), qos, ..Will::default() };
        let qos3 = Connect { will: Some(will(3)), ..good.clone() };
        case("Will with QoS 3", qos3.bytes(), malformed);
        let nul = Connect { client_id: b"a\0b".to_vec(), ..good.clone() };
        case("NUL in the client id", nul.bytes(), malformed);
        let latin = Connect { client_id: vec![0xE4], ..good.clone() };
        case("client id not UTF-8", latin.bytes(), malformed);
        let trailing = packet(0x10, &[&good.body()[..], b"!"].concat());
        case("bytes behind the last field", trailing, malformed);
        let mut body = good.body();
        body.truncate(body.len() - 5);
        case("truncated", packet(0x10, &body), malformed);
        case("too large", header(0x10, 9_000), Some(0x95).filter(|_| false));
        let twice = good.clone().with(receive_max(9)).with(receive_max(9));
        if version == V5 {
            case("a property twice", twice.bytes(), protocol);
            case("Receive Maximum 0", good.clone().with(receive_max(0)).bytes(), protocol);
            case("Maximum Packet Size 0", good.clone().with(packet_max(0)).bytes(), protocol);
            let alias = good.clone().with(topic_alias(1));
            case("a property of another packet", alias.bytes(), malformed);
        } else {
            let nameless = Connect { user: None, ..good.clone() };
            case("a password without a user", nameless.bytes(), None);
        }
    }
    let not_first: [(&str, Vec<u8>); 6] = [
        ("PINGREQ first", vec![0xC0, 0]),
        ("PUBLISH first", Publish::new(V5, "up", "x").bytes()),
        ("SUBSCRIBE first", subscribe(V5, 1, &[(b"push", 1)])),
        ("DISCONNECT first", vec![0xE0, 0]),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3]),
    ];
    let first = not_first.into_iter().map(|(what, bytes)| Greeting {
        what,
        bytes,
        version: V5,
        code: None,
    });
    all.extend(first);
    all
}

#[tokio::test]
async fn connack_says_why_and_the_socket_ends() {
    let node = Node::start().await;
    let device = node.create_device().await;
    for Greeting { what, bytes, version, code } in greetings(&device) {
        let mut wire = Wire::open(node.listen().mqtt, version).await;
        wire.send(&bytes).await;
        match (wire.next().await, code) {
            (Seen::ConnAck(connack), Some(code)) => {
                assert_eq!(connack.code, code, "{what} {version:?}");
                assert!(!connack.is_present, "{what} {version:?}");
                if code != 0 {
                    assert_eq!(wire.next().await, Seen::Closed, "{what} {version:?}");
                }
            }
            (Seen::Closed, None) => {}
            (seen, _) => panic!("{what} {version:?}: {seen:02x?}"),
        }
    }
}

#[tokio::test]
async fn connack_tells_the_bounds_that_are_in_force() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let numbers = async |connect: &Connect| {
        let (wire, connack) = Wire::greet(node.listen().mqtt, connect).await;
        wire.disconnect().await;
        assert_eq!(connack.code, 0);
        connack.properties.numbers
    };
    let told = numbers(&device_connect(&device, V5)).await;
    for (property, value) in [(0x24, 1), (0x25, 0), (0x28, 0), (0x29, 0), (0x2A, 0)] {
        assert_eq!(told.get(&property), Some(&value), "property {property:#04x}: {told:?}");
    }
    assert!(told.contains_key(&0x21) && told.contains_key(&0x27), "{told:?}");
    assert!(!told.contains_key(&0x13), "a keep-alive of 60 s is granted as it is");
    for (asked, granted) in [(0, 1_200), (1, 10), (60_000, 1_200)] {
        let connect = Connect { keep_alive_s: asked, ..device_connect(&device, V5) };
        assert_eq!(numbers(&connect).await.get(&0x13), Some(&granted), "asked for {asked} s");
    }
    let forever = device_connect(&device, V5).with(session_expiry(u32::MAX));
    assert_eq!(numbers(&forever).await.get(&0x11), Some(&7_200));
    let brief = device_connect(&device, V5).with(session_expiry(60));
    assert_eq!(numbers(&brief).await.get(&0x11), None);
    assert!(numbers(&device_connect(&device, V311)).await.is_empty());
}

#[tokio::test]
async fn suback_judges_each_filter_on_its_own() {
    let node = Node::start().await;
    node.create_app("other").await;
    let long = format!("topic/{}", "x".repeat(200));
    let cases: &[(&[&str], &[u8])] = &[
        (&["push"], &[1]),
        (&["topic/news"], &[1]),
        (&["push/demo", "topic/demo/news"], &[1, 1]),
        (&["#"], &[0xA2]),
        (&["+"], &[0xA2]),
        (&["topic/+", "push/#", "topic/news"], &[0xA2, 0xA2, 1]),
        (&["$share/g/push"], &[0x9E]),
        (&["$share/g/topic/#", "push"], &[0x9E, 1]),
        (&["$SYS/broker", "$queue/push", "nothing", "push/"], &[0x8F; 4]),
        (&["topic/", "topic//x", "topic/demo/", "/push", "push/demo/x"], &[0x8F; 5]),
        (&["Push", "push ", " push", "topic/a/b/c", long.as_str()], &[0x8F; 5]),
        (&["up"], &[0x8F]),
        (&["push/other", "topic/other/news", "push/nobody"], &[0x87; 3]),
        (&["push", "push/other", "#", "topic/ok", "x"], &[1, 0x87, 0xA2, 1, 0x8F]),
        (&["down"], &[1]),
    ];
    for version in VERSIONS {
        for (filters, codes) in cases {
            let device = node.create_device().await;
            let mut wire = Wire::clean(&node, &device, version).await;
            let codes: Vec<u8> = codes.iter().map(|code| code_of(version, *code)).collect();
            assert_eq!(wire.subscribe(filters, 1).await, codes, "{version:?} {filters:?}");
            assert_eq!(wire.ping().await, [], "{version:?} {filters:?}");
        }
        let device = node.create_device().await;
        let mut wire = Wire::clean(&node, &device, version).await;
        assert_eq!(wire.subscribe(&["push"], 0).await, [0], "QoS 0 stays 0");
        assert_eq!(wire.subscribe(&["topic/a"], 2).await, [1], "QoS 2 becomes 1");
        assert_eq!(wire.subscribe(&["push"], 2).await, [1], "a subscription is replaced");
    }
}

/// SUBACK's code in this version.
fn code_of(version: Version, code: u8) -> u8 {
    if version == V311 && code >= 0x80 { 0x80 } else { code }
}

#[tokio::test]
async fn plain_and_frames_do_not_mix() {
    let node = Node::start().await;
    for version in VERSIONS {
        let device = node.create_device().await;
        let mut wire = Wire::clean(&node, &device, version).await;
        let refused = code_of(version, 0x87);
        assert_eq!(wire.subscribe(&["push", "down"], 1).await, [1, refused]);
        assert_eq!(wire.subscribe(&["down"], 1).await, [refused]);
        let up = Publish::new(version, "up", frames::encode(&frames::resume(0))).qos(1, 9);
        wire.send(up.bytes()).await;
        wire.must_end(0x82).await;

        let mut wire = Wire::clean(&node, &device, version).await;
        assert_eq!(wire.subscribe(&["down", "push", "topic/x"], 1).await, [1, refused, refused]);
        let mut framed = Framed::over(wire);
        framed.say(&frames::resume(0)).await;
        let (id, down) = framed.down().await;
        assert!(down.ask_positions.is_some(), "{down:?}");
        framed.wire.ack(id).await;
        assert_eq!(framed.wire.subscribe(&["push"], 1).await, [refused]);
    }
}

#[tokio::test]
async fn unsuback_says_what_was_there() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let mut wire = Wire::clean(&node, &device, V5).await;
    assert_eq!(wire.unsubscribe(&["push"]).await, [0x11]);
    assert_eq!(wire.subscribe(&["push", "topic/a"], 1).await, [1, 1]);
    assert_eq!(wire.unsubscribe(&["topic/a", "topic/b", "#", "push"]).await, [0, 0x11, 0x11, 0]);
    assert_eq!(wire.unsubscribe(&["push"]).await, [0x11]);
    let aliases = node.registration(&device.regid).await["topics"].clone();
    assert_eq!(aliases, json!([]), "UNSUBSCRIBE ends the following");
    let mut wire = Wire::clean(&node, &device, V311).await;
    assert!(wire.unsubscribe(&["push"]).await.is_empty(), "3.1.1 has no codes");
    wire.disconnect().await;
}

/// What ends a connection that was let in, and what MQTT 5 says then.
fn endings(version: Version) -> Vec<(&'static str, Vec<u8>, u8)> {
    let publish = |topic: &str| Publish::new(version, topic, "x");
    let up = |qos, id| publish("up").qos(qos, id);
    let flagged = |first: u8| [&[first], &publish("up").bytes()[1..]].concat();
    let mut all = vec![
        ("second CONNECT", Connect::new(version, "x", "y").bytes(), 0x82),
        ("CONNACK from a client", vec![0x20, 2, 0, 0], 0x82),
        ("SUBACK from a client", packet(0x90, &[0, 1, 0, 0]), 0x82),
        ("PINGRESP from a client", vec![0xD0, 0], 0x82),
        ("packet type 0", vec![0x00, 0], 0x81),
        ("PINGREQ with a body", vec![0xC0, 1, 0], 0x81),
        ("PINGREQ with flags", vec![0xC1, 0], 0x81),
        ("SUBSCRIBE without flags", packet(0x80, &[0, 1, 0, 4]), 0x81),
        ("SUBSCRIBE with id 0", subscribe(version, 0, &[(b"push", 1)]), 0x81),
        ("SUBSCRIBE without a filter", subscribe(version, 1, &[]), 0x82),
        ("SUBSCRIBE with an empty filter", subscribe(version, 1, &[(b"", 1)]), 0x82),
        ("SUBSCRIBE with QoS 3", subscribe(version, 1, &[(b"push", 3)]), 0x81),
        ("SUBSCRIBE with NUL", subscribe(version, 1, &[(b"pu\0sh", 1)]), 0x81),
        ("SUBSCRIBE not UTF-8", subscribe(version, 1, &[(b"pu\xFFsh", 1)]), 0x81),
        ("UNSUBSCRIBE without a filter", unsubscribe(version, 1, &[]), 0x82),
        ("PUBLISH with QoS 3", flagged(0x36), 0x81),
        ("PUBLISH with DUP and QoS 0", flagged(0x38), 0x81),
        ("PUBLISH with id 0", up(1, 0).bytes(), 0x81),
        ("PUBLISH with `#`", publish("a/#").bytes(), 0x90),
        ("PUBLISH with `+`", publish("+").bytes(), 0x90),
        ("PUBLISH with NUL", publish("u\0p").bytes(), 0x81),
        ("PUBACK with id 0", ack(PUBACK, 0), 0x81),
        ("PUBREC that nothing asked for", ack(PUBREC, 7), 0x82),
        ("PUBCOMP that nothing asked for", ack(PUBCOMP, 7), 0x82),
        ("a length of five bytes", vec![0x30, 0x80, 0x80, 0x80, 0x80, 1], 0x81),
        ("a length not in its shortest form", vec![0xC0, 0x80, 0], 0x81),
        ("longer than Maximum Packet Size", header(0x30, 200_000), 0x95),
    ];
    match version {
        V5 => all.extend(endings_of_5()),
        V311 => all.extend([
            ("PUBLISH with an empty topic", publish("").bytes(), 0),
            ("PUBLISH elsewhere", publish("elsewhere").bytes(), 0),
            ("PUBLISH with QoS 1 elsewhere", publish("down").qos(1, 1).bytes(), 0),
            ("packet type 15", vec![0xF0, 0], 0),
            ("reserved bits of a subscription", subscribe(V311, 1, &[(b"push", 5)]), 0),
        ]),
    }
    all
}

fn endings_of_5() -> Vec<(&'static str, Vec<u8>, u8)> {
    let up = || Publish::new(V5, "up", "x");
    let push: &[(&[u8], u8)] = &[(b"push", 1)];
    vec![
        ("PUBLISH with QoS 2", up().qos(2, 1).bytes(), 0x9B),
        ("PUBLISH with a topic alias", up().with(topic_alias(1)).bytes(), 0x94),
        ("PUBLISH with topic alias 0", up().with(topic_alias(0)).bytes(), 0x94),
        ("an unknown topic alias", Publish::new(V5, "", "x").with(topic_alias(9)).bytes(), 0x94),
        ("PUBLISH with an empty topic", Publish::new(V5, "", "x").bytes(), 0x82),
        ("PUBLISH with a subscription id", up().with([0x0B, 1]).bytes(), 0x82),
        ("PUBLISH with an unknown property", up().with([0x7E, 1]).bytes(), 0x81),
        ("AUTH", vec![0xF0, 0], 0x82),
        ("PUBREL that nothing asked for", ack(PUBREL, 7), 0x82),
        ("subscription id 0", subscribe_with(V5, 1, &[0x0B, 0], push), 0x82),
        ("retain handling 3", subscribe(V5, 1, &[(b"push", 0x31)]), 0x82),
        ("reserved subscription bits", subscribe(V5, 1, &[(b"push", 0x41)]), 0x81),
        ("No Local on $share", subscribe(V5, 1, &[(b"$share/g/x", 0x05)]), 0x82),
        ("DISCONNECT with expiry after 0", disconnect_with(0, &session_expiry(9)), 0x82),
        ("DISCONNECT with a server's property", disconnect_with(0, &[0x1C, 0, 1, b'x']), 0x82),
        ("PUBACK with an unknown code", packet(0x40, &[0, 1, 0x42]), 0x81),
        ("two Receive Maximums", disconnect_with(0, &number2(0x21, 1)), 0x81),
    ]
}

#[tokio::test]
async fn what_must_not_be_sent_ends_the_connection_and_is_named() {
    let node = Node::start().await;
    let mut witness = Witness::new(&node).await;
    let device = node.create_device().await;
    for version in VERSIONS {
        for (what, bytes, code) in endings(version) {
            let mut wire = Wire::clean(&node, &device, version).await;
            wire.send(&bytes).await;
            let all = wire.until_closed().await;
            let last = Seen::Disconnect { code };
            let wanted = if version == V5 { vec![last] } else { Vec::new() };
            assert_eq!(all, wanted, "{version:?} {what}");
        }
    }
    witness.is_served(&node).await;
}

#[tokio::test]
async fn what_is_odd_but_allowed_does_not_end_the_connection() {
    let node = Node::start().await;
    let device = node.create_device().await;
    for version in VERSIONS {
        let will = Will {
            topic: b"topic/news".to_vec(),
            payload: b"gone".to_vec(),
            qos: 2,
            is_retained: true,
            properties: Vec::new(),
        };
        let connect = Connect { will: Some(will), ..device_connect(&device, version) };
        let mut wire = Wire::connect(&node, &connect).await;
        assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
        wire.ack(9).await;
        assert_eq!(wire.ping().await, [], "a PUBACK for nothing is ignored");
        let acked = ack(PUBACK, 1);
        wire.send([&acked[..], &acked, &acked].concat()).await;
        assert_eq!(wire.ping().await, []);
        if version == V5 {
            for (topic, qos) in [("elsewhere", 1), ("down", 1), ("push", 1), ("$SYS/x", 1)] {
                wire.send(Publish::new(V5, topic, "x").qos(qos, 5).bytes()).await;
                assert_eq!(wire.next().await, Seen::PubAck { id: 5, code: 0x87 }, "{topic}");
            }
            wire.send(Publish::new(V5, "elsewhere", "x").bytes()).await;
            let told = Publish::new(V5, "elsewhere", "x").with(user_property("a", "b"));
            wire.send(told.bytes()).await;
            assert_eq!(wire.ping().await, [], "QoS 0 elsewhere is dropped");
            let ids = subscribe_with(V5, 3, &[0x0B, 5], &[(b"push", 1), (b"topic/x", 1)]);
            wire.send(ids).await;
            assert_eq!(wire.next().await, Seen::SubAck { id: 3, codes: vec![0xA1, 0xA1] });
            let options: &[(&[u8], u8)] = &[(b"topic/y", 0x2D)];
            wire.send(subscribe(V5, 4, options)).await;
            assert_eq!(wire.next().await, Seen::SubAck { id: 4, codes: vec![1] });
        }
        wire.disconnect().await;
    }
}

#[tokio::test]
async fn qos_2_of_3_1_1_is_shaken_hands_on_and_bounded() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let mut wire = Wire::clean(&node, &device, V311).await;
    let topics = |name: &str| frames::subscribe(&device.regid, &[name]);
    let up = |name: &str, id| Publish::new(V311, "up", frames::encode(&topics(name))).qos(2, id);
    wire.send(up("one", 5).bytes()).await;
    let mut repeated = up("two", 5);
    repeated.is_dup = true;
    let mut seen = vec![wire.next().await, wire.next().await];
    for _ in 0..3 {
        wire.send(repeated.bytes()).await;
        assert_eq!(wire.next().await, Seen::PubRec { id: 5, code: 0 });
    }
    seen.retain(|seen| !matches!(seen, Seen::Publish(_)));
    assert_eq!(seen, [Seen::PubRec { id: 5, code: 0 }]);
    assert_eq!(node.registration(&device.regid).await["topics"], json!(["one"]));
    for _ in 0..3 {
        wire.send(ack(PUBREL, 5)).await;
        assert_eq!(wire.next().await, Seen::PubComp { id: 5, code: 0 });
    }
    wire.send(ack(PUBREL, 77)).await;
    assert_eq!(wire.next().await, Seen::PubComp { id: 77, code: 0 });
    wire.send(up("three", 5).bytes()).await;
    assert_eq!(wire.settle().await.len(), 2, "a released id is free again");
    assert_eq!(node.registration(&device.regid).await["topics"], json!(["one", "three"]));

    let mut wire = Wire::clean(&node, &device, V311).await;
    for id in 1..=100 {
        wire.send(up("one", id).bytes()).await;
    }
    let all = wire.until_closed().await;
    let received = all.iter().filter(|seen| matches!(seen, Seen::PubRec { .. })).count();
    assert!((1..=16).contains(&received), "{received} ids are unreleased");
}

#[tokio::test]
async fn the_same_script_runs_over_tls_and_websocket() {
    let node = Node::start().await;
    for version in VERSIONS {
        script(&node, Wire::over(transport::tls(&node).await, version)).await;
        script(&node, Wire::over(transport::websocket(&node, Cut::Whole).await, version)).await;
        for seed in 0..8 {
            let stream = transport::websocket(&node, Cut::Anywhere(seed)).await;
            script(&node, Wire::over(stream, version)).await;
        }
    }
    for (path, protocol) in [("/mqtt", None), ("/mqtt", Some("stomp"))] {
        let refused = transport::upgrade(node.listen().ws, path, protocol).await;
        let answer = refused.err().unwrap_or_else(|| "101".to_owned());
        assert!(answer.starts_with("HTTP/1.1 4"), "{path} {protocol:?}: {answer}");
    }
}

async fn script(node: &Node, mut wire: Wire) {
    let device = node.create_device().await;
    let version = wire.version();
    wire.send(device_connect(&device, version).bytes()).await;
    assert_eq!(wire.connack().await.code, 0);
    assert_eq!(wire.subscribe(&["push", "topic/news", "#"], 1).await[..2], [1, 1]);
    let large = "x".repeat(3_000);
    node.send(json!({"regids": [device.regid]}), json!(large)).await;
    let pushes = wire.take(1).await;
    assert_eq!(pushes[0].text(), json!(large).to_string());
    node.send(json!({"topic": "news"}), json!("to all")).await;
    let pushes = wire.take(1).await;
    assert_eq!((pushes[0].topic.as_str(), pushes[0].text()), ("topic/news", "\"to all\"".into()));
    assert_eq!(wire.settle().await, []);
    wire.send([0xC1, 0]).await;
    wire.must_end(0x81).await;
}
