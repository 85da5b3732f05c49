//! What other brokers accept, misread or crash on: each row is refused, with the right reason code.

#[path = "support/packets.rs"]
#[allow(dead_code)]
mod packets;

use bytes::BytesMut;
use carillon_wire::limits;
use carillon_wire::mqtt::{Decoder, Error, Version};
use packets::{BYTES_MAX, connected_server};

/// A packet of this first byte and body, with its length filled in.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    while length > 0x7F {
        out.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(body);
    out
}

fn refusal(mut decoder: Decoder, bytes: &[u8]) -> Error {
    let mut buf = BytesMut::from(bytes);
    match decoder.decode(&mut buf) {
        Err(error) => error,
        Ok(packet) => panic!("accepted {bytes:02x?} as {packet:?}"),
    }
}

/// A row of the tables below: reason code, first byte and body in hex, name.
fn rows(table: &'static str) -> impl Iterator<Item = (u8, u8, Vec<u8>, &'static str)> {
    table.lines().skip(1).map(|line| {
        let cells: Vec<&str> = line.splitn(4, char::is_whitespace).collect();
        let hex = |text: &str| u8::from_str_radix(text, 16).expect("two hex digits");
        let digits = cells[2].trim_matches('-');
        let body = (0..digits.len() / 2).map(|at| hex(&digits[2 * at..2 * at + 2])).collect();
        (hex(cells[0]), hex(cells[1]), body, cells[3].trim())
    })
}

fn check(version: Version, first: u8, body: &[u8], reason: u8, name: &str) {
    let error = refusal(connected_server(version), &packet(first, body));
    assert_eq!(error.reason(), reason, "{name} ({version:?}): {error}");
}

#[test]
fn malformed_packets_are_refused_with_the_right_reason() {
    let tables =
        [(Version::V311, BOTH), (Version::V5, BOTH), (Version::V311, V311), (Version::V5, V5)];
    for (version, table) in tables {
        for (reason, first, body, name) in rows(table) {
            check(version, first, &body, reason, name);
        }
    }
}

#[test]
fn malformed_connects_are_refused_with_the_right_reason() {
    for (reason, first, body, name) in rows(CONNECTS) {
        let error = refusal(Decoder::server(BYTES_MAX), &packet(first, &body));
        assert_eq!(error.reason(), reason, "{name}: {error}");
    }
}

#[test]
fn too_many_filters_are_refused() {
    let filters = [&[0, 1][..], &[0, 1, b'a', 0].repeat(limits::FILTERS_MAX + 1)].concat();
    check(Version::V311, 0x82, &filters, 0x97, "1,025 filters");
}

#[test]
fn too_many_user_properties_are_refused() {
    let publish = |count: usize, bytes: usize| {
        let value = [&(bytes as u16).to_be_bytes()[..], &vec![b'v'; bytes]].concat();
        let users = [&[0x26, 0, 1, b'n'][..], &value].concat().repeat(count);
        [&b"\x00\x01t"[..], &packet(0, &users)[1..]].concat()
    };
    check(Version::V5, 0x30, &publish(33, 1), 0x97, "33 user properties");
    check(Version::V5, 0x30, &publish(5, 1_000), 0x97, "5,005 bytes of user properties");
}

#[test]
fn user_properties_of_a_connect_and_its_will_count_together() {
    let users = [0x26, 0, 0, 0, 0].repeat(17);
    let block = &packet(0, &users)[1..];
    let body = [b"\x00\x04MQTT\x05\x06\x00\x3C", block, b"\x00\x01c", block, b"\x00\x01t\x00\x00"]
        .concat();
    let error = refusal(Decoder::server(BYTES_MAX), &packet(0x10, &body));
    assert_eq!(error, Error::Limit("user properties"));
}

