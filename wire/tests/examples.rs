//! The example frames in docs/PROTOCOL.md are what the code writes.

use carillon_wire::{frame, idl};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn up(change: impl FnOnce(&mut idl::Up)) -> String {
    let mut up = frame::empty_up();
    change(&mut up);
    let mut out = Vec::new();
    frame::encode_up(&up, &mut out).expect("a small frame");
    hex(&out)
}

fn down(change: impl FnOnce(&mut idl::Down)) -> String {
    let mut down = idl::Down::default();
    change(&mut down);
    let mut out = Vec::new();
    frame::encode_down(&down, &mut out).expect("a small frame");
    hex(&out)
}

fn topic(name: &str) -> idl::Queue {
    idl::Queue::new(idl::QueueKind::TOPIC, name.to_owned())
}

fn deltas() -> idl::Deltas {
    let message = idl::Entry {
        seq: 42,
        id: Some(vec![0x4d, 0x31]),
        time_ms: Some(1_700_000_000_000),
        payload: Some(b"{\"a\":1}".to_vec()),
        notification: None,
        follow: None,
        unfollow: None,
        sealed: None,
        recall: None,
        change: None,
    };
    let delta = idl::Delta {
        queue: topic("news"),
        epoch: 7,
        from_seq: 41,
        to_seq: 42,
        tag: vec![1, 2, 3, 4, 5, 6, 7, 8],
        entries: vec![message],
        jump: None,
        wrapped_keys: None,
        key_number: None,
    };
    idl::Deltas::new("r1".into(), vec![delta], None)
}

fn positions() -> idl::Positions {
    let position = idl::Position::new(topic("news"), 7, 42, vec![1, 2, 3, 4, 5, 6, 7, 8]);
    idl::Positions::new(
        vec![idl::RegistrationPositions::new("r1".into(), vec![position], None)],
        None,
    )
}

#[test]
fn the_example_frames_in_the_protocol_document_are_what_the_code_writes() {
    let digest = -2_433_624_130_026_534_385;
    let examples = [
        up(|up| up.resume = Some(idl::Resume::new(0, None))),
        up(|up| up.resume = Some(idl::Resume::new(0, 1))),
        up(|up| up.resume = Some(idl::Resume::new(digest, None))),
        up(|up| up.positions = Some(positions())),
        up(|up| {
            up.request = Some(1);
            up.subscribe = Some(idl::Subscribe::new("r1".into(), vec!["news".into()]));
        }),
        up(|up| {
            up.request = Some(2);
            up.heartbeat = Some(idl::HeartbeatReport::new("cell:1".into(), 270, 330));
        }),
        down(|down| {
            down.advice = Some(idl::Advice {
                reconnect_after_ms: None,
                server: None,
                heartbeat_s: Some(285),
            });
        }),
        down(|down| {
            down.result =
                Some(idl::Result::new(1, idl::ResultCode::OK, None, None, None, None, None, None));
        }),
        down(|down| down.ask_positions = Some(idl::AskPositions {})),
        down(|down| down.resumed = Some(idl::Resumed::new(vec!["r1".to_owned()]))),
        down(|down| down.deltas = Some(deltas())),
    ];
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL.md");
    let document = std::fs::read_to_string(path).expect("read docs/PROTOCOL.md");
    for example in examples {
        assert!(document.contains(&format!("| `{example}` |")), "{example} is not in the document");
    }
}
