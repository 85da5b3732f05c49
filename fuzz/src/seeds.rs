//! The committed corpus, made here: `CARILLON_FUZZ_WRITE=1 cargo test --test fuzz`.

use bytes::{Bytes, BytesMut};
use carillon_wire::{
    frame, idl,
    mqtt::{
        Ack, ConnAck, Connect, Packet, Publish, Qos, SubAck, Subscribe, Unsubscribe, Version,
        encode,
    },
};

use super::sealed;

/// Inputs of a target, each with its file name.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let named = match target {
        "mqtt" => mqtt(),
        "frame" => frames(),
        "filter" => filters(),
        "session" => sessions(),
        "proxy" => headers(),
        other => panic!("there is no target {other}"),
    };
    named.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

type Seeds = Vec<(&'static str, Vec<u8>)>;

fn stream(reader: u8, version: Version, packets: &[Packet]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    for packet in packets {
        encode(version, packet, &mut bytes).expect("a packet");
    }
    [&[reader, 3, 0, 6], &bytes[..]].concat()
}

fn mqtt() -> Seeds {
    let connect = |version| {
        let (client_id, username) = ("device".to_owned(), Some("device".to_owned()));
        let password = Some(Bytes::from_static(b"secret"));
        let connect = Connect { version, client_id, username, password, ..Connect::default() };
        Packet::Connect(Box::new(connect))
    };
    let publish = |qos, packet_id| {
        let payload = Bytes::from_static(b"{\"a\":1}");
        let user = Vec::new();
        Packet::Publish(Publish {
            topic: "up".into(),
            qos,
            packet_id,
            payload,
            user,
            ..Publish::default()
        })
    };
    let filters =
        vec![("push".to_owned(), Qos::AtLeastOnce), ("topic/a".to_owned(), Qos::AtMostOnce)];
    let subscribe = Packet::Subscribe(Subscribe { packet_id: 1, filters, subscription_id: None });
    let filters = vec!["push".to_owned()];
    let from_client = [
        subscribe,
        publish(Qos::AtMostOnce, 0),
        publish(Qos::AtLeastOnce, 7),
        publish(Qos::ExactlyOnce, 8),
        Packet::PubRel(Ack { packet_id: 8, reason: 0 }),
        Packet::PubAck(Ack { packet_id: 9, reason: 0 }),
        Packet::PingReq,
        Packet::Unsubscribe(Unsubscribe { packet_id: 2, filters }),
    ];
    let from_server = [
        Packet::ConnAck(Box::default()),
        Packet::SubAck(SubAck { packet_id: 1, reasons: vec![1, 0] }),
        publish(Qos::AtLeastOnce, 1),
        Packet::PingResp,
    ];
    let user = vec![("retry-after-ms".to_owned(), "1200".to_owned())];
    let refusal = ConnAck { reason: 0x9F, user, ..ConnAck::default() };
    vec![
        ("connect-311", stream(0, Version::V311, &[connect(Version::V311), Packet::PingReq])),
        ("connect-5", stream(0, Version::V5, &[connect(Version::V5), Packet::PingReq])),
        ("client-311", stream(1, Version::V311, &from_client)),
        ("client-5", stream(2, Version::V5, &from_client)),
        ("server-311", stream(3, Version::V311, &from_server)),
        ("server-5", stream(4, Version::V5, &from_server)),
        ("refusal-5", stream(4, Version::V5, &[Packet::ConnAck(Box::new(refusal))])),
    ]
}

fn up(up: &idl::Up) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_up(up, &mut bytes).expect("a frame");
    bytes
}

fn down(down: &idl::Down) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_down(down, &mut bytes).expect("a frame");
    bytes
}

