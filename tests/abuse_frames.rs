//! Hostile Thrift over a live connection: each frame is answered or ends the connection with a
//! reason, none takes memory for what it only claims, and the next good frame is served.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use carillon_wire::idl::{self, ResultCode};
use serde_json::json;
use support::Device;
use wirelab::{
    bytes::{Publish, Version, varint},
    frames::{self, Framed, encode},
    lab::{Patient, UNPACED, memory_kib},
    rng::Rng,
    seen::Seen,
};

use Version::V5;

/// A field header of the compact protocol: the step from the last id, the type.
fn field(step: u8, kind: u8) -> u8 {
    step << 4 | kind
}

/// `Up` of one field of this id and type.
fn up(id: u8, kind: u8, content: &[u8]) -> Vec<u8> {
    [&[field(id, kind)][..], content, &[0]].concat()
}

const BOOL: u8 = 1;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// A list header with so many items.
fn list(count: usize, kind: u8) -> Vec<u8> {
    match count {
        0..=14 => vec![(count as u8) << 4 | kind],
        _ => [vec![0xF0 | kind], varint(count)].concat(),
    }
}

/// A string of the compact protocol that claims this length.
fn claim(length: usize, content: &[u8]) -> Vec<u8> {
    [&varint(length)[..], content].concat()
}

/// `subscribe` of this device with these bytes as its topics.
fn topics(device: &Device, bytes: &[u8]) -> Vec<u8> {
    let regid = claim(device.regid.len(), device.regid.as_bytes());
    up(8, STRUCT, &[&[field(1, BINARY)][..], &regid, &[field(1, LIST)], bytes, &[0]].concat())
}

/// Frames that no device may send, and what each is.
fn hostile(device: &Device) -> Vec<(&'static str, Vec<u8>)> {
    let nested = |depth: usize, opener: u8| [vec![opener; depth], vec![0; depth]].concat();
    let lists = |depth: usize| [vec![list(1, LIST)[0]; depth], vec![0; depth]].concat();
    let minus = [0xFF, 0xFF, 0xFF, 0xFF, 0x0F];
    let long = vec![0x80; 20];
    vec![
        ("nothing", vec![]),
        ("only a stop", vec![0]),
        ("an unknown type", up(2, 15, &[])),
        ("a list of 2^31 topics", topics(device, &[vec![0xF8], varint(1 << 31)].concat())),
        ("a list of 2^28 topics", topics(device, &list(1 << 28, BINARY))),
        (
            "a list of 5,000 empty topics",
            topics(device, &[list(5_000, BINARY), vec![0; 5_000]].concat()),
        ),
        ("a list of -1 topics", topics(device, &[&[0xF8][..], &minus].concat())),
        ("a list of structs for topics", topics(device, &list(3, STRUCT))),
        ("a list of an unknown type", topics(device, &[0x1F, 0])),
        ("a topic of 2^31 bytes", topics(device, &[list(1, BINARY), varint(1 << 31)].concat())),
        ("a topic of -1 bytes", topics(device, &[&list(1, BINARY)[..], &minus].concat())),
        (
            "a topic longer than the frame",
            topics(device, &[list(1, BINARY), claim(100, b"x")].concat()),
        ),
        (
            "a topic of 100,000 bytes",
            topics(device, &[list(1, BINARY), claim(100_000, &[b'x'; 100_000])].concat()),
        ),
        (
            "a topic that is not UTF-8",
            topics(device, &[list(1, BINARY), claim(2, b"\xC3\x28")].concat()),
        ),
        (
            "a regid that is not UTF-8",
            up(5, STRUCT, &[&[field(1, BINARY)][..], &claim(2, b"\xFF\xFE"), &[0]].concat()),
        ),
        ("structs in structs", up(15, STRUCT, &nested(60_000, field(1, STRUCT)))),
        ("unknown lists in lists", up(15, LIST, &lists(60_000))),
        ("an unknown map of 2^31", up(15, MAP, &[varint(1 << 31), vec![0x88]].concat())),
        ("an unknown set of 2^31", up(15, SET, &[vec![0xF1], varint(1 << 31)].concat())),
        ("a number without an end", up(1, I64, &long)),
        ("a length without an end", topics(device, &[&list(1, BINARY)[..], &long].concat())),
        ("bytes behind the frame", [encode(&frames::resume(0)), vec![0]].concat()),
        ("a frame twice", encode(&frames::resume(0)).repeat(2)),
        ("a required field missing", up(5, STRUCT, &[0])),
        ("a message header", [&[0x82, 0x21, 0][..], &encode(&frames::resume(0))].concat()),
        ("JSON", b"{\"resume\":{\"digest\":0}}".to_vec()),
        ("only continuation bits", vec![0xFF; 1_000]),
        ("a bool where a struct belongs", up(2, BOOL, &[])),
        ("a digest of another type", up(2, STRUCT, &[field(1, BINARY), 1, b'x', 0])),
        ("128 KiB and a byte", vec![0x1C; (128 << 10) + 1]),
    ]
}

