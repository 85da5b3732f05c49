//! Valid MQTT packets: every one comes back as it was, however the stream is cut.

#[path = "support/packets.rs"]
mod packets;

use bytes::{Bytes, BytesMut};
use carillon_wire::mqtt::{
    ConnAck, Decoder, Disconnect, Error, Packet, PublishHead, Qos, SubAck, Version, encode,
    encode_publish, publish_bytes,
};
use packets::{BYTES_MAX, bytes_of, connect, connected_server, from_client, from_server};
use tokio_util::codec::Decoder as _;

const VERSIONS: [Version; 2] = [Version::V311, Version::V5];

/// All that a client sends, CONNECT first, and the decoder that reads it; then the server's side.
fn streams(version: Version) -> [(Decoder, Vec<Packet>); 2] {
    let client = std::iter::once(connect(version)).chain(from_client(version)).collect();
    [
        (Decoder::server(BYTES_MAX), client),
        (Decoder::client(version, BYTES_MAX), from_server(version)),
    ]
}

#[test]
fn every_packet_comes_back_as_it_was() {
    for version in VERSIONS {
        for (mut decoder, packets) in streams(version) {
            for packet in packets {
                let mut buf = BytesMut::from(&bytes_of(version, &packet)[..]);
                let decoded =
                    decoder.decode(&mut buf).unwrap_or_else(|error| panic!("{packet:?}: {error}"));
                assert_eq!(decoded, Some(packet));
                assert_eq!((buf.len(), buf.capacity()), (0, 0), "an empty buffer keeps no room");
            }
            assert_eq!(decoder.version(), Some(version));
        }
    }
}

#[test]
fn a_packet_cut_at_any_byte_waits_and_then_is_the_same() {
    for version in VERSIONS {
        for (mut decoder, packets) in streams(version) {
            for packet in packets {
                let bytes = bytes_of(version, &packet);
                let before = decoder.clone();
                for cut in 0..bytes.len().min(300) {
                    decoder = before.clone();
                    let mut buf = BytesMut::from(&bytes[..cut]);
                    let capacity = buf.capacity();
                    assert_eq!(decoder.decode(&mut buf), Ok(None), "{packet:?} cut at {cut}");
                    assert!(buf.capacity() <= capacity, "waiting reserves nothing");
                    buf.extend_from_slice(&bytes[cut..]);
                    assert_eq!(decoder.decode(&mut buf).as_ref(), Ok(&Some(packet.clone())));
                }
            }
        }
    }
}

#[test]
fn packets_glued_together_come_out_one_by_one() {
    for version in VERSIONS {
        for (mut decoder, packets) in streams(version) {
            let mut buf = BytesMut::new();
            for packet in &packets {
                encode(version, packet, &mut buf).expect("a packet that can be encoded");
            }
            let mut decoded = Vec::new();
            while let Some(packet) = decoder.decode(&mut buf).expect("valid") {
                decoded.push(packet);
            }
            assert_eq!(decoded, packets);
            assert_eq!(buf.capacity(), 0);
        }
    }
}

#[test]
fn another_codec_reads_what_we_write() {
    use rmqtt_codec::{v3, v5};
    for version in VERSIONS {
        for (_, packets) in streams(version) {
            for packet in packets {
                let mut buf = BytesMut::from(&bytes_of(version, &packet)[..]);
                let is_read = match version {
                    Version::V311 => {
                        v3::Codec::new(0).decode(&mut buf).map(|packet| packet.is_some()).ok()
                    }
                    Version::V5 => {
                        v5::Codec::new(0, 0).decode(&mut buf).map(|packet| packet.is_some()).ok()
                    }
                };
                assert_eq!((is_read, buf.len()), (Some(true), 0), "{packet:?}");
            }
        }
    }
}

#[test]
fn a_publish_is_as_long_as_announced() {
    let heads = VERSIONS.into_iter().flat_map(|version| {
        let plain = PublishHead {
            version,
            dup: false,
            qos: Qos::AtMostOnce,
            retain: false,
            topic: "down",
            packet_id: 0,
            topic_alias: None,
            user: &[],
            message_expiry_s: None,
        };
        let full = PublishHead {
            qos: Qos::AtLeastOnce,
            packet_id: 1,
            topic_alias: Some(1),
            user: &[("id", "x"), ("queue", "topic/news")],
            message_expiry_s: Some(60),
            ..plain
        };
        [plain, full]
    });
    for head in heads {
        for payload_bytes in
            [0, 1, 100, 117, 118, 119, 127, 128, 16_370, 16_380, 16_384, 131_072, 2_097_152]
        {
            let mut out = BytesMut::new();
            encode_publish(&head, &vec![0; payload_bytes], &mut out);
            assert_eq!(out.len(), publish_bytes(&head, payload_bytes));
            let mut decoder = Decoder::client(head.version, 4 << 20);
            let Ok(Some(Packet::Publish(publish))) = decoder.decode(&mut out) else {
                panic!("a whole PUBLISH")
            };
            assert_eq!(publish.payload.len(), payload_bytes);
        }
    }
}

