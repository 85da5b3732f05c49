//! What must be right in the packets that `rmqtt-codec` decodes, before it sees them: flags, ids, ranges, strings,
//! properties, limits, and nothing behind the last field. Found by testing what other brokers accept or crash on.

use super::decoder::{Kind, Role};
use super::error::Error;
use super::packet::{Qos, Version};
use super::read::{PropertySet, Reader, UserCount, Value, check_properties, properties, property};
use crate::limits::FILTERS_MAX;

/// Checks the body of one cold packet. CONNECT has a door of its own: [`connect`].
pub(super) fn packet(role: Role, version: Version, kind: Kind, body: &[u8]) -> Result<(), Error> {
    let mut reader = Reader::new(body);
    match kind {
        Kind::ConnAck => connack(version, &mut reader),
        Kind::Subscribe => subscribe(version, &mut reader),
        Kind::SubAck => suback(version, &mut reader),
        Kind::Unsubscribe => unsubscribe(version, &mut reader),
        Kind::UnsubAck => unsuback(version, &mut reader),
        Kind::Disconnect => disconnect(role, version, &mut reader),
        Kind::Auth => auth(&mut reader),
        Kind::Connect
        | Kind::Publish
        | Kind::PubAck
        | Kind::PubRec
        | Kind::PubRel
        | Kind::PubComp
        | Kind::PingReq
        | Kind::PingResp => Err(Error::UnexpectedPacket("not a packet of this path")),
    }?;
    reader.end()
}

/// Checks the body of a CONNECT and learns the version from it.
pub(super) fn connect(body: &[u8]) -> Result<Version, Error> {
    let mut reader = Reader::new(body);
    let name = reader.binary()?;
    let level = reader.u8()?;
    let version = match (name, level) {
        (b"MQTT", 4) => Version::V311,
        (b"MQTT", 5) => Version::V5,
        _ => return Err(Error::UnsupportedVersion),
    };
    let flags = ConnectFlags::read(reader.u8()?, version)?;
    reader.u16()?; // keep-alive: any value is allowed
    let mut users = UserCount::default();
    if version == Version::V5 {
        connect_properties(&mut reader, &mut users)?;
    }
    if reader.text()?.is_empty() && !flags.clean_start {
        return Err(Error::ClientId);
    }
    if flags.has_will {
        will(version, &mut reader, &mut users)?;
    }
    if flags.has_username {
        reader.text()?;
    }
    if flags.has_password {
        reader.binary()?;
    }
    reader.end()?;
    Ok(version)
}

struct ConnectFlags {
    clean_start: bool,
    has_will: bool,
    has_username: bool,
    has_password: bool,
}

impl ConnectFlags {
    fn read(bits: u8, version: Version) -> Result<Self, Error> {
        let flags = Self {
            clean_start: bits & 0x02 != 0,
            has_will: bits & 0x04 != 0,
            has_username: bits & 0x80 != 0,
            has_password: bits & 0x40 != 0,
        };
        if bits & 0x01 != 0 {
            return Err(Error::Malformed("the reserved flag of CONNECT is set"));
        }
        if Qos::from_bits(bits >> 3 & 0x03).is_none() {
            return Err(Error::Malformed("QoS 3"));
        }
        if !flags.has_will && bits & 0x38 != 0 {
            return Err(Error::Malformed("flags of a Will without a Will"));
        }
        if version == Version::V311 && flags.has_password && !flags.has_username {
            return Err(Error::Malformed("a password without a user name"));
        }
        Ok(flags)
    }
}

fn connect_properties(reader: &mut Reader<'_>, users: &mut UserCount) -> Result<(), Error> {
    let (mut has_method, mut has_data) = (false, false);
    properties(reader, &CONNECT, users, |id, _| {
        has_method |= id == property::AUTH_METHOD;
        has_data |= id == property::AUTH_DATA;
        Ok(())
    })?;
    if has_data && !has_method {
        return Err(Error::Protocol("authentication data without a method"));
    }
    Ok(())
}

fn will(version: Version, reader: &mut Reader<'_>, users: &mut UserCount) -> Result<(), Error> {
    if version == Version::V5 {
        properties(reader, &WILL, users, |_, _| Ok(()))?;
    }
    if reader.topic_name()?.is_empty() {
        return Err(Error::TopicName("an empty topic name"));
    }
    reader.binary()?;
    Ok(())
}

fn connack(version: Version, reader: &mut Reader<'_>) -> Result<(), Error> {
    let flags = reader.u8()?;
    let code = reader.u8()?;
    if flags > 1 {
        return Err(Error::Malformed("a reserved flag of CONNACK is set"));
    }
    if flags == 1 && code != 0 {
        return Err(Error::Protocol("session present on a refused connection"));
    }
    match version {
        Version::V311 if code > 5 => Err(Error::Malformed("an unknown return code")),
        Version::V311 => Ok(()),
        Version::V5 => check_properties(reader, &CONNACK),
    }
}

fn subscribe(version: Version, reader: &mut Reader<'_>) -> Result<(), Error> {
    reader.packet_id()?;
    if version == Version::V5 {
        check_properties(reader, &SUBSCRIBE)?;
    }
    let mut count = 0;
    while !reader.is_empty() {
        let filter = reader.topic_filter()?;
        let options = reader.u8()?;
        subscription_options(version, filter, options)?;
        count += 1;
    }
    filter_count(count)
}

