//! What brought other brokers down, part two: who is slow, who floods, who does not read.
//!
//! A test for each class of bugs that MQTT brokers had, with the known cases as its cases.
//! After each the node is well and somebody else is served.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use support::Device;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};
use wirelab::{
    bytes::{
        Connect, PINGREQ, Publish, VERSIONS, Version, alias_max, packet, receive_max, subscribe,
    },
    frames,
    lab::{Patient, devices, memory_kib, send_numbers},
    seen::{Push, Seen},
    transport::{self, Cut},
    wire::{DEADLINE, Wire, device_connect},
};

use Version::V5;

/// A socket that takes little before its test reads.
async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    let stream = socket.connect(address).await.expect("the gateway listens");
    stream.set_nodelay(true).expect("a TCP socket");
    stream
}

/// A device on a narrow socket.
async fn narrow_device(patient: &Patient, connect: &Connect) -> Wire {
    let stream = narrow(patient.node.listen().mqtt).await;
    let mut wire = Wire::over(stream, connect.version);
    wire.send(connect.bytes()).await;
    assert_eq!(wire.connack().await.code, 0);
    wire
}

/// Says one byte and then another, as slowly as a slow attack does, until the gateway ends it.
async fn drip(mut stream: TcpStream, bytes: Vec<u8>) -> bool {
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let dripping = async {
        for byte in bytes.iter().cycle() {
            pace.tick().await;
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            let mut answer = [0; 512];
            let read = timeout(Duration::from_millis(1), stream.read(&mut answer)).await;
            if let Ok(Ok(0) | Err(_)) = read {
                return;
            }
        }
    };
    timeout(DEADLINE, dripping).await.is_ok()
}

/// SlowITe, CVE-2020-13849: the client chooses how long it may be silent.
#[tokio::test]
async fn who_is_slow_to_connect_is_closed_by_the_deadline() {
    let config = "[edge]\nhandshake_timeout_ms = 700\nkeep_alive_max_s = 900\n";
    let mut patient = Patient::with(config).await;
    let listen = *patient.node.listen();
    let connect = device_connect(&patient.device, V5).bytes();
    let mut slow = JoinSet::new();
    for _ in 0..20 {
        for address in [listen.mqtt, listen.mqtts, listen.ws] {
            let mut stream = TcpStream::connect(address).await.expect("the gateway listens");
            slow.spawn(async move {
                let closed = timeout(DEADLINE, stream.read(&mut [0])).await;
                matches!(closed, Ok(Ok(0) | Err(_)))
            });
        }
        let long = [&packet(0x10, &[0; 8_000])[..9], &[0; 4_000]].concat();
        let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &[0; 500]].concat();
        let http = format!("GET /mqtt HTTP/1.1\r\nX: {}", "y".repeat(4_000)).into_bytes();
        for (address, bytes) in [(listen.mqtt, long), (listen.mqtts, hello), (listen.ws, http)] {
            let stream = TcpStream::connect(address).await.expect("the gateway listens");
            slow.spawn(drip(stream, bytes));
        }
        let upgraded = transport::upgrade(listen.ws, "/mqtt", Some("mqtt")).await;
        let pings = transport::frame(9, true, b"?");
        slow.spawn(drip(upgraded.expect("an upgrade"), pings));
        let secured = transport::tls(&patient.node).await;
        let mut wire = Wire::over(secured, V5);
        wire.send(&connect[..connect.len() - 1]).await;
        slow.spawn(async move { wire.until_closed().await.is_empty() });
    }
    let mut count = 0;
    while let Some(is_closed) = slow.join_next().await {
        assert!(is_closed.expect("no panic"), "a slow one stays");
        count += 1;
    }
    assert_eq!(count, 160);
    let device = &patient.device;
    for asked in [0, 65_535] {
        let connect = Connect { keep_alive_s: asked, ..device_connect(device, V5) };
        let (_, connack) = Wire::greet(listen.mqtt, &connect).await;
        assert_eq!(connack.number(0x13), Some(900), "the gateway caps the keep-alive");
    }
    patient.is_well().await;
}

const SMALL_STORE: &str = "[store]\ntail_bytes = 1048576\ncache_bytes = 1048576\n";

