//! What brought other brokers down, part one: bytes and states.
//!
//! A test for each class of bugs that MQTT brokers had, with the known cases as its cases.
//! After each the node is well and somebody else is served. The other parts are about load and access.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use support::Device;
use tokio::io::AsyncWriteExt;
use wirelab::{
    bytes::{
        Connect, PUBACK, PUBCOMP, PUBREC, PUBREL, Publish, VERSIONS, Version, Will, ack, header,
        packet, receive_max, subscribe, text, topic_alias, unsubscribe, user_property, varint,
    },
    frames,
    lab::{Patient, UNPACED, asked_kib, devices, memory_kib, open_files, send_numbers},
    seen::{ConnAck, Push, Seen},
    transport,
    wire::{Wire, device_connect},
};

use Version::{V5, V311};

/// mosquitto CVE-2017-7651, CVE-2023-0809; RabbitMQ, EMQX, VerneMQ CVE-2021-22116, -33175, -33176.
#[tokio::test]
async fn a_length_field_costs_no_memory_before_its_bytes_come() {
    let mut patient = Patient::new().await;
    let devices = devices(&patient.node, 400).await;
    // What the first connections make once.
    announce(&patient, &devices[..100], 100).await;
    patient.until_gone().await;
    let before = (memory_kib(&patient.node), asked_kib(&patient.node));
    let open = announce(&patient, &devices, 500).await;
    let grown = memory_kib(&patient.node).saturating_sub(before.0);
    let asked = asked_kib(&patient.node).saturating_sub(before.1);
    // 400 × 160 KB and 500 × 8 KB were announced: 68 MB.
    let count = open.len();
    println!("count: {grown} KiB, {asked} KiB asked for, for {count} sockets that announced 68 MB");
    assert!(grown < 10_000, "{grown} KiB for {count} sockets that only announced");
    assert!(asked < 30_000, "{asked} KiB asked for, for {count} sockets that only announced");
    drop(open);
    patient.is_well().await;
}

/// Sockets that announce packets and do not send them.
async fn announce(patient: &Patient, devices: &[Device], strangers: usize) -> Vec<Wire> {
    for first in [0x10, 0x30, 0x82, 0xF0] {
        let mut wire = patient.open(V5).await;
        wire.send(header(first, 268_435_455)).await;
        wire.send([0; 4_096]).await;
        wire.until_closed().await;
    }
    let mut open = Vec::new();
    for _ in 0..strangers {
        // As long as a CONNECT may be, in it a longer property block, and none of it follows.
        let mut wire = patient.open(V5).await;
        let begin = [&header(0x10, 8_000)[..], &text("MQTT"), &[5, 0xC2, 0, 60]].concat();
        wire.send([begin, varint(268_435_455)].concat()).await;
        open.push(wire);
    }
    for device in devices {
        let mut wire = Wire::clean(&patient.node, device, V5).await;
        wire.send([&header(0x32, 160_000)[..], &text("up"), &[0, 1]].concat()).await;
        open.push(wire);
    }
    open
}