fn frames() -> Seeds {
    let none = idl::Up::default;
    let queue = idl::Queue { kind: idl::QueueKind::TOPIC, name: Some("news".into()) };
    let position = idl::Position { queue, epoch: 3, seq: 17, tag: Some(vec![1; 8]) };
    let positions = vec![position; 3];
    let registration = idl::RegistrationPositions { gathered: None, regid: "r".into(), positions };
    let positions = idl::Positions { registrations: vec![registration; 2], more: Some(true) };
    let subscribe = idl::Subscribe { regid: "r".into(), topics: vec!["a".into(), "b".into()] };
    let resume = Some(idl::Resume { digest: -5, dictionary: None });
    let advice = idl::Advice { reconnect_after_ms: Some(5), ..idl::Advice::default() };
    let advice = idl::Down { advice: Some(advice), ..idl::Down::default() };
    let mut seeds = vec![
        ("resume", up(&idl::Up { resume, ..none() })),
        ("positions", up(&idl::Up { positions: Some(positions), ..none() })),
        ("subscribe", up(&idl::Up { subscribe: Some(subscribe), request: Some(2), ..none() })),
        ("register", up(&idl::Up { request: Some(1), ..register(None) })),
        ("advice", down(&advice)),
        ("packed", packed()),
    ];
    seeds.extend(sealed_frames());
    seeds.extend(later_kinds());
    seeds
}

fn register(seal: Option<idl::SealOffer>) -> idl::Up {
    let (app_id, app_key) = ("demo".into(), "key".into());
    let register = idl::Register { app_id, app_key, seal, attributes: None };
    idl::Up { register_app: Some(register), ..idl::Up::default() }
}

/// How keys are agreed and changed, and what is sealed.
fn sealed_frames() -> Seeds {
    let offer = || idl::SealOffer { app_key: 1, public_key: vec![0x42; 32] };
    let rekey = idl::Rekey { regid: "r".into(), seal: offer(), proof: vec![3; 16] };
    let rekey = idl::Up { rekey: Some(rekey), request: Some(4), ..idl::Up::default() };
    let seal = Some(idl::SealAnswer { number: 1, confirmation: vec![6; 16] });
    let result = idl::Result {
        request: 4,
        code: idl::ResultCode::OK,
        message: None,
        regid: Some("r".into()),
        seal,
        edits: None,
        ranges: None,
        next_cseq: None,
    };
    let result = idl::Down { result: Some(result), ..idl::Down::default() };
    vec![
        ("register-sealed", up(&idl::Up { request: Some(1), ..register(Some(offer())) })),
        ("rekey", up(&rekey)),
        ("seal-answer", down(&result)),
        ("sealed", down(&sealed::down())),
    ]
}

/// Uplink kinds from 12 on; 14 is `rekey`.
fn later_kinds() -> Seeds {
    let none = || idl::Up { request: Some(7), ..idl::Up::default() };
    let accept = idl::Accept {
        regid: "r".into(),
        paused: Some(false),
        start_minute: Some(1_320),
        end_minute: Some(360),
        zone: Some("Europe/Berlin".into()),
    };
    let (message, kind) = ((0..15).collect(), idl::EventKind::CLICKED);
    let event = idl::Event { regid: "r".into(), message, kind };
    let edit = |cseq, value: Option<&[u8]>| idl::Edit {
        cseq,
        collection: "notes".into(),
        key: "k1".into(),
        value: value.map(<[u8]>::to_vec),
        format: Some(idl::ValueFormat::JSON),
        base_seq: 17,
        clock: 1_700_000_000_000 << 16,
    };
    let upload = idl::Upload {
        regid: "r".into(),
        alias_name: "ann".into(),
        epoch: 3,
        edits: vec![edit(1, Some(b"{\"a\":1}")), edit(2, None)],
    };
    let range = |first: &str, before: Option<&str>| idl::KeyRange {
        first: first.into(),
        before: before.map(str::to_owned),
        items: 2,
        digest: -9,
    };
    let repair = idl::Repair {
        regid: "r".into(),
        alias_name: "ann".into(),
        collection: "notes".into(),
        epoch: 3,
        seq: 17,
        ranges: vec![range("", Some("k")), range("k", None)],
    };
    vec![
        ("accept", up(&idl::Up { accept: Some(accept), ..none() })),
        ("event", up(&idl::Up { event: Some(event), ..none() })),
        ("upload", up(&idl::Up { upload: Some(upload), ..none() })),
        ("repair", up(&idl::Up { repair: Some(repair), ..none() })),
    ]
}