/// EMQX 860, 2494, 11646; VerneMQ 1449, 1988: a queue in memory until there is none left.
#[tokio::test]
async fn who_does_not_read_costs_a_window_and_loses_nothing() {
    const DEVICES: usize = 20;
    const MESSAGES: usize = 500;
    let mut patient = Patient::with(SMALL_STORE).await;
    let devices: Vec<Device> = devices(&patient.node, DEVICES).await;
    let message = |number: usize| json!(format!("{number} {}", "x".repeat(4_000)));
    let flood = async |topic: &str, count| {
        for number in 0..count {
            patient.node.send(json!({"topic": topic}), message(number)).await;
        }
    };
    flood("warm", 300).await;
    let mut stalled = Vec::new();
    for (at, device) in devices.iter().enumerate() {
        let connect = device_connect(device, VERSIONS[at % 2]);
        let mut wire = narrow_device(&patient, &connect).await;
        assert_eq!(wire.subscribe(&["topic/flood"], u8::from(at % 4 > 1)).await.len(), 1);
        stalled.push(wire);
    }
    let before = memory_kib(&patient.node);
    flood("flood", MESSAGES).await;
    let grown = memory_kib(&patient.node).saturating_sub(before);
    // A queue for each would hold 40 MB.
    assert!(grown < 12_000, "{grown} KiB for {DEVICES} devices that do not read");
    println!("count: {grown} KiB for {DEVICES} devices that do not read {MESSAGES} messages");
    patient.is_well().await;
    let wanted: Vec<String> = (0..MESSAGES).map(|number| message(number).to_string()).collect();
    for mut wire in stalled {
        let got: Vec<String> = wire.take(MESSAGES).await.iter().map(Push::text).collect();
        assert!(got == wanted, "each message once and in order");
    }
    patient.is_well().await;
}

/// mosquitto 3588: 0x97 where 0x93 belongs.
#[tokio::test]
async fn who_sends_more_than_our_receive_maximum_is_told_so() {
    let mut patient = Patient::new().await;
    let connect = device_connect(&patient.device, V5).with(receive_max(1));
    let (mut wire, connack) = Wire::greet(patient.node.listen().mqtt, &connect).await;
    let ours = connack.number(0x21).expect("a Receive Maximum") as usize;
    let up = |id| Publish::new(V5, "up", frames::encode(&frames::nothing())).qos(1, id).bytes();
    // The first is answered; the answers of the others wait for the client's PUBACK, and so do theirs.
    for id in 0..=ours {
        wire.send(up(1 + id as u16)).await;
    }
    let answered = wire.settle().await;
    let acked = |seen: &Seen| matches!(seen, Seen::PubAck { .. });
    assert_eq!(answered.iter().filter(|seen| acked(seen)).count(), 1, "{answered:?}");
    assert_eq!(answered.len(), 2, "{answered:?}");
    wire.send(up(100)).await;
    assert_eq!(wire.until_closed().await, [Seen::Disconnect { code: 0x93 }]);
    patient.is_well().await;
}

/// NanoMQ CVE-2024-48077: a flood that nobody answers blocks everybody.
#[tokio::test]
async fn who_floods_and_does_not_read_blocks_nobody_and_is_closed() {
    let config = "[edge]\nwrite_timeout_ms = 1500\n\
                  [edge.gate]\npackets_per_s = 0\nrequests_per_s = 0\n";
    let mut patient = Patient::with(config).await;
    let filters: Vec<(&[u8], u8)> = vec![(b"#", 1); 1_000];
    let foreign = Publish::new(V5, "elsewhere", "").qos(1, 9).bytes();
    let subscribe = subscribe(V5, 7, &filters);
    let floods = [PINGREQ.to_vec(), foreign, subscribe];
    let before = memory_kib(&patient.node);
    let mut flooding = JoinSet::new();
    for (flood, device) in floods.into_iter().zip(devices(&patient.node, 3).await) {
        let mut wire = narrow_device(&patient, &device_connect(&device, V5)).await;
        let chunk = flood.repeat(1 + 60_000 / flood.len());
        flooding.spawn(async move { while wire.send_or_fail(&chunk).await {} });
    }
    for _ in 0..10 {
        patient.is_well().await;
    }
    // Whoever takes no answer at all is closed; the pings come to that point soon.
    let closed = timeout(DEADLINE, flooding.join_next()).await;
    assert!(matches!(closed, Ok(Some(Ok(())))), "the gateway reads a flood without end");
    assert!(patient.node.log().contains("write_timeout"), "closed for another reason");
    let grown = memory_kib(&patient.node).saturating_sub(before);
    assert!(grown < 8_000, "{grown} KiB for floods");
    drop(flooding);
    patient.until_gone().await;
    patient.is_well().await;
}