#[tokio::test]
async fn a_hostile_frame_is_answered_and_the_next_one_is_served() {
    let mut patient = Patient::new().await;
    let device = patient.device.clone();
    let mut framed = Framed::connect(&patient.node, &device).await;
    for (what, bytes) in hostile(&device) {
        framed.say_bytes(&bytes).await;
        let result = framed.result().await;
        let is_refused = matches!(result.code, ResultCode::MALFORMED | ResultCode::UNKNOWN_KIND);
        assert!(is_refused, "{what}: {result:?}");
        assert!(result.message.as_ref().is_some_and(|text| text.len() < 300), "{what}: {result:?}");
        let good = framed.ask(frames::subscribe(&device.regid, &["good"])).await;
        assert_eq!(good.code, ResultCode::OK, "after {what}");
    }
    // What is about values, not about Thrift, is INVALID.
    let long = "x".repeat(60_000);
    for topics in [[&long[..], "a"], ["a", ""], ["#", "a"], ["a\0b", "a"]] {
        let result = framed.ask(frames::subscribe(&device.regid, &topics)).await;
        assert_eq!(result.code, ResultCode::INVALID, "{result:?}");
    }
    let many: Vec<String> = (0..4_000).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let result = framed.ask(frames::subscribe(&device.regid, &many)).await;
    assert_eq!(result.code, ResultCode::LIMIT);
    let view = patient.node.registration(&device.regid).await;
    assert_eq!(view["topics"], json!(["good"]));
    patient.is_well().await;
}

#[tokio::test]
async fn what_a_frame_claims_takes_no_memory() {
    let mut patient = Patient::with(UNPACED).await;
    let device = patient.device.clone();
    let mut framed = Framed::connect(&patient.node, &device).await;
    let claims = [
        topics(&device, &list(1 << 28, BINARY)),
        topics(&device, &list(100_000, BINARY)),
        topics(&device, &[list(1, BINARY), claim(1 << 30, b"")].concat()),
        up(3, STRUCT, &[vec![field(1, LIST)], list(1 << 26, STRUCT)].concat()),
        up(15, MAP, &[varint(1 << 30), vec![0xCC]].concat()),
    ];
    let mut before = 0;
    for round in 0..600 {
        framed.say_bytes(&claims[round % claims.len()]).await;
        assert_eq!(framed.result().await.code, ResultCode::MALFORMED);
        if round == 100 {
            before = memory_kib(&patient.node);
        }
    }
    let grown = memory_kib(&patient.node).saturating_sub(before);
    assert!(grown < 2_000, "{grown} KiB for 500 frames that only claim");
    patient.is_well().await;
}

#[tokio::test]
async fn unknown_fields_are_skipped_and_unknown_kinds_are_named() {
    let mut patient = Patient::new().await;
    let device = patient.device.clone();
    let mut framed = Framed::connect(&patient.node, &device).await;
    let known = encode(&idl::Up { request: Some(5), ..frames::subscribe(&device.regid, &["a"]) });
    let unknown: [(u8, &[u8]); 6] = [
        (BOOL, &[]),
        (I64, &[0x0E]),
        (BINARY, &[3, b'a', 0xFF, b'c']),
        (LIST, &[0x23, 1, 2]),
        (MAP, &[1, 0x88, 1, b'k', 1, b'v']),
        (STRUCT, &[field(3, BINARY), 0, field(1, STRUCT), 0, 0]),
    ];
    let mut codes = Vec::new();
    for (kind, content) in unknown {
        // Behind the last known field, and alone.
        let mut longer = known[..known.len() - 1].to_vec();
        longer.push(field(12, kind));
        longer.extend(content);
        longer.push(0);
        // Number 60, which takes the long form.
        let alone = [&[kind, 120][..], content, &[0]].concat();
        for bytes in [longer, alone] {
            framed.say_bytes(&bytes).await;
            codes.push(framed.result().await.code);
        }
    }
    assert_eq!(codes, [ResultCode::OK, ResultCode::UNKNOWN_KIND].repeat(6));
    let two = idl::Up { bind: frames::bind(&device.regid, "x", None).bind, ..frames::resume(0) };
    assert_eq!(framed.ask(two).await.code, ResultCode::UNKNOWN_KIND);
    patient.is_well().await;
}