/// NanoMQ CVE-2026-21888, CVE-2026-25627; comqtt: a SUBSCRIBE of seven bytes.
#[tokio::test]
async fn no_length_makes_the_node_read_beyond_a_packet() {
    let mut patient = Patient::new().await;
    for version in VERSIONS {
        for length in 0..full_connect(&patient, version).len() {
            let mut wire = patient.open(version).await;
            wire.send(packet(0x10, &full_connect(&patient, version)[..length])).await;
            match wire.until_closed().await.as_slice() {
                [] => {}
                [Seen::ConnAck(ConnAck { code, .. })] => assert_ne!(*code, 0, "{length} bytes"),
                other => panic!("CONNECT of {length} bytes: {other:?}"),
            }
        }
        let mut publish = Publish::new(version, "up", "").qos(1, 1);
        if version == V5 {
            publish.properties = user_property("name", "value");
        }
        let bodies = [
            (0x32, publish.body()),
            (0x82, subscribe(version, 1, &[(b"topic/x", 1), (b"y", 1)])[2..].to_vec()),
            (0xA2, unsubscribe(version, 1, &[b"topic/x", b"y"])[2..].to_vec()),
            (0x40, vec![0, 1]),
        ];
        for (first, body) in bodies {
            for length in 0..body.len() {
                // Some are whole packets; then what follows is what ends it.
                let bytes = [&packet(first, &body[..length])[..], &[0xC1, 0]].concat();
                patient.ends(version, &bytes, &[0x81, 0x82, 0x90]).await;
            }
        }
        patient.ends(version, &[0x82, 5, 0, 1, 0, 0, 0], &[0x81, 0x82]).await;
        for bytes in [vec![0xFF; 5], [&[0x30][..], &[0x80; 5]].concat()] {
            patient.ends(version, &bytes, &[0x81, 0x82]).await;
            let mut wire = patient.open(version).await;
            wire.send(&bytes).await;
            assert_eq!(wire.until_closed().await, []);
        }
    }
    for announced in [4_096, 100_000] {
        let upgraded = transport::upgrade(patient.node.listen().ws, "/mqtt", Some("mqtt")).await;
        let begin = [&header(0x10, announced)[..], &[0, 4, b'M']].concat();
        let frame = transport::frame(transport::BINARY, true, &begin);
        upgraded.expect("an upgrade").write_all(&frame).await.expect("it is there");
    }
    patient.is_well().await;
}

/// A CONNECT with everything in it.
fn full_connect(patient: &Patient, version: Version) -> Vec<u8> {
    let will = Will { topic: b"t".to_vec(), payload: b"p".to_vec(), ..Will::default() };
    let connect = Connect { will: Some(will), ..device_connect(&patient.device, version) };
    match version {
        V311 => connect.body(),
        V5 => connect.with(user_property("a", "b")).with(receive_max(9)).body(),
    }
}

/// sol 12 and 15; mosquitto CVE-2021-28166; EMQX 6978.
#[tokio::test]
async fn a_packet_for_another_state_or_direction_ends_that_connection_only() {
    let mut patient = Patient::new().await;
    let bodies: [&[u8]; 4] = [&[], &[0, 1], &[0, 1, 0], &[0, 2, b'u', b'p', 0, 1, b'x']];
    for first in 0..=255 {
        let is_connect = first == 0x10;
        for body in bodies.iter().filter(|_| !is_connect) {
            let mut wire = patient.open(V5).await;
            wire.send([packet(first, body), vec![0xC0, 0]].concat()).await;
            assert_eq!(wire.until_closed().await, [], "{first:#04x} came first");
        }
    }
    for version in VERSIONS {
        for first in [0x10, 0x20, 0x50, 0x70, 0x90, 0xB0, 0xD0, 0xF0, 0x00] {
            let bytes = [packet(first, &[0, 1]), vec![0xC1, 0]].concat();
            patient.ends(version, &bytes, &[0x81, 0x82]).await;
        }
    }
    for alias in [1, 2, 65_535] {
        let unknown = Publish::new(V5, "", "x").with(topic_alias(alias)).qos(1, 1);
        patient.ends(V5, &unknown.bytes(), &[0x94]).await;
    }
    patient.is_well().await;
}