/// A frames device that asks and asks and takes no answer: what waits for it is bounded.
#[tokio::test]
async fn replies_that_nobody_takes_are_bounded() {
    let mut patient = Patient::new().await;
    let connect = device_connect(&patient.device, V5).with(receive_max(3)).with(alias_max(1));
    for _ in 0..20 {
        let mut wire = Wire::connect(&patient.node, &connect).await;
        let garbage = Publish::new(V5, "up", [0xFF; 2_000]);
        for id in 1..200 {
            wire.send(garbage.clone().qos(1, id).bytes()).await;
        }
        let all = wire.until_closed().await;
        assert_eq!(all.last(), Some(&Seen::Disconnect { code: 0x93 }));
        let pushes = all.iter().filter(|seen| matches!(seen, Seen::Publish(_))).count();
        assert_eq!(pushes, 3, "no more than the client takes");
    }
    send_numbers(&patient.node, &patient.device.regid, 0..1).await;
    patient.is_well().await;
}

/// NanoMQ CVE-2026-25627 and its like: what a WebSocket says of itself.
#[tokio::test]
async fn a_websocket_is_bounded_as_any_other_door() {
    let mut patient = Patient::new().await;
    let listen = *patient.node.listen();
    let connect = device_connect(&patient.device, V5).bytes();
    let long = |length: u64| [&[0x82, 0xFF][..], &length.to_be_bytes(), &[0; 4]].concat();
    let fragment = |opcode| transport::frame(opcode, false, &[0xC0; 4_000]);
    let endless = [fragment(transport::BINARY), fragment(0).repeat(2_500)].concat();
    let unmasked = [&[0x82, 3][..], &connect[..3]].concat();
    let masked = |first: u8| {
        let mut frame = transport::frame(transport::BINARY, true, &connect);
        frame[0] = first;
        frame
    };
    let cases = [
        ("a message of 2^62 bytes", long(1 << 62)),
        ("a message of 2^63 bytes", long(1 << 63)),
        ("a message of 1 GiB", [long(1 << 30), vec![0; 100_000]].concat()),
        ("fragments without an end", endless),
        ("no mask", unmasked),
        ("a text message", transport::frame(transport::TEXT, true, &connect)),
        ("a reserved bit", masked(0xC2)),
        ("a reserved type", masked(0x83)),
        ("a continuation of nothing", masked(0x80)),
        ("a long ping", transport::frame(9, true, &[0; 126])),
        ("a fragmented ping", masked(0x09)),
    ];
    let before = memory_kib(&patient.node);
    for (what, bytes) in cases {
        for is_connected in [false, true] {
            let upgraded = transport::upgrade(listen.ws, "/mqtt", Some("mqtt")).await;
            let mut stream = upgraded.expect("an upgrade");
            if is_connected {
                let hello = transport::frame(transport::BINARY, true, &connect);
                stream.write_all(&hello).await.expect("it is there");
            }
            let (mut from, mut to) = stream.split();
            let say = async { drop(to.write_all(&bytes).await) };
            let mut said = Vec::new();
            let hear = from.read_to_end(&mut said);
            let closed = timeout(DEADLINE, async { tokio::join!(say, hear) }).await;
            assert!(closed.is_ok(), "{what}: stays open, connected: {is_connected}");
        }
    }
    let grown = memory_kib(&patient.node).saturating_sub(before);
    assert!(grown < 8_000, "{grown} KiB");
    // Pings that nobody reads the answers of.
    let stream = transport::websocket(&patient.node, Cut::Whole).await;
    let mut wire = Wire::over(stream, V5);
    wire.send(&connect).await;
    assert_eq!(wire.connack().await.code, 0);
    let mut flood = transport::upgrade(listen.ws, "/mqtt", Some("mqtt")).await.expect("upgraded");
    let pings = transport::frame(9, true, &[b'?'; 100]).repeat(600);
    for _ in 0..50 {
        if timeout(Duration::from_millis(200), flood.write_all(&pings)).await.is_err() {
            break;
        }
    }
    assert_eq!(wire.ping().await, [], "others are served");
    patient.is_well().await;
}