#[test]
fn a_stranger_is_refused_at_the_first_byte_that_shows_it() {
    let rows: [(&str, &[u8], u8); 6] = [
        ("a TLS handshake", &[0x16], 0x81),
        ("an HTTP request", b"G", 0x82),
        ("PUBLISH before CONNECT", &[0x30], 0x82),
        ("PINGREQ before CONNECT", &[0xC0], 0x82),
        ("a length of five bytes", &[0x10, 0x80, 0x80, 0x80, 0x80], 0x81),
        ("a packet that is too long", &[0x10, 0xFF, 0xFF, 0x7F], 0x95),
    ];
    for (name, bytes, reason) in rows {
        assert_eq!(refusal(Decoder::server(4_096), bytes).reason(), reason, "{name}");
    }
}

#[test]
fn a_client_refuses_what_only_a_client_may_send() {
    for version in [Version::V311, Version::V5] {
        for first in [0x10, 0x82, 0xA2, 0xC0] {
            let error = refusal(Decoder::client(version, BYTES_MAX), &[first, 0]);
            assert_eq!(error.reason(), 0x82, "{first:#x}");
        }
    }
    let rows: [(Version, u8, &[u8]); 9] = [
        (Version::V311, 0xE0, &[]),
        (Version::V311, 0x20, &[2, 0]),
        (Version::V311, 0x20, &[1, 5]),
        (Version::V311, 0x20, &[0, 6]),
        (Version::V311, 0x90, &[0, 1, 3]),
        (Version::V311, 0x90, &[0, 1]),
        (Version::V5, 0x20, &[0, 0]),
        (Version::V5, 0x20, &[0, 0, 3, 0x21, 0, 0]),
        (Version::V5, 0xE0, &[0, 5, 0x11, 0, 0, 0, 0]),
    ];
    for (version, first, body) in rows {
        refusal(Decoder::client(version, BYTES_MAX), &packet(first, body));
    }
}

const BOTH: &str = "
81 00 -                          packet type 0
82 10 00044d5154540402003c000163 a second CONNECT
82 20 0000                       CONNACK from a client
82 90 000100                     SUBACK from a client
82 b0 0001                       UNSUBACK from a client
82 d0 -                          PINGRESP from a client
81 41 0001                       reserved flags of PUBACK
81 60 0001                       reserved flags of PUBREL
81 80 00010000016100             reserved flags of SUBSCRIBE
81 a0 000100000161               reserved flags of UNSUBSCRIBE
81 c8 -                          reserved flags of PINGREQ
81 e1 -                          reserved flags of DISCONNECT
81 c0 00                         a PINGREQ with a body
81 36 000174000100               PUBLISH with QoS 3
81 38 00017400                   PUBLISH with DUP and QoS 0
81 32 000174000000               PUBLISH with packet id 0
81 32 00017400                   PUBLISH without a packet id
90 30 0003612f2b00               PUBLISH to a wildcard +
90 30 00012300                   PUBLISH to a wildcard #
81 30 0002610000                 PUBLISH to a topic with NUL
81 30 0002c32800                 PUBLISH to a topic that is not UTF-8
81 30 0003eda08000               PUBLISH to a topic with a surrogate
81 30 0009616263                 PUBLISH to a topic beyond the packet
81 30 -                          PUBLISH without a body
81 40 0000                       PUBACK with packet id 0
81 40 01                         PUBACK with one byte
81 40 -                          PUBACK without a body
81 82 00000000016100             SUBSCRIBE with packet id 0
81 a2 000000000161               UNSUBSCRIBE with packet id 0
";

const V311: &str = "
81 f0 -              AUTH
90 30 0000           an empty topic
81 40 000100         PUBACK with a reason
82 82 0001           SUBSCRIBE without a filter
82 82 0001000000     SUBSCRIBE to an empty filter
81 82 000100016103   SUBSCRIBE with QoS 3
81 82 000100016104   SUBSCRIBE with reserved bits
81 82 0001000161     SUBSCRIBE without options
81 82 00010002610000 SUBSCRIBE to a filter with NUL
81 82 00010001ff00   SUBSCRIBE to a filter that is not UTF-8
82 a2 0001           UNSUBSCRIBE without a filter
82 a2 00010000       UNSUBSCRIBE from an empty filter
81 e0 00             DISCONNECT with a body
";