/// mosquitto CVE-2021-34432 and CVE-2018-12543; stack overflow by levels; FlashMQ's stray `#`.
#[tokio::test]
async fn no_topic_is_too_strange() {
    let mut patient = Patient::new().await;
    let deep = "/".repeat(65_535);
    let names = "a/".repeat(30_000);
    let topics =
        ["$", "$x", "$SYS/#x", "$CONTROL/dynamic-security/v1", "/", "//", &deep, &names, " "];
    for version in VERSIONS {
        for topic in topics {
            let mut wire = patient.clean(version).await;
            wire.send(Publish::new(version, topic, "x").qos(1, 1).bytes()).await;
            match (version, topic.contains('#')) {
                (V5, false) => assert_eq!(wire.next().await, Seen::PubAck { id: 1, code: 0x87 }),
                _ => wire.must_end(0x90).await,
            }
            let mut wire = patient.clean(version).await;
            assert!(wire.subscribe(&[topic], 1).await[0] >= 0x80, "{:.20}", topic);
            assert_eq!(wire.ping().await, []);
            assert_eq!(wire.unsubscribe(&[topic]).await.len(), usize::from(version == V5));
        }
        for topic in ["a/#", "#", "+", "a/+/b", "a#", "up#"] {
            patient.ends(version, &Publish::new(version, topic, "x").bytes(), &[0x90]).await;
        }
        patient.ends(version, &Publish::new(version, "", "x").bytes(), &[0x82]).await;
        for topic in ["/".repeat(6_000), String::new(), "#".to_owned()] {
            let will = Will { topic: topic.into_bytes(), ..Will::default() };
            let connect = Connect { will: Some(will), ..device_connect(&patient.device, version) };
            let mut wire = patient.open(version).await;
            wire.send([connect.bytes(), vec![0xC1, 0]].concat()).await;
            wire.until_closed().await;
        }
    }
    patient.is_well().await;
}

/// mosquitto CVE-2021-41039 (time), CVE-2021-34431 and CVE-2023-3592 (leaks).
#[tokio::test]
async fn properties_cost_neither_time_nor_memory() {
    let mut patient = Patient::new().await;
    let many = user_property("a", "b").repeat(33);
    let long = user_property(&"x".repeat(2_100), &"y".repeat(2_100));
    let connect = || device_connect(&patient.device, V5);
    let will = |properties: &[u8]| Will {
        topic: b"t".to_vec(),
        properties: properties.to_vec(),
        ..Will::default()
    };
    let flood = user_property("", "").repeat(20_000);
    let mut refused: Vec<(Vec<u8>, u8)> = Vec::new();
    for properties in [&many, &long] {
        refused.push((connect().with(properties).bytes(), 0x97));
        let bad_will = Connect { will: Some(will(properties)), ..connect() };
        refused.push((bad_will.bytes(), 0x97));
        for bytes in [
            Publish::new(V5, "up", "x").with(properties).qos(1, 1).bytes(),
            wirelab::bytes::subscribe_with(V5, 1, properties, &[(b"push", 1)]),
            wirelab::bytes::disconnect_with(0, properties),
            packet(PUBACK, &[&[0, 1, 0][..], &wirelab::bytes::block(properties)].concat()),
        ] {
            patient.ends(V5, &bytes, &[0x97]).await;
        }
    }
    patient.ends(V5, &Publish::new(V5, "up", "x").with(&flood).bytes(), &[0x97]).await;
    refused.push((connect().with([0x11, 0]).bytes(), 0x81));
    refused.push((Connect { will: Some(will(&[0x18, 0, 0])), ..connect() }.bytes(), 0x81));
    let twice = [wirelab::bytes::number4(0x18, 1), wirelab::bytes::number4(0x18, 2)].concat();
    refused.push((Connect { will: Some(will(&twice)), ..connect() }.bytes(), 0x82));
    let mut before = 0;
    for round in 0..300 {
        for (bytes, code) in &refused {
            let mut wire = patient.open(V5).await;
            wire.send(bytes).await;
            assert_eq!(wire.connack().await.code, *code);
            assert_eq!(wire.next().await, Seen::Closed);
        }
        if round == 30 {
            before = memory_kib(&patient.node);
        }
    }
    let grown = memory_kib(&patient.node).saturating_sub(before);
    assert!(grown < 3_000, "{grown} KiB for 1,900 bad CONNECTs");
    patient.is_well().await;
}

