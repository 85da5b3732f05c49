//! Framing: from a stream of bytes to whole packets, refusing early what will not be accepted.

use bytes::{Buf, BytesMut};

use super::error::Error;
use super::packet::{Packet, Version};
use super::read::varint;
use super::{check, cold, hot};
use crate::limits::REMAINING_BYTES_MAX;

/// Reads the packets of one connection. Owns a few bytes and no buffer.
#[derive(Clone, Debug)]
pub struct Decoder {
    role: Role,
    version: Option<Version>,
    bytes_max: u32,
}

impl Decoder {
    /// For a server: expects CONNECT first and learns the version from it. `max_packet_bytes` counts whole packets.
    pub const fn server(max_packet_bytes: u32) -> Self {
        Self { role: Role::Server, version: None, bytes_max: max_packet_bytes }
    }

    /// For a client of that version. `max_packet_bytes` counts whole packets.
    pub const fn client(version: Version, max_packet_bytes: u32) -> Self {
        Self { role: Role::Client, version: Some(version), bytes_max: max_packet_bytes }
    }

    /// From now on; a server allows more after it has authenticated the device.
    pub const fn set_max_packet_bytes(&mut self, max_packet_bytes: u32) {
        self.bytes_max = max_packet_bytes;
    }

    /// The version, once it is known.
    pub const fn version(&self) -> Option<Version> {
        self.version
    }

    /// Takes the next packet out of `buf`; `None` until it is whole.
    ///
    /// Type, flags and length are judged as soon as they are there. Never reserves room in `buf`, and gives an empty
    /// `buf` back without capacity. A payload is a slice of `buf`'s memory.
    ///
    /// # Errors
    /// Any [`Error`] but `Unencodable`. The connection must end: `buf` is then in no useful state.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Packet>, Error> {
        let Some(&first) = buf.first() else {
            return Ok(None);
        };
        let kind = self.admit(first)?;
        let Some((remaining, varint_bytes)) = varint(&buf[1..])? else {
            return Ok(None);
        };
        let header_bytes = 1 + varint_bytes;
        let total = remaining.saturating_add(header_bytes as u32);
        if total > self.bytes_max.min(REMAINING_BYTES_MAX) {
            return Err(Error::PacketTooLarge { bytes: total, max: self.bytes_max });
        }
        let total = total as usize;
        if buf.len() < total {
            return Ok(None);
        }
        let packet = self.whole_packet(kind, buf, header_bytes, total)?;
        if buf.is_empty() {
            *buf = BytesMut::new();
        }
        Ok(Some(packet))
    }

    /// Judges the first byte: may this end receive such a packet now, and are its flags right?
    fn admit(&self, first: u8) -> Result<Kind, Error> {
        let kind = Kind::from_bits(first >> 4).ok_or(Error::Malformed("packet type 0"))?;
        if self.version.is_none() && kind != Kind::Connect {
            return Err(Error::UnexpectedPacket("the first packet is not CONNECT"));
        }
        if self.version.is_some() && kind == Kind::Connect {
            return Err(Error::UnexpectedPacket("a second CONNECT"));
        }
        if kind == Kind::Auth && self.version == Some(Version::V311) {
            return Err(Error::Malformed("packet type 15"));
        }
        if !kind.is_for(self.role, self.version) {
            return Err(Error::UnexpectedPacket("a packet that only the other end may send"));
        }
        let flags_expected = match kind {
            Kind::Publish => return Ok(kind),
            Kind::PubRel | Kind::Subscribe | Kind::Unsubscribe => 0x02,
            _ => 0x00,
        };
        if first & 0x0F != flags_expected {
            return Err(Error::Malformed("reserved flags of the fixed header"));
        }
        Ok(kind)
    }

    fn whole_packet(
        &mut self,
        kind: Kind,
        buf: &mut BytesMut,
        header_bytes: usize,
        total: usize,
    ) -> Result<Packet, Error> {
        let body = &buf[header_bytes..total];
        let Some(version) = self.version else {
            let version = check::connect(body)?;
            let packet = cold::decode(version, &buf[..total])?;
            buf.advance(total);
            self.version = Some(version);
            return Ok(packet);
        };
        let packet = match kind {
            Kind::Publish => {
                let (mut publish, payload_at) =
                    hot::publish(self.role, version, buf[0] & 0x0F, body)?;
                publish.payload = take(buf, total).freeze().slice(header_bytes + payload_at..);
                return Ok(Packet::Publish(publish));
            }
            Kind::PubAck => Packet::PubAck(hot::ack(version, kind, body)?),
            Kind::PubRec => Packet::PubRec(hot::ack(version, kind, body)?),
            Kind::PubRel => Packet::PubRel(hot::ack(version, kind, body)?),
            Kind::PubComp => Packet::PubComp(hot::ack(version, kind, body)?),
            Kind::PingReq | Kind::PingResp if !body.is_empty() => {
                return Err(Error::Malformed("a ping with a body"));
            }
            Kind::PingReq => Packet::PingReq,
            Kind::PingResp => Packet::PingResp,
            Kind::Connect
            | Kind::ConnAck
            | Kind::Subscribe
            | Kind::SubAck
            | Kind::Unsubscribe
            | Kind::UnsubAck
            | Kind::Disconnect
            | Kind::Auth => {
                check::packet(self.role, version, kind, body)?;
                cold::decode(version, &buf[..total])?
            }
        };
        buf.advance(total);
        Ok(packet)
    }
}

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// The type of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Connect,
    ConnAck,
    Publish,
    PubAck,
    PubRec,
    PubRel,
    PubComp,
    Subscribe,
    SubAck,
    Unsubscribe,
    UnsubAck,
    PingReq,
    PingResp,
    Disconnect,
    Auth,
}

impl Kind {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::Connect,
            2 => Self::ConnAck,
            3 => Self::Publish,
            4 => Self::PubAck,
            5 => Self::PubRec,
            6 => Self::PubRel,
            7 => Self::PubComp,
            8 => Self::Subscribe,
            9 => Self::SubAck,
            10 => Self::Unsubscribe,
            11 => Self::UnsubAck,
            12 => Self::PingReq,
            13 => Self::PingResp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }

    fn is_for(self, role: Role, version: Option<Version>) -> bool {
        match self {
            Self::Connect | Self::Subscribe | Self::Unsubscribe | Self::PingReq => {
                role == Role::Server
            }
            Self::ConnAck | Self::SubAck | Self::UnsubAck | Self::PingResp => role == Role::Client,
            Self::Publish
            | Self::PubAck
            | Self::PubRec
            | Self::PubRel
            | Self::PubComp
            | Self::Auth => true,
            Self::Disconnect => role == Role::Server || version == Some(Version::V5),
        }
    }
}

/// The first `count` bytes of `buf`; all of its memory with them if nothing follows.
fn take(buf: &mut BytesMut, count: usize) -> BytesMut {
    if buf.len() == count { std::mem::take(buf) } else { buf.split_to(count) }
}
