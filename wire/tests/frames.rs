//! Thrift frames: what is valid comes back, what is hostile is an error.

mod support;

use carillon_wire::frame::{self, Error};
use carillon_wire::{idl, limits};
use support::Random;

fn queue(kind: idl::QueueKind, name: Option<&str>) -> idl::Queue {
    idl::Queue { kind, name: name.map(str::to_owned) }
}

fn positions() -> idl::Positions {
    let position = |queue, seq, tag: Option<Vec<u8>>| idl::Position { queue, epoch: 3, seq, tag };
    idl::Positions {
        registrations: vec![idl::RegistrationPositions {
            gathered: None,
            regid: "regid-1".into(),
            positions: vec![
                position(queue(idl::QueueKind::OWN, None), 17, Some(vec![1, 2, 3, 4, 5, 6, 7, 8])),
                position(queue(idl::QueueKind::TOPIC, Some("news")), i64::MAX, None),
            ],
        }],
        more: Some(true),
    }
}

fn ups() -> Vec<idl::Up> {
    let (regid, list) = ("regid-1".to_owned(), vec!["a".to_owned(), "b/c".to_owned()]);
    let (app_id, app_key) = ("demo".to_owned(), "key".to_owned());
    vec![
        idl::Up { resume: Some(idl::Resume { digest: i64::MIN, dictionary: Some(1) }), ..up() },
        idl::Up { positions: Some(positions()), ..up() },
        idl::Up { upload: Some(upload()), request: Some(1), ..up() },
        idl::Up { repair: Some(repair()), request: Some(1), ..up() },
        idl::Up {
            register_app: Some(idl::Register { app_id, app_key, seal: None, attributes: None }),
            request: Some(1),
            ..up()
        },
        idl::Up {
            unregister: Some(idl::Unregister { regid: regid.clone() }),
            request: Some(2),
            ..up()
        },
        idl::Up {
            bind: Some(idl::Bind::new(regid.clone(), "älice".into(), "tok".to_owned())),
            ..up()
        },
        idl::Up {
            unbind: Some(idl::Unbind::new(regid.clone(), "bob".into())),
            request: Some(-1),
            ..up()
        },
        idl::Up { subscribe: Some(idl::Subscribe::new(regid.clone(), list.clone())), ..up() },
        idl::Up { unsubscribe: Some(idl::Unsubscribe::new(regid.clone(), list)), ..up() },
        idl::Up {
            event: Some(idl::Event::new(regid, vec![1; 15], idl::EventKind::CLICKED)),
            ..up()
        },
    ]
}

fn up() -> idl::Up {
    frame::empty_up()
}

