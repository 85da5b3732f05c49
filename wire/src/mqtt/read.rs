//! Reading MQTT's data types from the body of one whole packet, and walking its properties. Allocates nothing.

use super::error::Error;
use crate::limits::{USER_PROPERTIES_BYTES_MAX, USER_PROPERTIES_MAX};

/// What is left of a packet's body.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn left(&self) -> usize {
        self.bytes.len()
    }

    /// Refuses whatever is left behind the last field.
    pub fn end(&self) -> Result<(), Error> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(Error::Malformed("bytes behind the last field"))
        }
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (head, tail) = self.bytes.split_at_checked(count).ok_or(TRUNCATED)?;
        self.bytes = tail;
        Ok(head)
    }

    pub fn u8(&mut self) -> Result<u8, Error> {
        let (head, tail) = self.bytes.split_first().ok_or(TRUNCATED)?;
        self.bytes = tail;
        Ok(*head)
    }

    pub fn u16(&mut self) -> Result<u16, Error> {
        let (head, tail) = self.bytes.split_first_chunk().ok_or(TRUNCATED)?;
        self.bytes = tail;
        Ok(u16::from_be_bytes(*head))
    }

    pub fn u32(&mut self) -> Result<u32, Error> {
        let (head, tail) = self.bytes.split_first_chunk().ok_or(TRUNCATED)?;
        self.bytes = tail;
        Ok(u32::from_be_bytes(*head))
    }

    /// A variable byte integer of one to four bytes, in its shortest form.
    pub fn varint(&mut self) -> Result<u32, Error> {
        let (value, length) = varint(self.bytes)?.ok_or(TRUNCATED)?;
        self.take(length)?;
        Ok(value)
    }

    pub fn binary(&mut self) -> Result<&'a [u8], Error> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// A UTF-8 string without NUL.
    pub fn text(&mut self) -> Result<&'a str, Error> {
        let bytes = self.binary()?;
        let text =
            std::str::from_utf8(bytes).map_err(|_| Error::Malformed("a string is not UTF-8"))?;
        if bytes.contains(&0) {
            return Err(Error::Malformed("a string contains NUL"));
        }
        Ok(text)
    }

    pub fn packet_id(&mut self) -> Result<u16, Error> {
        match self.u16()? {
            0 => Err(Error::Malformed("packet id is zero")),
            packet_id => Ok(packet_id),
        }
    }

    /// The topic of a PUBLISH or Will: no wildcard. The caller judges an empty one.
    pub fn topic_name(&mut self) -> Result<&'a str, Error> {
        let topic = self.text()?;
        if topic.bytes().any(|byte| matches!(byte, b'+' | b'#')) {
            return Err(Error::TopicName("a wildcard in a topic name"));
        }
        Ok(topic)
    }

    pub fn topic_filter(&mut self) -> Result<&'a str, Error> {
        let filter = self.text()?;
        if filter.is_empty() {
            return Err(Error::Protocol("an empty topic filter"));
        }
        Ok(filter)
    }
}

/// Reads a variable byte integer at the start of `bytes`: value and length; `None` if it is not whole yet.
pub(super) fn varint(bytes: &[u8]) -> Result<Option<(u32, usize)>, Error> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            if *byte == 0 && index > 0 {
                return Err(Error::Malformed("a length is not in its shortest form"));
            }
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() < 4 {
        Ok(None)
    } else {
        Err(Error::Malformed("a length has more than four bytes"))
    }
}

/// Which properties a packet may have.
pub(super) struct PropertySet {
    allowed: u64,
    repeatable: u64,
}

impl PropertySet {
    /// Each at most once, except user properties.
    pub const fn once(ids: &[u8]) -> Self {
        Self { allowed: mask(ids), repeatable: mask(&[property::USER]) }
    }

    /// The same, and a subscription identifier for each matching subscription.
    pub const fn publish(ids: &[u8]) -> Self {
        Self { allowed: mask(ids), repeatable: mask(&[property::USER, property::SUBSCRIPTION_ID]) }
    }
}

/// The value of one property, which is right for its type and its range.
pub(super) enum Value<'a> {
    Number(u32),
    Text,
    Binary,
    Pair(&'a str, &'a str),
}

/// Counts the user properties of one packet against their limits.
#[derive(Default)]
pub(super) struct UserCount {
    count: usize,
    bytes: usize,
}

impl UserCount {
    fn add(&mut self, bytes: usize) -> Result<(), Error> {
        self.count += 1;
        self.bytes += bytes;
        if self.count > USER_PROPERTIES_MAX {
            return Err(Error::Limit("user properties"));
        }
        if self.bytes > USER_PROPERTIES_BYTES_MAX {
            return Err(Error::Limit("bytes of user properties"));
        }
        Ok(())
    }
}