#[test]
fn refusals_are_told_in_the_nearest_words_of_each_version() {
    let code = |version, reason| {
        let ack = ConnAck { reason, ..ConnAck::default() };
        bytes_of(version, &Packet::ConnAck(Box::new(ack)))[3]
    };
    let rows = [
        (0x00, 0),
        (0x84, 1),
        (0x85, 2),
        (0x89, 3),
        (0x8B, 3),
        (0x9F, 3),
        (0x86, 4),
        (0x87, 5),
        (0x8A, 5),
    ];
    for (reason, return_code) in rows {
        assert_eq!(code(Version::V311, reason), return_code, "{reason:#x}");
    }
    assert_eq!(code(Version::V5, 0x89), 0x89);
    assert_eq!(code(Version::V5, 0x8B), 0x88, "CONNACK has no shutting down");

    let suback = |version, reasons: &[u8]| {
        bytes_of(version, &Packet::SubAck(SubAck { packet_id: 1, reasons: reasons.to_vec() }))
    };
    assert_eq!(suback(Version::V311, &[1, 0x9E, 0xA2]), [0x90, 5, 0, 1, 1, 0x80, 0x80]);
    assert_eq!(suback(Version::V5, &[1, 0x9E, 0xA2]), [0x90, 6, 0, 1, 0, 1, 0x9E, 0xA2]);
}

#[test]
fn what_cannot_be_encoded_is_an_error_and_leaves_no_bytes() {
    let packets = [
        (Version::V311, Packet::Auth),
        (Version::V5, Packet::PubAck(carillon_wire::mqtt::Ack { packet_id: 0, reason: 0 })),
        (Version::V5, Packet::PubAck(carillon_wire::mqtt::Ack { packet_id: 1, reason: 0x42 })),
        (Version::V5, Packet::SubAck(SubAck { packet_id: 1, reasons: vec![] })),
        (Version::V5, Packet::SubAck(SubAck { packet_id: 1, reasons: vec![3] })),
        (Version::V5, Packet::Disconnect(Disconnect { reason: 1, ..Disconnect::default() })),
        (
            Version::V5,
            Packet::Disconnect(Disconnect {
                reason: 0x80,
                reason_string: Some("x".repeat(70_000)),
                ..Disconnect::default()
            }),
        ),
        (
            Version::V5,
            Packet::Publish(carillon_wire::mqtt::Publish {
                topic: "t".repeat(70_000),
                payload: Bytes::new(),
                ..Default::default()
            }),
        ),
    ];
    for (version, packet) in packets {
        let mut out = BytesMut::from(&b"before"[..]);
        assert!(
            matches!(encode(version, &packet, &mut out), Err(Error::Unencodable(_))),
            "{packet:?}"
        );
        assert_eq!(&out[..], b"before");
    }
}

#[test]
fn a_connect_with_a_will_is_read_and_the_will_is_dropped() {
    let v311 = b"\x10\x15\x00\x04MQTT\x04\x36\x00\x3C\x00\x01c\x00\x02wt\x00\x02wm";
    let v5 =
        b"\x10\x1C\x00\x04MQTT\x05\x36\x00\x3C\x00\x00\x01c\x05\x18\0\0\0\x05\x00\x02wt\x00\x02wm";
    for bytes in [&v311[..], v5] {
        let mut buf = BytesMut::from(bytes);
        let Ok(Some(Packet::Connect(connect))) = Decoder::server(1024).decode(&mut buf) else {
            panic!("a CONNECT")
        };
        assert!(connect.has_will && connect.clean_start && connect.session_expiry_s == 0);
    }
}

#[test]
fn a_password_does_not_reach_a_log() {
    assert!(!format!("{:?}", connect(Version::V5)).contains("secret"));
}

#[test]
fn the_maximum_counts_the_whole_packet_and_can_be_raised() {
    let publish = &from_client(Version::V5)[0];
    let bytes = bytes_of(Version::V5, publish);
    let mut decoder = connected_server(Version::V5);
    decoder.set_max_packet_bytes(bytes.len() as u32 - 1);
    let too_large =
        Error::PacketTooLarge { bytes: bytes.len() as u32, max: bytes.len() as u32 - 1 };
    assert_eq!(
        decoder.decode(&mut BytesMut::from(&bytes[..2])),
        Err(too_large),
        "known from the header"
    );
    decoder.set_max_packet_bytes(bytes.len() as u32);
    assert!(matches!(decoder.decode(&mut BytesMut::from(&bytes[..])), Ok(Some(_))));
}