fn subscription_options(version: Version, filter: &str, options: u8) -> Result<(), Error> {
    if Qos::from_bits(options & 0x03).is_none() {
        return Err(Error::Malformed("QoS 3"));
    }
    let reserved = match version {
        Version::V311 => 0xFC,
        Version::V5 => 0xC0,
    };
    if options & reserved != 0 {
        return Err(Error::Malformed("reserved bits of a subscription are set"));
    }
    if options & 0x30 == 0x30 {
        return Err(Error::Protocol("retain handling 3"));
    }
    if options & 0x04 != 0 && filter.starts_with("$share/") {
        return Err(Error::Protocol("No Local on a shared subscription"));
    }
    Ok(())
}

fn unsubscribe(version: Version, reader: &mut Reader<'_>) -> Result<(), Error> {
    reader.packet_id()?;
    if version == Version::V5 {
        check_properties(reader, &UNSUBSCRIBE)?;
    }
    let mut count = 0;
    while !reader.is_empty() {
        reader.topic_filter()?;
        count += 1;
    }
    filter_count(count)
}

fn filter_count(count: usize) -> Result<(), Error> {
    match count {
        0 => Err(Error::Protocol("no topic filter")),
        1..=FILTERS_MAX => Ok(()),
        _ => Err(Error::Limit("topic filters")),
    }
}

fn suback(version: Version, reader: &mut Reader<'_>) -> Result<(), Error> {
    reader.packet_id()?;
    if version == Version::V5 {
        check_properties(reader, &ACK)?;
    }
    let codes = reader.take(reader.left())?;
    if codes.is_empty() {
        return Err(Error::Protocol("SUBACK without a code"));
    }
    if version == Version::V311 && codes.iter().any(|code| !matches!(code, 0..=2 | 0x80)) {
        return Err(Error::Malformed("an unknown return code"));
    }
    Ok(())
}

fn unsuback(version: Version, reader: &mut Reader<'_>) -> Result<(), Error> {
    reader.packet_id()?;
    if version == Version::V311 {
        return Ok(());
    }
    check_properties(reader, &ACK)?;
    if reader.take(reader.left())?.is_empty() {
        return Err(Error::Protocol("UNSUBACK without a code"));
    }
    Ok(())
}

fn disconnect(role: Role, version: Version, reader: &mut Reader<'_>) -> Result<(), Error> {
    if version == Version::V311 || reader.is_empty() {
        return Ok(());
    }
    reader.u8()?;
    if reader.is_empty() {
        return Ok(());
    }
    properties(reader, &DISCONNECT, &mut UserCount::default(), |id, _: Value<'_>| {
        match (role, id) {
            (Role::Server, property::SERVER_REFERENCE) => {
                Err(Error::Protocol("a server reference from a client"))
            }
            (Role::Client, property::SESSION_EXPIRY) => {
                Err(Error::Protocol("a session expiry from a server"))
            }
            (Role::Server | Role::Client, _) => Ok(()),
        }
    })
}

fn auth(reader: &mut Reader<'_>) -> Result<(), Error> {
    if reader.is_empty() {
        return Ok(());
    }
    reader.u8()?;
    if reader.is_empty() { Ok(()) } else { check_properties(reader, &AUTH) }
}

const CONNECT: PropertySet = PropertySet::once(&[
    property::SESSION_EXPIRY,
    property::AUTH_METHOD,
    property::AUTH_DATA,
    property::REQUEST_PROBLEM_INFORMATION,
    property::REQUEST_RESPONSE_INFORMATION,
    property::RECEIVE_MAX,
    property::TOPIC_ALIAS_MAX,
    property::USER,
    property::PACKET_BYTES_MAX,
]);
const WILL: PropertySet = PropertySet::once(&[
    property::PAYLOAD_FORMAT,
    property::MESSAGE_EXPIRY,
    property::CONTENT_TYPE,
    property::RESPONSE_TOPIC,
    property::CORRELATION_DATA,
    property::WILL_DELAY,
    property::USER,
]);
const CONNACK: PropertySet = PropertySet::once(&[
    property::SESSION_EXPIRY,
    property::ASSIGNED_CLIENT_ID,
    property::SERVER_KEEP_ALIVE,
    property::AUTH_METHOD,
    property::AUTH_DATA,
    property::RESPONSE_INFORMATION,
    property::SERVER_REFERENCE,
    property::REASON_STRING,
    property::RECEIVE_MAX,
    property::TOPIC_ALIAS_MAX,
    property::QOS_MAX,
    property::RETAIN_AVAILABLE,
    property::USER,
    property::PACKET_BYTES_MAX,
    property::WILDCARD_AVAILABLE,
    property::SUBSCRIPTION_ID_AVAILABLE,
    property::SHARED_AVAILABLE,
]);
const SUBSCRIBE: PropertySet = PropertySet::once(&[property::SUBSCRIPTION_ID, property::USER]);
const UNSUBSCRIBE: PropertySet = PropertySet::once(&[property::USER]);
pub(super) const ACK: PropertySet = PropertySet::once(&[property::REASON_STRING, property::USER]);
const DISCONNECT: PropertySet = PropertySet::once(&[
    property::SESSION_EXPIRY,
    property::SERVER_REFERENCE,
    property::REASON_STRING,
    property::USER,
]);
const AUTH: PropertySet = PropertySet::once(&[
    property::AUTH_METHOD,
    property::AUTH_DATA,
    property::REASON_STRING,
    property::USER,
]);
