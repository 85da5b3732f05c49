//! Encoding of PUBLISH: the hot path. Written by hand; allocates nothing but room in the output.

use bytes::{BufMut, BytesMut};

use super::packet::{Qos, Version};
use super::read::property;
use crate::limits::REMAINING_BYTES_MAX;

/// Everything of a PUBLISH but its payload. Properties are written for MQTT 5 only.
#[derive(Clone, Copy, Debug)]
pub struct PublishHead<'a> {
    /// The connection's version.
    pub version: Version,
    /// Sent before; not with QoS 0.
    pub dup: bool,
    /// Quality of service.
    pub qos: Qos,
    /// The retain flag.
    pub retain: bool,
    /// At most 65,535 bytes; empty only with a topic alias.
    pub topic: &'a str,
    /// 0 exactly with QoS 0.
    pub packet_id: u16,
    /// 1 or more.
    pub topic_alias: Option<u16>,
    /// User properties; each name and value at most 65,535 bytes.
    pub user: &'a [(&'a str, &'a str)],
    /// Seconds.
    pub message_expiry_s: Option<u32>,
}

/// Appends a PUBLISH to `out`.
///
/// # Panics
/// If the head breaks one of its field's rules, or the packet is longer than MQTT can say: the caller's error.
pub fn encode_publish(head: &PublishHead<'_>, payload: &[u8], out: &mut BytesMut) {
    assert!(
        (head.packet_id == 0) == (head.qos == Qos::AtMostOnce),
        "a packet id exactly above QoS 0"
    );
    assert!(!(head.dup && head.qos == Qos::AtMostOnce), "DUP only above QoS 0");
    assert!(head.topic_alias != Some(0), "topic aliases begin at 1");
    let properties_bytes = properties_bytes(head);
    let remaining = remaining_bytes(head, properties_bytes, payload.len());
    out.reserve(1 + varint_bytes(remaining) + remaining);
    let flags = u8::from(head.dup) << 3 | (head.qos as u8) << 1 | u8::from(head.retain);
    out.put_u8(0x30 | flags);
    put_varint(remaining, out);
    put_text(head.topic, out);
    if head.packet_id != 0 {
        out.put_u16(head.packet_id);
    }
    if head.version == Version::V5 {
        put_varint(properties_bytes, out);
        put_properties(head, out);
    }
    out.put_slice(payload);
}

/// The length of the whole packet, in bytes, to hold against the client's Maximum Packet Size.
pub fn publish_bytes(head: &PublishHead<'_>, payload_bytes: usize) -> usize {
    let remaining = remaining_bytes(head, properties_bytes(head), payload_bytes);
    1 + varint_bytes(remaining) + remaining
}

fn remaining_bytes(head: &PublishHead<'_>, properties_bytes: usize, payload_bytes: usize) -> usize {
    let packet_id_bytes = if head.packet_id == 0 { 0 } else { 2 };
    let block_bytes = match head.version {
        Version::V311 => 0,
        Version::V5 => varint_bytes(properties_bytes) + properties_bytes,
    };
    2 + head.topic.len() + packet_id_bytes + block_bytes + payload_bytes
}

fn properties_bytes(head: &PublishHead<'_>) -> usize {
    let alias = head.topic_alias.map_or(0, |_| 3);
    let expiry = head.message_expiry_s.map_or(0, |_| 5);
    let user: usize = head.user.iter().map(|(name, value)| 5 + name.len() + value.len()).sum();
    alias + expiry + user
}

fn put_properties(head: &PublishHead<'_>, out: &mut BytesMut) {
    if let Some(seconds) = head.message_expiry_s {
        out.put_u8(property::MESSAGE_EXPIRY);
        out.put_u32(seconds);
    }
    if let Some(alias) = head.topic_alias {
        out.put_u8(property::TOPIC_ALIAS);
        out.put_u16(alias);
    }
    for (name, value) in head.user {
        out.put_u8(property::USER);
        put_text(name, out);
        put_text(value, out);
    }
}

fn put_text(text: &str, out: &mut BytesMut) {
    let length = u16::try_from(text.len())
        .expect("a string of MQTT is at most 65,535 bytes: the caller's bound");
    out.put_u16(length);
    out.put_slice(text.as_bytes());
}

fn put_varint(mut value: usize, out: &mut BytesMut) {
    assert!(value <= REMAINING_BYTES_MAX as usize, "a packet longer than MQTT can say");
    while value > 0x7F {
        out.put_u8((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

const fn varint_bytes(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}