/// mosquitto CVE-2023-28366, twice; rmqtt: ids that collide after a resume; FlashMQ: a quota raised by stray
/// acknowledgements.
#[tokio::test]
async fn qos_2_and_packet_ids_keep_no_more_than_they_may() {
    let mut patient = Patient::with(UNPACED).await;
    let mut wire = patient.clean(V311).await;
    let garbage = Publish::new(V311, "up", [0xFF; 100]).qos(2, 7);
    wire.send(garbage.bytes()).await;
    let first = [wire.next().await, wire.next().await];
    assert!(first.contains(&Seen::PubRec { id: 7, code: 0 }), "{first:?}");
    let before = memory_kib(&patient.node);
    let again = Publish { is_dup: true, ..garbage }.bytes().repeat(100);
    for _ in 0..100 {
        wire.send(&again).await;
        for _ in 0..100 {
            assert_eq!(wire.next().await, Seen::PubRec { id: 7, code: 0 });
        }
    }
    let grown = memory_kib(&patient.node).saturating_sub(before);
    assert!(grown < 2_000, "{grown} KiB for one id 10,000 times");
    assert_eq!(wire.settle().await, [], "it was taken once");

    let strays = |id| [ack(PUBACK, id), ack(PUBREL, id)].concat();
    let mut wire = patient.clean(V311).await;
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    send_numbers(&patient.node, &patient.device.regid, 0..40).await;
    let open = wire.settled_pushes().await;
    assert_eq!(open.len(), 16);
    for id in 1_000..1_100 {
        wire.send(strays(id)).await;
    }
    let is_stray = |seen: &Seen| matches!(seen, Seen::PubComp { .. });
    assert!(wire.settle().await.iter().all(is_stray), "strays make no room");
    for first in [PUBREC, PUBCOMP] {
        for version in VERSIONS {
            patient.ends(version, &ack(first, 9), &[0x82]).await;
        }
    }
    collisions(&patient).await;
    patient.is_well().await;
}

/// A session that comes back with all its ids in use, in the middle of the id space.
async fn collisions(patient: &Patient) {
    let device = patient.node.create_device().await;
    let connect = device_connect(&device, V5).persistent(600);
    let mut wire = Wire::connect(&patient.node, &connect).await;
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    send_numbers(&patient.node, &device.regid, 0..30).await;
    let mut open: Vec<Push> = wire.settled_pushes().await;
    for _ in 0..20 {
        drop(wire);
        patient.node.wait_until_online(&device.regid, false).await;
        wire = Wire::connect(&patient.node, &connect).await;
        let again = wire.settled_pushes().await;
        let same = |a: &[Push], b: &[Push]| {
            a.iter().map(|p| (p.id, p.text())).eq(b.iter().map(|p| (p.id, p.text())))
        };
        assert!(again.iter().all(|push| push.is_dup) && same(&again, &open));
        wire.ack(open.remove(0).id).await;
        for push in wire.settled_pushes().await {
            assert!(!open.iter().any(|other| other.id == push.id), "{} is in use", push.id);
            open.push(push);
        }
    }
}

/// Whatever ended, its socket is closed and its memory free.
#[tokio::test]
async fn aborted_connections_leave_nothing_behind() {
    let mut patient = Patient::new().await;
    let devices = devices(&patient.node, 50).await;
    let mut before = (0, 0);
    for round in 0..40 {
        let mut open = Vec::new();
        for (at, device) in devices.iter().enumerate() {
            let version = VERSIONS[at % 2];
            let mut wire = patient.open(version).await;
            let connect = device_connect(device, version).bytes();
            let up = Publish::new(version, "up", frames::encode(&frames::resume(0))).qos(1, 1);
            let all = [connect, subscribe(version, 1, &[(b"push", 1)]), up.bytes()].concat();
            wire.send(&all[..all.len() - at % 20]).await;
            open.push(wire);
        }
        drop(open);
        patient.until_gone().await;
        if round == 10 {
            before = (memory_kib(&patient.node), open_files(&patient.node));
        }
    }
    let grown = memory_kib(&patient.node).saturating_sub(before.0);
    assert!(grown < 3_000, "{grown} KiB after 1,500 aborted connections");
    patient.until_files(before.1 + 3).await;
    patient.is_well().await;
}