/// Walks a property block and hands each property to `each`.
pub(super) fn properties<'a>(
    reader: &mut Reader<'a>,
    set: &PropertySet,
    users: &mut UserCount,
    mut each: impl FnMut(u8, Value<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    let length = reader.varint()?;
    let mut block = Reader::new(reader.take(length as usize)?);
    let mut seen = 0u64;
    while !block.is_empty() {
        let id = block.u8()?;
        let bit = if id < 64 { 1u64 << id } else { 0 };
        if set.allowed & bit == 0 {
            return Err(Error::Malformed("a property that this packet cannot have"));
        }
        if seen & bit & !set.repeatable != 0 {
            return Err(Error::Protocol("a property is there twice"));
        }
        seen |= bit;
        let value = property_value(&mut block, id)?;
        if let Value::Pair(name, text) = value {
            users.add(name.len() + text.len())?;
        }
        each(id, value)?;
    }
    Ok(())
}

/// For packets whose properties only have to be right.
pub(super) fn check_properties(reader: &mut Reader<'_>, set: &PropertySet) -> Result<(), Error> {
    properties(reader, set, &mut UserCount::default(), |_, _| Ok(()))
}

fn property_value<'a>(block: &mut Reader<'a>, id: u8) -> Result<Value<'a>, Error> {
    use property as p;
    let number = match id {
        p::PAYLOAD_FORMAT
        | p::REQUEST_PROBLEM_INFORMATION
        | p::REQUEST_RESPONSE_INFORMATION
        | p::QOS_MAX
        | p::RETAIN_AVAILABLE
        | p::WILDCARD_AVAILABLE
        | p::SUBSCRIPTION_ID_AVAILABLE
        | p::SHARED_AVAILABLE => u32::from(block.u8()?),
        p::SERVER_KEEP_ALIVE | p::RECEIVE_MAX | p::TOPIC_ALIAS_MAX | p::TOPIC_ALIAS => {
            u32::from(block.u16()?)
        }
        p::MESSAGE_EXPIRY | p::SESSION_EXPIRY | p::WILL_DELAY | p::PACKET_BYTES_MAX => {
            block.u32()?
        }
        p::SUBSCRIPTION_ID => block.varint()?,
        p::CORRELATION_DATA | p::AUTH_DATA => {
            block.binary()?;
            return Ok(Value::Binary);
        }
        p::USER => return Ok(Value::Pair(block.text()?, block.text()?)),
        p::RESPONSE_TOPIC => {
            block.topic_name()?;
            return Ok(Value::Text);
        }
        _ => {
            block.text()?;
            return Ok(Value::Text);
        }
    };
    check_range(id, number)?;
    Ok(Value::Number(number))
}

fn check_range(id: u8, number: u32) -> Result<(), Error> {
    use property as p;
    match id {
        p::PAYLOAD_FORMAT
        | p::REQUEST_PROBLEM_INFORMATION
        | p::REQUEST_RESPONSE_INFORMATION
        | p::QOS_MAX
        | p::RETAIN_AVAILABLE
        | p::WILDCARD_AVAILABLE
        | p::SUBSCRIPTION_ID_AVAILABLE
        | p::SHARED_AVAILABLE
            if number > 1 =>
        {
            Err(Error::Protocol("a flag that is neither 0 nor 1"))
        }
        p::RECEIVE_MAX if number == 0 => Err(Error::Protocol("receive maximum is zero")),
        p::PACKET_BYTES_MAX if number == 0 => Err(Error::Protocol("maximum packet size is zero")),
        p::SUBSCRIPTION_ID if number == 0 => {
            Err(Error::Protocol("subscription identifier is zero"))
        }
        p::TOPIC_ALIAS if number == 0 => Err(Error::TopicAlias),
        _ => Ok(()),
    }
}

const fn mask(ids: &[u8]) -> u64 {
    let mut mask = 0;
    let mut index = 0;
    while index < ids.len() {
        mask |= 1 << ids[index];
        index += 1;
    }
    mask
}

const TRUNCATED: Error = Error::Malformed("a field goes beyond the packet's end");

/// Property identifiers of MQTT 5.
pub(super) mod property {
    pub const PAYLOAD_FORMAT: u8 = 0x01;
    pub const MESSAGE_EXPIRY: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_ID: u8 = 0x0B;
    pub const SESSION_EXPIRY: u8 = 0x11;
    pub const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub const AUTH_METHOD: u8 = 0x15;
    pub const AUTH_DATA: u8 = 0x16;
    pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub const WILL_DELAY: u8 = 0x18;
    pub const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub const RESPONSE_INFORMATION: u8 = 0x1A;
    pub const SERVER_REFERENCE: u8 = 0x1C;
    pub const REASON_STRING: u8 = 0x1F;
    pub const RECEIVE_MAX: u8 = 0x21;
    pub const TOPIC_ALIAS_MAX: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const QOS_MAX: u8 = 0x24;
    pub const RETAIN_AVAILABLE: u8 = 0x25;
    pub const USER: u8 = 0x26;
    pub const PACKET_BYTES_MAX: u8 = 0x27;
    pub const WILDCARD_AVAILABLE: u8 = 0x28;
    pub const SUBSCRIPTION_ID_AVAILABLE: u8 = 0x29;
    pub const SHARED_AVAILABLE: u8 = 0x2A;
}
