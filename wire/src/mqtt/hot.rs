//! Decoding of the packets that every delivery pays for: PUBLISH and its acknowledgements.

use super::check;
use super::decoder::{Kind, Role};
use super::error::Error;
use super::packet::{Ack, Publish, Qos, Version};
use super::read::{PropertySet, Reader, UserCount, Value, check_properties, properties, property};

/// Reads all of a PUBLISH but its payload; the second value is where in `body` the payload begins.
pub(super) fn publish(
    role: Role,
    version: Version,
    flags: u8,
    body: &[u8],
) -> Result<(Publish, usize), Error> {
    let mut publish = Publish {
        dup: flags & 0x08 != 0,
        qos: Qos::from_bits(flags >> 1 & 0x03).ok_or(Error::Malformed("QoS 3"))?,
        retain: flags & 0x01 != 0,
        ..Publish::default()
    };
    if publish.dup && publish.qos == Qos::AtMostOnce {
        return Err(Error::Malformed("DUP with QoS 0"));
    }
    let mut reader = Reader::new(body);
    let topic = reader.topic_name()?;
    if publish.qos != Qos::AtMostOnce {
        publish.packet_id = reader.packet_id()?;
    }
    if version == Version::V5 {
        publish_properties(role, &mut reader, &mut publish)?;
    }
    if topic.is_empty() && publish.topic_alias.is_none() {
        return Err(empty_topic(version));
    }
    publish.topic = topic.to_owned();
    Ok((publish, body.len() - reader.left()))
}

fn empty_topic(version: Version) -> Error {
    match version {
        Version::V311 => Error::TopicName("an empty topic name"),
        Version::V5 => Error::Protocol("an empty topic name without an alias"),
    }
}

fn publish_properties(
    role: Role,
    reader: &mut Reader<'_>,
    publish: &mut Publish,
) -> Result<(), Error> {
    properties(reader, &PUBLISH, &mut UserCount::default(), |id, value| {
        match (id, value) {
            (property::TOPIC_ALIAS, Value::Number(alias)) => {
                publish.topic_alias = u16::try_from(alias).ok()
            }
            (property::MESSAGE_EXPIRY, Value::Number(seconds)) => {
                publish.message_expiry_s = Some(seconds)
            }
            (property::USER, Value::Pair(name, text)) => {
                publish.user.push((name.to_owned(), text.to_owned()))
            }
            (property::SUBSCRIPTION_ID, _) if role == Role::Server => {
                return Err(Error::Protocol("a subscription identifier from a client"));
            }
            (_, Value::Number(_) | Value::Text | Value::Binary | Value::Pair(_, _)) => {}
        }
        Ok(())
    })
}

/// Reads PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(super) fn ack(version: Version, kind: Kind, body: &[u8]) -> Result<Ack, Error> {
    let mut reader = Reader::new(body);
    let mut ack = Ack { packet_id: reader.packet_id()?, reason: 0 };
    if version == Version::V5 && !reader.is_empty() {
        ack.reason = reader.u8()?;
        if !is_ack_reason(kind, ack.reason) {
            return Err(Error::Malformed("an unknown reason code"));
        }
        if !reader.is_empty() {
            check_properties(&mut reader, &check::ACK)?;
        }
    }
    reader.end()?;
    Ok(ack)
}

/// Is this a reason code that the packet may carry?
pub(super) fn is_ack_reason(kind: Kind, reason: u8) -> bool {
    match kind {
        Kind::PubRel | Kind::PubComp => matches!(reason, 0x00 | 0x92),
        _ => matches!(reason, 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99),
    }
}

const PUBLISH: PropertySet = PropertySet::publish(&[
    property::PAYLOAD_FORMAT,
    property::MESSAGE_EXPIRY,
    property::CONTENT_TYPE,
    property::RESPONSE_TOPIC,
    property::CORRELATION_DATA,
    property::SUBSCRIPTION_ID,
    property::TOPIC_ALIAS,
    property::USER,
]);
