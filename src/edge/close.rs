//! Why a connection ended: metric label, log field and the code that the device is told.

use carillon_wire::mqtt::{self, reason};

use crate::{
    base::metrics::{CounterBy, Label},
    labels,
};

labels! {
    /// How an established connection ended. Each ends with exactly one of these.
    CloseReason {
        /// The device sent DISCONNECT.
        ClientDisconnect = "client_disconnect",
        /// The frames of a request over HTTPS were answered.
        Answered = "answered",
        /// The device closed the stream without DISCONNECT.
        Eof = "eof",
        /// The stream broke.
        Reset = "reset",
        /// Nothing came for one and a half times the granted keep-alive.
        KeepAliveTimeout = "keep_alive_timeout",
        /// The device took too long to take our bytes.
        WriteTimeout = "write_timeout",
        /// A newer connection of the same device.
        TakenOver = "taken_over",
        /// Nothing is registered on the device any more.
        Unregistered = "unregistered",
        /// The operator ended the device account.
        Revoked = "revoked",
        /// Plain use, and its app demands sealed payloads now.
        Sealed = "sealed",
        /// The node goes away.
        Draining = "draining",
        /// Bytes that are no MQTT.
        Malformed = "malformed",
        /// A packet that must not come, or not now.
        ProtocolError = "protocol_error",
        /// A packet above our Maximum Packet Size.
        PacketTooLarge = "packet_too_large",
        /// A QoS above our Maximum QoS.
        QosNotSupported = "qos_not_supported",
        /// A topic alias, though we take none.
        TopicAliasInvalid = "topic_alias_invalid",
        /// A PUBLISH to a topic that is not ours, where 3.1.1 has no way to say so.
        TopicNotAllowed = "topic_not_allowed",
        /// More unacknowledged uplinks than were granted.
        ReceiveMaxExceeded = "receive_max_exceeded",
        /// More packets than `edge.gate.packets_per_s`.
        PacketRate = "packet_rate",
        /// More requests than `edge.gate.requests_per_s`.
        RequestRate = "request_rate",
        /// Another bound of the node was passed.
        QuotaExceeded = "quota_exceeded",
        /// The node could not do its part.
        Unavailable = "unavailable",
        /// The connection's task was stopped from outside, or panicked.
        Aborted = "aborted",
    }
}

impl CloseReason {
    /// What DISCONNECT says in MQTT 5; `None` where nothing is sent.
    pub fn code(self) -> Option<u8> {
        match self {
            Self::ClientDisconnect
            | Self::Answered
            | Self::Eof
            | Self::Reset
            | Self::WriteTimeout
            | Self::Aborted => None,
            Self::KeepAliveTimeout => Some(reason::KEEP_ALIVE_TIMEOUT),
            Self::TakenOver => Some(reason::SESSION_TAKEN_OVER),
            Self::Unregistered | Self::Revoked | Self::Sealed => Some(reason::NOT_AUTHORIZED),
            Self::Draining => Some(reason::SERVER_SHUTTING_DOWN),
            Self::Malformed => Some(reason::MALFORMED),
            Self::ProtocolError => Some(reason::PROTOCOL_ERROR),
            Self::PacketTooLarge => Some(reason::PACKET_TOO_LARGE),
            Self::QosNotSupported => Some(reason::QOS_NOT_SUPPORTED),
            Self::TopicAliasInvalid => Some(reason::TOPIC_ALIAS_INVALID),
            Self::TopicNotAllowed => Some(reason::TOPIC_NAME_INVALID),
            Self::ReceiveMaxExceeded => Some(reason::RECEIVE_MAX_EXCEEDED),
            Self::PacketRate | Self::RequestRate => Some(reason::MESSAGE_RATE_TOO_HIGH),
            Self::QuotaExceeded => Some(reason::QUOTA_EXCEEDED),
            Self::Unavailable => Some(reason::SERVER_BUSY),
        }
    }

    /// The reason for bytes that the decoder refused.
    pub fn of_error(error: &mqtt::Error) -> Self {
        match error {
            mqtt::Error::Malformed(_) => Self::Malformed,
            mqtt::Error::Protocol(_)
            | mqtt::Error::UnexpectedPacket(_)
            | mqtt::Error::UnsupportedVersion
            | mqtt::Error::ClientId => Self::ProtocolError,
            mqtt::Error::PacketTooLarge { .. } => Self::PacketTooLarge,
            mqtt::Error::TopicName(_) => Self::TopicNotAllowed,
            mqtt::Error::TopicAlias => Self::TopicAliasInvalid,
            mqtt::Error::Limit(_) => Self::QuotaExceeded,
            mqtt::Error::Unencodable(_) => Self::Unavailable,
        }
    }

    /// Its text in metrics and logs.
    pub fn text(self) -> &'static str {
        self.label()
    }
}

labels! {
    /// What was left out or dropped without ending the connection.
    Ignored {
        /// A PUBACK for a packet id that is not in use.
        UnknownAck = "unknown_ack",
        /// A message above the client's Maximum Packet Size.
        Oversize = "oversize",
        /// An item of a collection for a registration whose payloads are sealed.
        Unsealed = "unsealed",
        /// A PUBLISH to a topic that is not ours.
        ForeignTopic = "foreign_topic",
    }
}

/// Counters of this floor that nobody else touches.
pub struct EndMetrics {
    /// Established connections that ended, by reason.
    pub ended: CounterBy<CloseReason>,
    /// Dropped or skipped things, by kind.
    pub ignored: CounterBy<Ignored>,
}

impl EndMetrics {
    /// On the recorder that is installed now.
    pub fn new() -> Self {
        Self {
            ended: CounterBy::new("carillon_connections_ended_total", "reason"),
            ignored: CounterBy::new("carillon_edge_ignored_total", "kind"),
        }
    }
}

impl Default for EndMetrics {
    fn default() -> Self {
        Self::new()
    }
}
