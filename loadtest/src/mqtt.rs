//! The few MQTT packets of a device and of a publisher, by hand: what a generator must not spend its time on.

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// 3.1.1 or 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    #[default]
    V311,
    V5,
}

/// A packet from the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    ConnAck {
        /// The return or reason code.
        code: u8,
        /// When a device that was refused may come back; MQTT 5 only.
        retry_after_ms: Option<u64>,
    },
    /// The code of the only filter.
    SubAck(u8),
    /// `packet_id` is 0 for QoS 0.
    Publish {
        packet_id: u16,
        payload: &'a [u8],
    },
    PubAck {
        packet_id: u16,
        code: u8,
    },
    PingResp,
    /// The reason code; MQTT 5 only.
    Disconnect(u8),
}

/// CONNECT.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    pub version: Version,
    pub client_id: &'a str,
    /// User name and password.
    pub user: Option<(&'a str, &'a str)>,
    pub keep_alive_s: u16,
}

/// Appends CONNECT with a clean start and no session to keep.
pub fn connect(connect: Connect<'_>, out: &mut Vec<u8>) {
    let mut body = Vec::with_capacity(128);
    text("MQTT", &mut body);
    let flags = if connect.user.is_some() { 0xC2 } else { 0x02 };
    body.push(if connect.version == Version::V5 { 5 } else { 4 });
    body.push(flags);
    body.extend_from_slice(&connect.keep_alive_s.to_be_bytes());
    no_properties(connect.version, &mut body);
    text(connect.client_id, &mut body);
    if let Some((user, password)) = connect.user {
        text(user, &mut body);
        text(password, &mut body);
    }
    packet(0x10, &body, out);
}

/// Appends SUBSCRIBE of one filter.
pub fn subscribe(version: Version, filter: &str, qos: u8, out: &mut Vec<u8>) {
    let mut body = vec![0, 1];
    no_properties(version, &mut body);
    text(filter, &mut body);
    body.push(qos);
    packet(0x82, &body, out);
}

/// Appends PUBLISH: QoS 0 if `packet_id` is 0, else QoS 1.
pub fn publish(version: Version, topic: &str, packet_id: u16, payload: &[u8], out: &mut Vec<u8>) {
    let mut body = Vec::with_capacity(topic.len() + payload.len() + 5);
    text(topic, &mut body);
    if packet_id != 0 {
        body.extend_from_slice(&packet_id.to_be_bytes());
    }
    no_properties(version, &mut body);
    body.extend_from_slice(payload);
    packet(if packet_id == 0 { 0x30 } else { 0x32 }, &body, out);
}

/// Appends PUBACK.
pub fn puback(packet_id: u16, out: &mut Vec<u8>) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[0x40, 2, high, low]);
}

/// PINGREQ.
pub const PINGREQ: [u8; 2] = [0xC0, 0];
/// DISCONNECT.
pub const DISCONNECT: [u8; 2] = [0xE0, 0];

/// The first packet in `bytes` and its length; `None` until it is whole.
pub fn parse(version: Version, bytes: &[u8]) -> anyhow::Result<Option<(Incoming<'_>, usize)>> {
    let Some((first, body, end)) = whole(bytes)? else { return Ok(None) };
    let incoming = match (first >> 4, body) {
        (2, [_, code, rest @ ..]) => {
            Incoming::ConnAck { code: *code, retry_after_ms: retry_after_ms(rest) }
        }
        (9, [_, _, .., code]) => Incoming::SubAck(*code),
        (3, body) => incoming_publish(version, first, body)?,
        (4, [high, low, rest @ ..]) => Incoming::PubAck {
            packet_id: u16::from_be_bytes([*high, *low]),
            code: rest.first().copied().unwrap_or(0),
        },
        (13, []) => Incoming::PingResp,
        (14, rest) => Incoming::Disconnect(rest.first().copied().unwrap_or(0)),
        (kind, _) => bail!("packet type {kind} of {} bytes was not expected", body.len()),
    };
    Ok(Some((incoming, end)))
}

/// The first byte, the body and the length of the first packet, from whichever side; `None` until it is whole.
pub fn whole(bytes: &[u8]) -> anyhow::Result<Option<(u8, &[u8], usize)>> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let Some((remaining, header)) = varint(&bytes[1..])? else { return Ok(None) };
    let end = 1 + header + remaining;
    Ok(bytes.get(1 + header..end).map(|body| (first, body, end)))
}

/// The value of the user property `retry-after-ms`, wherever it stands.
fn retry_after_ms(properties: &[u8]) -> Option<u64> {
    let at = properties.windows(RETRY_AFTER_MS.len()).position(|part| part == RETRY_AFTER_MS)?;
    let (length, value) = properties[at + RETRY_AFTER_MS.len()..].split_first_chunk::<2>()?;
    let value = value.get(..usize::from(u16::from_be_bytes(*length)))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn incoming_publish(version: Version, first: u8, body: &[u8]) -> anyhow::Result<Incoming<'_>> {
    let topic = body.first_chunk::<2>().map(|length| 2 + usize::from(u16::from_be_bytes(*length)));
    let rest = topic.and_then(|topic| body.get(topic..));
    let (packet_id, rest) = match (first & 0x06, rest) {
        (0, Some(rest)) => (0, rest),
        (2, Some([high, low, rest @ ..])) => (u16::from_be_bytes([*high, *low]), rest),
        _ => bail!("a PUBLISH that cannot be read"),
    };
    let payload = match version {
        Version::V311 => rest,
        Version::V5 => {
            let (length, header) = varint(rest)?.context("a PUBLISH without properties")?;
            rest.get(header + length..).context("properties that are cut off")?
        }
    };
    Ok(Incoming::Publish { packet_id, payload })
}