/// A frame of a few hundred bytes, packed.
fn packed() -> Vec<u8> {
    let regids = Some((0..40).map(|n| format!("registration-{n}")).collect());
    let resumed = idl::Down { resumed: Some(idl::Resumed { regids }), ..idl::Down::default() };
    let (mut plain, mut bytes) = (Vec::new(), Vec::new());
    frame::encode_down(&resumed, &mut plain).expect("a frame");
    assert!(frame::pack(&plain, &mut bytes), "it gets smaller");
    bytes
}

fn filters() -> Seeds {
    let texts = [
        ("down", "down"),
        ("push", "push"),
        ("push-app", "push/demo"),
        ("topic", "topic/news.2"),
        ("topic-app", "topic/demo/a~b%20:c"),
        ("shared", "$share/g/push"),
        ("wild", "topic/+/#"),
        ("deep", "topic/a/b/c/d"),
    ];
    texts.into_iter().map(|(name, text)| (name, text.as_bytes().to_vec())).collect()
}

/// Steps by the numbers that `session::Rig::happen` gives them.
fn sessions() -> Seeds {
    let plain = [1, 0, 2, 3, 1, 0, 0, 1, 0, 6, 0, 0, 9, 7, 0, 1, 5, 3, 0, 3, 0, 0];
    let steady: Vec<u8> = (0..24).flat_map(|n| [6, n % 2, n % 3, n, 3, n % 4, 0]).collect();
    let frames = [1, 0, 2, 3, 4, 0, 0, 0, 0, 1, 6, 0, 0, 9, 3, 0, 12, 0, 0, 0, 0];
    let parked = [1, 0, 1, 0, 1, 0, 0, 1, 0, 6, 0, 0, 9, 6, 0, 0, 9, 10, 0, 1, 3, 0, 15];
    let refresh = [1, 0, 2, 3, 1, 0, 0, 1, 0, 12, 0, 1, 0, 6, 0, 2, 9, 13, 0, 0, 0];
    let later: Vec<u8> = (0..5).flat_map(|kind| [4, 5, kind, 1, 0, kind, 0, 0, 0]).collect();
    // A drain with a server and a time, then a node that has come back; pauses and hours around messages.
    let drained = [16, 9, 1, 0, 1, 0, 0, 1, 0, 6, 0, 0, 9];
    let paused = [18, 0, 0, 6, 0, 0, 9, 17, 0, 6, 0, 1, 9, 17, 0, 6, 0, 2, 9, 18, 0, 0, 17, 0];
    let raw = [0, 0, 11, 6, 0x82, 4, 0, 1, 0, 0, 0, 11, 2, 0xC0, 0, 10, 0];
    vec![
        ("plain", plain.to_vec()),
        ("steady", [&plain[..], &steady].concat()),
        ("frames", frames.to_vec()),
        ("frames-steady", [&frames[..], &steady].concat()),
        ("frames-later", [&frames[..], &later, &steady].concat()),
        ("parked", parked.to_vec()),
        ("refresh", refresh.to_vec()),
        ("drained", [&plain[..], &drained, &steady].concat()),
        ("frames-drained", [&frames[..], &drained].concat()),
        ("paused", [&plain[..], &paused, &steady].concat()),
        ("frames-paused", [&frames[..], &paused, &steady].concat()),
        ("raw", raw.to_vec()),
    ]
}

fn headers() -> Seeds {
    let header = |command: u8, family: u8, body: &[u8]| {
        let length = (body.len() as u16).to_be_bytes();
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        [&signature[..], &[0x20 | command, family], &length, body].concat()
    };
    let four = [192, 0, 2, 1, 127, 0, 0, 1, 0x30, 0x39, 0x07, 0x5B];
    let six = [&[0x20; 32][..], &[0x30, 0x39, 0x07, 0x5B]].concat();
    let field = [&four[..], &[4, 0, 3, 1, 2, 3]].concat();
    // A checksum that is wrong: a right one ends with the first mutation.
    let checksum = [&four[..], &[3, 0, 4, 1, 2, 3, 4]].concat();
    vec![
        ("local", header(0, 0, &[])),
        ("tcp4", header(1, 0x11, &four)),
        ("tcp6", header(1, 0x21, &six)),
        ("unix", header(1, 0x31, &[b'a'; 216])),
        ("unspecified", header(1, 0, &[1, 2, 3])),
        ("field", header(1, 0x11, &field)),
        ("checksum", header(1, 0x11, &checksum)),
    ]
}