/// Good frames of every kind.
fn good(device: &Device) -> Vec<Vec<u8>> {
    let position = idl::Position {
        queue: idl::Queue { kind: idl::QueueKind::TOPIC, name: Some("a".into()) },
        epoch: i32::MAX,
        seq: i64::MAX,
        tag: Some(vec![1; 8]),
    };
    let stated = idl::RegistrationPositions {
        gathered: None,
        regid: device.regid.clone(),
        positions: vec![position.clone(), idl::Position { epoch: -1, seq: -1, ..position }],
    };
    let ups = [
        frames::resume(i64::MIN),
        frames::positions(vec![stated]),
        frames::register("demo", "key"),
        frames::bind(&device.regid, "alias", Some("token")),
        frames::unbind(&device.regid, "alias"),
        frames::subscribe(&device.regid, &["a", "b"]),
        frames::unsubscribe(&device.regid, &["a"]),
    ];
    let ups = ups.into_iter().map(|up| idl::Up { request: Some(9), ..up });
    ups.map(|up| encode(&up)).collect()
}

#[tokio::test]
async fn a_frame_may_be_cut_or_changed_at_every_byte() {
    let mut patient = Patient::with(UNPACED).await;
    let mut rng = Rng::seeded("changed frames", 5);
    let device = patient.device.clone();
    let mut framed = Framed::connect(&patient.node, &device).await;
    let mut count = 0;
    for frame in good(&device) {
        let cut = (0..frame.len()).map(|length| frame[..length].to_vec());
        let changed = (0..frame.len() * 3).map(|at| {
            let mut bytes = frame.clone();
            bytes[at % frame.len()] = rng.next() as u8;
            if rng.one_in(4) {
                let at = rng.below(bytes.len());
                bytes.insert(at, rng.next() as u8);
            }
            bytes
        });
        let all: Vec<(bool, Vec<u8>)> =
            cut.map(|bytes| (true, bytes)).chain(changed.map(|bytes| (false, bytes))).collect();
        for (is_cut, bytes) in all {
            count += 1;
            framed.say_bytes(&bytes).await;
            let answer = answer(&mut framed).await;
            let code = answer.result.as_ref().map(|result| result.code);
            assert!(!is_cut || code == Some(ResultCode::MALFORMED), "{bytes:02x?}: {answer:?}");
        }
    }
    println!("count: {count} frames cut or changed, each answered");
    // Some of them may have been valid: what matters is that it still works.
    let done = framed.ask(frames::subscribe(&device.regid, &["z"])).await;
    assert_eq!(done.code, ResultCode::OK);
    patient.is_well().await;
}

/// The one answer to a frame; deltas that come meanwhile are acknowledged.
async fn answer(framed: &mut Framed) -> idl::Down {
    loop {
        let (id, down) = framed.down().await;
        framed.wire.ack(id).await;
        if down.deltas.is_none() && down.ended.is_none() {
            return down;
        }
    }
}

#[tokio::test]
async fn a_frame_in_the_wrong_place_is_no_frame() {
    let mut patient = Patient::new().await;
    let device = patient.device.clone();
    let mut framed = Framed::connect(&patient.node, &device).await;
    let down = vec![0x1C, 0x16, 0, 0x15, 0, 0, 0];
    framed.say_bytes(&down).await;
    let result = framed.result().await;
    assert_eq!(result.code, ResultCode::MALFORMED, "a Down is no Up: {result:?}");
    let up = encode(&frames::subscribe(&device.regid, &["x"]));
    for topic in ["down", "up/", "UP", "Up", "up ", "push", "$up"] {
        let id = framed.wire.id();
        framed.wire.send(Publish::new(V5, topic, &up).qos(1, id).bytes()).await;
        assert_eq!(framed.wire.next().await, Seen::PubAck { id, code: 0x87 }, "{topic}");
    }
    // QoS 0 is a frame too; the retain flag says nothing.
    let retained = Publish { is_retained: true, ..Publish::new(V5, "up", &up) };
    framed.wire.send(retained.bytes()).await;
    assert_eq!(framed.result().await.code, ResultCode::OK);
    assert_eq!(patient.node.registration(&device.regid).await["topics"], json!(["x"]));
    let mut large = framed;
    let id = large.wire.id();
    let frame = Publish::new(V5, "up", vec![0; 170_000]).qos(1, id).bytes();
    large.wire.send(&frame[..100]).await;
    large.wire.must_end(0x95).await;
    patient.is_well().await;
}