fn varint(bytes: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((value, at + 1)));
        }
    }
    ensure!(bytes.len() < 4, "a length of more than four bytes");
    Ok(None)
}

fn no_properties(version: Version, out: &mut Vec<u8>) {
    if version == Version::V5 {
        out.push(0);
    }
}

fn packet(first: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    let mut left = body.len();
    while left > 0x7F {
        out.push((left & 0x7F) as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
    out.extend_from_slice(body);
}

fn text(text: &str, out: &mut Vec<u8>) {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
}

const RETRY_AFTER_MS: &[u8] = b"retry-after-ms";

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use carillon_wire::mqtt;
    use carillon_wire::mqtt::{Ack, ConnAck, Decoder, Packet, Publish, Qos, SubAck, encode};

    use super::*;

    const BOTH: [(Version, mqtt::Version); 2] =
        [(Version::V311, mqtt::Version::V311), (Version::V5, mqtt::Version::V5)];

    #[test]
    fn a_strict_server_reads_what_we_write() {
        for (version, theirs) in BOTH {
            let mut out = Vec::new();
            let user = Some(("d", "s"));
            connect(Connect { version, client_id: "d", user, keep_alive_s: 300 }, &mut out);
            subscribe(version, "push", 1, &mut out);
            publish(version, "up", 9, &[7; 200], &mut out);
            puback(7, &mut out);
            out.extend_from_slice(&PINGREQ);
            out.extend_from_slice(&DISCONNECT);
            let mut buf = BytesMut::from(out.as_slice());
            let mut decoder = Decoder::server(1 << 16);
            let mut packets = Vec::new();
            while let Some(packet) = decoder.decode(&mut buf).unwrap() {
                packets.push(packet);
            }
            let Packet::Connect(connect) = &packets[0] else { panic!("{packets:?}") };
            assert_eq!((connect.version, connect.keep_alive_s), (theirs, 300));
            assert_eq!(connect.password.as_deref(), Some(b"s".as_slice()));
            let Packet::Subscribe(subscribe) = &packets[1] else { panic!("{packets:?}") };
            assert_eq!(subscribe.filters, [("push".to_owned(), Qos::AtLeastOnce)]);
            let Packet::Publish(publish) = &packets[2] else { panic!("{packets:?}") };
            assert_eq!((publish.topic.as_str(), publish.packet_id), ("up", 9));
            assert_eq!(publish.payload.as_ref(), [7; 200]);
            assert_eq!(packets[3], Packet::PubAck(Ack { packet_id: 7, reason: 0 }));
            assert_eq!(packets.len(), 6);
        }
    }

    #[test]
    fn we_read_what_a_server_writes_in_any_pieces() {
        let publish = |packet_id, payload: Vec<u8>| {
            let qos = if packet_id == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
            let (topic, payload) = ("push".to_owned(), payload.into());
            Packet::Publish(Publish { qos, topic, packet_id, payload, ..Publish::default() })
        };
        let sent = [
            Packet::ConnAck(Box::default()),
            Packet::SubAck(SubAck { packet_id: 1, reasons: vec![1] }),
            publish(0, b"x".to_vec()),
            publish(300, vec![7; 200]),
            Packet::PubAck(Ack { packet_id: 5, reason: 0 }),
            Packet::PingResp,
        ];
        let long = vec![7; 200];
        for (version, theirs) in BOTH {
            let mut bytes = BytesMut::new();
            sent.iter().for_each(|packet| encode(theirs, packet, &mut bytes).unwrap());
            let expected = [
                Incoming::ConnAck { code: 0, retry_after_ms: None },
                Incoming::SubAck(1),
                Incoming::Publish { packet_id: 0, payload: b"x" },
                Incoming::Publish { packet_id: 300, payload: &long },
                Incoming::PubAck { packet_id: 5, code: 0 },
                Incoming::PingResp,
            ];
            let mut at = 0;
            for expected in expected {
                let first =
                    |end: &usize| parse(version, &bytes[at..*end]).is_ok_and(|p| p.is_some());
                let end = (at..=bytes.len()).find(first).unwrap();
                let (incoming, length) = parse(version, &bytes[at..end]).unwrap().unwrap();
                assert_eq!(incoming, expected);
                at += length;
            }
            assert_eq!(at, bytes.len());
        }
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let user =
            vec![("x".to_owned(), "y".to_owned()), ("retry-after-ms".to_owned(), "750".to_owned())];
        let connack =
            Packet::ConnAck(Box::new(ConnAck { reason: 0x9F, user, ..ConnAck::default() }));
        let mut bytes = BytesMut::new();
        encode(mqtt::Version::V5, &connack, &mut bytes).unwrap();
        let (incoming, _) = parse(Version::V5, &bytes).unwrap().unwrap();
        assert_eq!(incoming, Incoming::ConnAck { code: 0x9F, retry_after_ms: Some(750) });
    }
}