const V5: &str = "
82 30 000000                           an empty topic without an alias
94 30 00017403230000                   topic alias 0
82 30 00017406230001230001             a topic alias twice
81 30 00017403210001                   a property of another packet
81 30 0001740100                       property 0
81 30 00017401ff                       property 255
81 30 00017409230001                   a property block beyond the packet
81 30 00017402230001                   a property beyond its block
81 30 0001748080808000                 a block length of five bytes
81 30 0001748000                       a block length in a longer form
82 30 000174020102                     payload format 2
90 30 0001740408000123                 a response topic with a wildcard
82 30 000174020b01                     a subscription id from a client
81 30 00017406260001ff0000             a user property that is not UTF-8
81 40 000142                           PUBACK with an unknown reason
81 62 000187                           PUBREL with a reason of PUBACK
81 40 0001000000                       PUBACK with bytes behind its properties
82 40 000100061f00001f0000             PUBACK with two reason strings
82 82 000100                           SUBSCRIBE without a filter
81 82 0001                             SUBSCRIBE without properties
82 82 000100000000                     SUBSCRIBE to an empty filter
81 82 00010000016103                   SUBSCRIBE with QoS 3
81 82 00010000016140                   SUBSCRIBE with reserved bits
82 82 00010000016130                   SUBSCRIBE with retain handling 3
82 82 000100000a2473686172652f672f6104 SUBSCRIBE shared with No Local
82 82 0001020b0000016100               subscription id 0
81 82 0001060b808080800100016100       a subscription id of five bytes
82 82 0001040b010b0100016100           two subscription ids
82 a2 000100                           UNSUBSCRIBE without a filter
81 e0 42                               DISCONNECT with an unknown reason
82 e0 00041c000173                     DISCONNECT with a server reference
81 e0 000000                           DISCONNECT with bytes behind
81 f0 42                               AUTH with an unknown reason
81 f0 0003210001                       AUTH with a property of another packet
";

const CONNECTS: &str = "
84 10 00064d51497364700302003c000163           MQTT 3.1
84 10 00044d5154540302003c000163               level 3 under the new name
84 10 00044d5154540602003c00000163             level 6
84 10 00044d5154548402003c000163               a bridge's level
84 10 0004485454500402003c000163               another protocol
81 10 -                                        no body
81 10 ffff4d51545404                           a name beyond the packet
81 10 00044d5154540403003c000163               the reserved flag
81 10 00044d515454041e003c0001630001740000     a Will of QoS 3
81 10 00044d515454040a003c000163               QoS of no Will
81 10 00044d5154540522003c00000163             retain of no Will
90 10 00044d5154540406003c0001630001230000     a Will to a wildcard
90 10 00044d5154540406003c00016300000000       a Will to nothing
81 10 00044d5154540406003c000163               a Will that is missing
81 10 00044d5154540442003c000163000170         a password without a name in 3.1.1
85 10 00044d5154540400003c0000                 an empty client id that wants a session
85 10 00044d5154540500003c000000               the same in 5
81 10 00044d5154540402003c00026300             a client id with NUL
81 10 00044d5154540402003c0001ff               a client id that is not UTF-8
81 10 00044d5154540482003c000163000100         a user name with NUL
81 10 00044d5154540402003c00016300             bytes behind
81 10 00044d5154540402003c                     no client id
82 10 00044d5154540502003c03210000000163       receive maximum 0
82 10 00044d5154540502003c052700000000000163   maximum packet size 0
82 10 00044d5154540502003c06210001210001000163 a property twice
81 10 00044d5154540502003c03230001000163       a property of another packet
82 10 00044d5154540502003c03160000000163       data without a method
82 10 00044d5154540502003c021702000163         a flag of 2
";