fn entry(seq: i64) -> idl::Entry {
    idl::Entry {
        seq,
        id: Some(vec![9; 16]),
        time_ms: Some(1_700_000_000_000),
        payload: Some(br#"{"any":"json"}"#.to_vec()),
        notification: Some(idl::Notification::new("t".to_owned(), None, None)),
        follow: Some(idl::Follow::new(queue(idl::QueueKind::ALIAS, Some("alice")), 1, 5)),
        unfollow: Some(idl::Unfollow::new(queue(idl::QueueKind::ALL, None))),
        sealed: Some(vec![8; 40]),
        recall: Some(vec![8; 15]),
        change: Some(change()),
    }
}

fn change() -> idl::Change {
    idl::Change {
        collection: "notes".into(),
        key: "k".into(),
        kind: idl::ChangeKind::UPDATE,
        value: Some(b"{}".to_vec()),
        format: Some(idl::ValueFormat::JSON),
        clock: Some(5 << 16),
        cseq: Some(3),
    }
}

fn upload() -> idl::Upload {
    let edit = idl::Edit {
        cseq: 1,
        collection: "notes".into(),
        key: "k".into(),
        value: Some(b"{}".to_vec()),
        format: None,
        base_seq: 4,
        clock: 5 << 16,
    };
    idl::Upload { regid: "regid-1".into(), alias_name: "alice".into(), epoch: 1, edits: vec![edit] }
}

fn repair() -> idl::Repair {
    let range = idl::KeyRange::new("a".to_owned(), "b".to_owned(), 3, -7);
    idl::Repair {
        regid: "regid-1".into(),
        alias_name: "alice".into(),
        collection: "notes".into(),
        epoch: 1,
        seq: 9,
        ranges: vec![range],
    }
}

fn snapshot() -> idl::SnapshotChunk {
    let item = idl::Item::new("notes".to_owned(), "k".to_owned(), 9, vec![1; 20], None, 5 << 16);
    idl::SnapshotChunk {
        regid: "regid-1".into(),
        queue: queue(idl::QueueKind::ALIAS, Some("alice")),
        jump: idl::JumpReason::SMALLER,
        epoch: 1,
        at_seq: 9,
        tag: vec![0; 8],
        items: vec![item],
        cursor: Some(vec![4; 9]),
        until_seq: Some(12),
        begins: Some(true),
    }
}

fn downs() -> Vec<idl::Down> {
    let result = idl::Result::new(
        7,
        idl::ResultCode::INVALID,
        "too long".to_owned(),
        None,
        None,
        None,
        None,
        None,
    );
    let delta = idl::Delta {
        queue: queue(idl::QueueKind::OWN, None),
        epoch: 1,
        from_seq: 1,
        to_seq: 20,
        tag: vec![0; 8],
        entries: (1..=20).map(entry).collect(),
        jump: Some(idl::JumpReason::OVERFLOW),
        wrapped_keys: Some(vec![7; 640]),
        key_number: Some(3),
    };
    let digest = idl::CollectionDigest::new(
        queue(idl::QueueKind::ALIAS, Some("alice")),
        1,
        "notes".to_owned(),
        9,
        2,
        i64::MIN,
    );
    let deltas =
        idl::Deltas { regid: "regid-1".into(), deltas: vec![delta], digests: Some(vec![digest]) };
    vec![
        idl::Down { result: Some(result), ..down() },
        idl::Down { deltas: Some(deltas), ..down() },
        idl::Down {
            resumed: Some(idl::Resumed { regids: Some(vec!["regid-1".into()]) }),
            ..down()
        },
        idl::Down { ask_positions: Some(idl::AskPositions {}), ..down() },
        idl::Down { snapshot: Some(snapshot()), ..down() },
        idl::Down { packed: Some(idl::Packed::new(1, 400, vec![7; 90])), ..down() },
        idl::Down {
            advice: Some(idl::Advice { reconnect_after_ms: Some(5_000), ..idl::Advice::default() }),
            ..down()
        },
        idl::Down { ended: Some(idl::Ended { regid: "regid-1".into(), reason: None }), ..down() },
        idl::Down {
            ended: Some(idl::Ended::new("regid-1".to_owned(), idl::EndReason::EXPIRED)),
            ..down()
        },
    ]
}

fn down() -> idl::Down {
    idl::Down::default()
}

fn encoded_up(up: &idl::Up) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode_up(up, &mut out).expect("a small frame");
    out
}

fn encoded_down(down: &idl::Down) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode_down(down, &mut out).expect("a small frame");
    out
}

#[test]
fn every_kind_of_frame_comes_back_as_it_was() {
    for up in ups() {
        assert_eq!(frame::decode_up(&encoded_up(&up)).expect("valid"), up);
    }
    for down in downs() {
        assert_eq!(frame::decode_down(&encoded_down(&down)).expect("valid"), down);
    }
}

#[test]
fn a_frame_cut_at_any_byte_is_an_error() {
    for bytes in ups().iter().map(encoded_up) {
        for end in 0..bytes.len() {
            frame::decode_up(&bytes[..end]).expect_err("a truncated Up");
        }
    }
    for bytes in downs().iter().map(encoded_down) {
        for end in 0..bytes.len() {
            frame::decode_down(&bytes[..end]).expect_err("a truncated Down");
        }
    }
}

#[test]
fn bytes_behind_a_frame_are_an_error() {
    let mut bytes = encoded_up(&ups()[0]);
    bytes.push(0);
    assert!(matches!(frame::decode_up(&bytes), Err(Error::Trailing { bytes: 1 })));
    assert!(matches!(frame::decode_up(&[]), Err(Error::Empty)));
}

#[test]
fn s26_an_empty_resume_takes_at_most_24_bytes_each_way() {
    let resume = encoded_up(&idl::Up {
        resume: Some(idl::Resume { digest: i64::MIN, dictionary: Some(1) }),
        ..up()
    });
    let resumed =
        encoded_down(&idl::Down { resumed: Some(idl::Resumed { regids: None }), ..down() });
    assert!(
        resume.len() <= 24 && resumed.len() <= 24,
        "{} and {} bytes",
        resume.len(),
        resumed.len()
    );
}

#[test]
fn a_frame_over_the_limit_is_refused_at_both_ends() {
    let topics = vec!["x".repeat(60_000), "y".repeat(60_000), "z".repeat(60_000)];
    let up = idl::Up { subscribe: Some(idl::Subscribe::new("r".into(), topics)), ..up() };
    let mut out = b"before".to_vec();
    assert!(matches!(frame::encode_up(&up, &mut out), Err(Error::TooLarge { .. })));
    assert_eq!(out, b"before", "what was there is untouched");

    let long = vec![0; limits::FRAME_BYTES_MAX + 1];
    assert!(matches!(frame::decode_up(&long), Err(Error::TooLarge { .. })));
}

