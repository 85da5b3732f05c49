//! One of every packet, in the shapes that come back equal from a round trip.

use bytes::{Bytes, BytesMut};
use carillon_wire::mqtt::{
    Ack, ConnAck, Connect, Decoder, Disconnect, Packet, Publish, Qos, SubAck, Subscribe,
    Unsubscribe, Version, encode,
};

pub const BYTES_MAX: u32 = 1 << 20;

pub fn connect(version: Version) -> Packet {
    let base = Connect {
        version,
        clean_start: false,
        keep_alive_s: 300,
        client_id: "device-1".into(),
        username: Some("device-1".into()),
        password: Some(Bytes::from_static(b"\x00\xFFsecret")),
        session_expiry_s: u32::MAX,
        ..Connect::default()
    };
    Packet::Connect(Box::new(match version {
        Version::V311 => base,
        Version::V5 => Connect {
            session_expiry_s: 3_600,
            receive_max: 20,
            max_packet_bytes: Some(65_536),
            topic_alias_max: 4,
            auth_method: Some("m".into()),
            ..base
        },
    }))
}

/// What a client sends behind CONNECT.
pub fn from_client(version: Version) -> Vec<Packet> {
    let mut packets = both_ways(version);
    packets.extend([
        Packet::Subscribe(Subscribe {
            packet_id: 7,
            filters: vec![
                ("push".into(), Qos::AtLeastOnce),
                ("topic/+/älg".into(), Qos::ExactlyOnce),
            ],
            subscription_id: (version == Version::V5).then_some(268_435_455),
        }),
        Packet::Unsubscribe(Unsubscribe {
            packet_id: 65_535,
            filters: vec!["topic/a".into(), "b".into()],
        }),
        Packet::PingReq,
        Packet::Disconnect(Disconnect::default()),
    ]);
    if version == Version::V5 {
        packets.push(Packet::Disconnect(Disconnect {
            reason: 0x04,
            session_expiry_s: Some(0),
            reason_string: Some("bye".into()),
            ..Disconnect::default()
        }));
    }
    packets
}

/// What a server sends.
pub fn from_server(version: Version) -> Vec<Packet> {
    let mut packets = both_ways(version);
    let ack = |reason| ConnAck { reason, ..ConnAck::default() };
    packets.extend([
        Packet::ConnAck(Box::new(ConnAck { session_present: true, ..ConnAck::default() })),
        Packet::ConnAck(Box::new(ack(0x86))),
        Packet::SubAck(SubAck { packet_id: 7, reasons: vec![0, 1, 2, 0x80] }),
        Packet::PingResp,
    ]);
    packets.extend(match version {
        Version::V311 => vec![Packet::UnsubAck(SubAck { packet_id: 8, reasons: vec![] })],
        Version::V5 => from_server_v5(),
    });
    packets
}

fn from_server_v5() -> Vec<Packet> {
    vec![
        Packet::UnsubAck(SubAck { packet_id: 8, reasons: vec![0, 0x11] }),
        Packet::SubAck(SubAck { packet_id: 9, reasons: vec![0x87, 0x8F, 0x9E, 0xA2] }),
        Packet::Disconnect(Disconnect {
            reason: 0x9C,
            server_reference: Some("other:1883".into()),
            reason_string: Some("drain".into()),
            user: vec![("reconnect_after_ms".into(), "1500".into())],
            ..Disconnect::default()
        }),
        Packet::ConnAck(Box::new(ConnAck {
            session_expiry_s: Some(60),
            receive_max: Some(16),
            qos_max: Some(Qos::AtLeastOnce),
            max_packet_bytes: Some(135_168),
            topic_alias_max: Some(3),
            server_keep_alive_s: Some(240),
            reason_string: Some("why".into()),
            wildcards: false,
            shared: false,
            subscription_ids: false,
            retain: false,
            user: vec![("k".into(), "v".into()), ("k".into(), "w".into())],
            ..ConnAck::default()
        })),
    ]
}

fn both_ways(version: Version) -> Vec<Packet> {
    let ack = Ack { packet_id: 0x4321, reason: 0 };
    let plain =
        Publish { topic: "up".into(), payload: Bytes::from_static(b"hello"), ..Publish::default() };
    let full =
        Publish { dup: true, qos: Qos::AtLeastOnce, retain: true, packet_id: 1, ..plain.clone() };
    let long = Publish { payload: vec![b'x'; 20_000].into(), ..full.clone() };
    let twice = Publish { qos: Qos::ExactlyOnce, payload: Bytes::new(), ..full.clone() };
    let mut packets = vec![
        Packet::Publish(plain),
        Packet::Publish(full.clone()),
        Packet::Publish(long),
        Packet::Publish(twice),
        Packet::PubAck(ack),
        Packet::PubRec(ack),
        Packet::PubRel(ack),
        Packet::PubComp(ack),
    ];
    if version == Version::V5 {
        packets.extend([
            Packet::PubAck(Ack { reason: 0x87, ..ack }),
            Packet::PubRel(Ack { reason: 0x92, ..ack }),
            Packet::Publish(Publish {
                topic_alias: Some(9),
                topic: String::new(),
                user: vec![("id".into(), "x".into()), ("position".into(), "1:2".into())],
                message_expiry_s: Some(1),
                ..full
            }),
            Packet::Auth,
        ]);
    }
    packets
}

pub fn bytes_of(version: Version, packet: &Packet) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(version, packet, &mut out).expect("a packet that can be encoded");
    out.to_vec()
}

/// A server's decoder that has taken its CONNECT.
pub fn connected_server(version: Version) -> Decoder {
    let mut decoder = Decoder::server(BYTES_MAX);
    let mut buf = BytesMut::from(&bytes_of(version, &connect(version))[..]);
    decoder.decode(&mut buf).expect("valid").expect("whole");
    decoder
}
