//! The few MQTT 3.1.1 packets of a plain device, by hand: what a generator must not spend its time on.

use anyhow::{bail, ensure};

/// A packet from the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// The return code.
    ConnAck(u8),
    /// The return code of the only filter.
    SubAck(u8),
    /// `packet_id` is 0 for QoS 0.
    Publish {
        packet_id: u16,
        payload: &'a [u8],
    },
    PingResp,
}

/// CONNECT.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    pub client_id: &'a str,
    pub user: &'a str,
    pub password: &'a str,
    pub clean_session: bool,
    pub keep_alive_s: u16,
}

/// Appends CONNECT.
pub fn connect(connect: Connect<'_>, out: &mut Vec<u8>) {
    let mut body = Vec::with_capacity(128);
    text("MQTT", &mut body);
    let flags = 0xC0 | u8::from(connect.clean_session) << 1;
    body.extend_from_slice(&[4, flags]);
    body.extend_from_slice(&connect.keep_alive_s.to_be_bytes());
    text(connect.client_id, &mut body);
    text(connect.user, &mut body);
    text(connect.password, &mut body);
    packet(0x10, &body, out);
}

/// Appends SUBSCRIBE of one filter with QoS 1.
pub fn subscribe(filter: &str, out: &mut Vec<u8>) {
    let mut body = vec![0, 1];
    text(filter, &mut body);
    body.push(1);
    packet(0x82, &body, out);
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
pub fn parse(bytes: &[u8]) -> anyhow::Result<Option<(Incoming<'_>, usize)>> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let Some((remaining, header)) = varint(&bytes[1..])? else { return Ok(None) };
    let end = 1 + header + remaining;
    if bytes.len() < end {
        return Ok(None);
    }
    let body = &bytes[1 + header..end];
    let incoming = match (first >> 4, body) {
        (2, [_, code]) => Incoming::ConnAck(*code),
        (9, [_, _, code]) => Incoming::SubAck(*code),
        (3, body) => publish(first, body)?,
        (13, []) => Incoming::PingResp,
        (kind, _) => bail!("packet type {kind} of {remaining} bytes was not expected"),
    };
    Ok(Some((incoming, end)))
}

fn publish(first: u8, body: &[u8]) -> anyhow::Result<Incoming<'_>> {
    let topic = body.first_chunk::<2>().map(|length| 2 + usize::from(u16::from_be_bytes(*length)));
    let rest = topic.and_then(|topic| body.get(topic..));
    match (first & 0x06, rest) {
        (0, Some(payload)) => Ok(Incoming::Publish { packet_id: 0, payload }),
        (2, Some([high, low, payload @ ..])) => {
            Ok(Incoming::Publish { packet_id: u16::from_be_bytes([*high, *low]), payload })
        }
        _ => bail!("a PUBLISH that cannot be read"),
    }
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

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use carillon_wire::mqtt::{Ack, Decoder, Packet, Publish, Qos, SubAck, Version, encode};

    use super::*;

    #[test]
    fn a_strict_server_reads_what_we_write() {
        let mut out = Vec::new();
        let ours = Connect {
            client_id: "d",
            user: "d",
            password: "s",
            clean_session: true,
            keep_alive_s: 300,
        };
        connect(ours, &mut out);
        subscribe("push", &mut out);
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
        assert_eq!((connect.version, connect.keep_alive_s), (Version::V311, 300));
        assert_eq!(connect.password.as_deref(), Some(b"s".as_slice()));
        let Packet::Subscribe(subscribe) = &packets[1] else { panic!("{packets:?}") };
        assert_eq!(subscribe.filters, [("push".to_owned(), Qos::AtLeastOnce)]);
        assert_eq!(packets[2], Packet::PubAck(Ack { packet_id: 7, reason: 0 }));
        assert_eq!(packets.len(), 5);
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
            Packet::PingResp,
        ];
        let mut bytes = BytesMut::new();
        sent.iter().for_each(|packet| encode(Version::V311, packet, &mut bytes).unwrap());
        let long = vec![7; 200];
        let expected = [
            Incoming::ConnAck(0),
            Incoming::SubAck(1),
            Incoming::Publish { packet_id: 0, payload: b"x" },
            Incoming::Publish { packet_id: 300, payload: &long },
            Incoming::PingResp,
        ];
        let mut at = 0;
        for expected in expected {
            let whole = (at..=bytes.len()).find(|end| parse(&bytes[at..*end]).unwrap().is_some());
            let (incoming, length) = parse(&bytes[at..whole.unwrap()]).unwrap().unwrap();
            assert_eq!(incoming, expected);
            at += length;
        }
        assert_eq!(at, bytes.len());
    }
}