#[test]
fn negative_numbers_and_odd_tags_from_a_device_are_invalid() {
    assert!(matches!(frame::seq_from_idl(-1), Err(Error::Invalid("seq"))));
    assert!(matches!(frame::epoch_from_idl(i32::MIN), Err(Error::Invalid("epoch"))));
    assert!(matches!(frame::tag_from_idl(&[0; 7]), Err(Error::Invalid("tag"))));
    assert_eq!(frame::seq_from_idl(i64::MAX).expect("in range"), i64::MAX.cast_unsigned());
    assert_eq!(frame::seq_to_idl(42), 42);
    assert_eq!(frame::epoch_to_idl(7), 7);
}

/// A frame of an unknown field 100 of Up with this type and body; bool is in the type.
fn unknown_field(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 0xC8, 0x01], body, &[0x00]].concat()
}

#[test]
fn unknown_fields_of_every_type_are_skipped() {
    let bodies: [(u8, &[u8]); 12] = [
        (0x01, &[]),
        (0x02, &[]),
        (0x03, &[5]),
        (0x04, &[5]),
        (0x05, &[5]),
        (0x06, &[5]),
        (0x07, &[0; 8]),
        (0x08, &[3, b'a', 0xFF, b'c']),
        (0x09, &[0x25, 1, 2]),
        (0x0A, &[0x15, 1]),
        (0x0B, &[1, 0x58, 1, 1, b'x']),
        (0x0C, &[0x15, 1, 0x1C, 0x00, 0x00]),
    ];
    for (kind, body) in bodies {
        assert_eq!(
            frame::decode_up(&unknown_field(kind, body)).expect("skipped"),
            up(),
            "type {kind:#x}"
        );
    }
    let future = idl::Up { request: Some(1), ..up() };
    let mut bytes = encoded_up(&future);
    bytes.pop();
    bytes.extend_from_slice(&unknown_field(0x08, &[1, b'x']));
    assert_eq!(frame::decode_up(&bytes).expect("skipped"), future);
}

#[test]
fn hostile_frames_are_errors() {
    for line in HOSTILE.lines().skip(1) {
        let (digits, name) = line.split_once(' ').expect("hex and name");
        let hex = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two hex digits");
        let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(hex).collect();
        assert!(frame::decode_up(&bytes).is_err(), "{}", name.trim());
    }
}

#[test]
fn deep_and_long_frames_are_errors() {
    let rows = [
        ("structs 100,000 deep", [&[0x0C, 0xC8, 0x01][..], &[0x1C; 100_000]].concat()),
        ("lists 100,000 deep", [&[0x09, 0xC8, 0x01][..], &[0x19; 100_000]].concat()),
        ("a string over 64 KiB", [&[0x5C, 0x18, 0x81, 0x80, 0x04][..], &[b'a'; 70_000]].concat()),
    ];
    for (name, bytes) in rows {
        assert!(frame::decode_up(&bytes).is_err(), "{name}");
    }
}

#[test]
fn a_hundred_thousand_damaged_frames_panic_nowhere() {
    let mut random = Random::seeded(0x5eed_f4a3);
    let originals: Vec<Vec<u8>> =
        ups().iter().map(encoded_up).chain(downs().iter().map(encoded_down)).collect();
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..100_000 {
        let mut bytes = originals[round % originals.len()].clone();
        random.mutate(&mut bytes);
        for is_ok in [frame::decode_up(&bytes).is_ok(), frame::decode_down(&bytes).is_ok()] {
            if is_ok { accepted += 1 } else { refused += 1 }
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(
        accepted > 1_000 && refused > 1_000,
        "the damage is neither all fatal nor all harmless"
    );
}

/// Hex of an Up, or of its beginning. Field 3 is positions, 5 unregister, 100 unknown.
const HOSTILE: &str = "
3c19fcffffffff07         a list of 2^31-1 positions
3c19fcffffffff0f         a list of -1 positions
3c19fc8020               a list of 4,096 positions in no bytes
3c19fc8120               a list of 4,097 positions
09c801fcffffffff07       an unknown list of 2^31-1
0ac801fcffffffff07       an unknown set of 2^31-1
0bc801ffffffff0788       an unknown map of 2^31-1
0bc801ffffffff0f88       an unknown map of -1
5c18ffffffff07616263     a string of 2^31-1
5c18ffffffff0f616263     a string of -1
5c18808004610000         a string beyond the frame
5c1802c3280000           a string that is not UTF-8
5c1880808080800000       a length of six bytes
1e00                     a type that does not exist
09c8011f0000             a list of a type that does not exist
2c0000                   a required field that is missing
05feff0300f500           a field id beyond 16 bits
16808080808080808080800000 a varint of eleven bytes
82210101780000           a message header instead of a struct
";
