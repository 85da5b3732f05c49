//! Why bytes are not a packet that we accept, and the reason code that says so.

use super::reason;

/// What is wrong with a packet. After any of these the connection ends: what follows in the stream is not readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The syntax is wrong; the text names the rule.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// Well formed, and not allowed by the protocol; the text names the rule.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// The packet, with its header, is longer than the maximum. Known from the header, before anything is buffered.
    #[error("packet of {bytes} bytes exceeds the maximum of {max}")]
    PacketTooLarge {
        /// The length that the header announces.
        bytes: u32,
        /// The maximum in force.
        max: u32,
    },
    /// Not MQTT 3.1.1 and not MQTT 5.
    #[error("unsupported protocol version")]
    UnsupportedVersion,
    /// A packet that this end must not receive, or not now; the text says which and why.
    #[error("unexpected packet: {0}")]
    UnexpectedPacket(&'static str),
    /// The client id is empty where it must not be.
    #[error("client id is empty")]
    ClientId,
    /// The topic name is empty, or has a wildcard or a NUL in it.
    #[error("invalid topic name: {0}")]
    TopicName(&'static str),
    /// A topic alias of 0.
    #[error("topic alias is zero")]
    TopicAlias,
    /// A limit of ours is exceeded; the text names it.
    #[error("limit exceeded: {0}")]
    Limit(&'static str),
    /// Our own fault: this packet cannot be written in this version.
    #[error("packet cannot be encoded: {0}")]
    Unencodable(&'static str),
}

impl Error {
    /// The MQTT 5 reason code for DISCONNECT or CONNACK.
    pub fn reason(&self) -> u8 {
        match self {
            Self::Malformed(_) => reason::MALFORMED,
            Self::Protocol(_) | Self::UnexpectedPacket(_) => reason::PROTOCOL_ERROR,
            Self::PacketTooLarge { .. } => reason::PACKET_TOO_LARGE,
            Self::UnsupportedVersion => reason::UNSUPPORTED_VERSION,
            Self::ClientId => reason::CLIENT_ID_INVALID,
            Self::TopicName(_) => reason::TOPIC_NAME_INVALID,
            Self::TopicAlias => reason::TOPIC_ALIAS_INVALID,
            Self::Limit(_) => reason::QUOTA_EXCEEDED,
            Self::Unencodable(_) => reason::UNSPECIFIED,
        }
    }
}
