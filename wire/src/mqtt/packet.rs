//! Packets as values: the same types for both versions, in the words of MQTT 5.

use bytes::Bytes;

/// A version of MQTT that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V311,
    /// MQTT 5, protocol level 5.
    V5,
}

/// Quality of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Qos {
    /// Sent once, never acknowledged.
    #[default]
    AtMostOnce = 0,
    /// Acknowledged by PUBACK.
    AtLeastOnce = 1,
    /// Acknowledged by PUBREC, PUBREL, PUBCOMP.
    ExactlyOnce = 2,
}

impl Qos {
    /// The QoS of these two bits; `None` for 3 and above.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// Any packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Client to server, first.
    Connect(Box<Connect>),
    /// The answer to CONNECT.
    ConnAck(Box<ConnAck>),
    /// A message, either way.
    Publish(Publish),
    /// Acknowledges a QoS 1 PUBLISH.
    PubAck(Ack),
    /// First answer to a QoS 2 PUBLISH.
    PubRec(Ack),
    /// Answer to PUBREC.
    PubRel(Ack),
    /// Last answer of QoS 2.
    PubComp(Ack),
    /// Client to server.
    Subscribe(Subscribe),
    /// The answer to SUBSCRIBE.
    SubAck(SubAck),
    /// Client to server.
    Unsubscribe(Unsubscribe),
    /// The answer to UNSUBSCRIBE.
    UnsubAck(SubAck),
    /// Client to server: I am here.
    PingReq,
    /// The answer to PINGREQ.
    PingResp,
    /// The end; from the server in MQTT 5 only.
    Disconnect(Disconnect),
    /// Extended authentication (MQTT 5). We support none, so its contents are checked and dropped.
    Auth,
}

/// CONNECT. A Will is checked and dropped, user properties too.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// 3.1.1 or 5.
    pub version: Version,
    /// Clean Start (5) or Clean Session (3.1.1).
    pub clean_start: bool,
    /// Seconds; 0 turns keep-alive off.
    pub keep_alive_s: u16,
    /// Never empty in 3.1.1 without `clean_start`.
    pub client_id: String,
    /// At most 65,535 bytes.
    pub username: Option<String>,
    /// At most 65,535 bytes; a copy, so that it does not keep the read buffer alive.
    pub password: Option<Bytes>,
    /// The client sent a Will. Cannot be encoded.
    pub has_will: bool,
    /// Seconds; 0 if absent. For 3.1.1: 0 with a clean session, else `u32::MAX`.
    pub session_expiry_s: u32,
    /// Unacknowledged QoS 1 and 2 PUBLISHes that the client takes at a time, 1 or more; 65,535 if absent.
    pub receive_max: u16,
    /// The longest packet that the client takes, in bytes, 1 or more.
    pub max_packet_bytes: Option<u32>,
    /// The highest topic alias that the client takes; 0 if absent.
    pub topic_alias_max: u16,
    /// Extended authentication is asked for.
    pub auth_method: Option<String>,
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: 0,
            client_id: String::new(),
            username: None,
            password: None,
            has_will: false,
            session_expiry_s: 0,
            receive_max: u16::MAX,
            max_packet_bytes: None,
            topic_alias_max: 0,
            auth_method: None,
        }
    }
}

impl std::fmt::Debug for Connect {
    /// Without the password: this may reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("clean_start", &self.clean_start)
            .field("keep_alive_s", &self.keep_alive_s)
            .field("client_id", &self.client_id)
            .field("has_username", &self.username.is_some())
            .field("has_password", &self.password.is_some())
            .field("has_will", &self.has_will)
            .field("session_expiry_s", &self.session_expiry_s)
            .field("receive_max", &self.receive_max)
            .field("max_packet_bytes", &self.max_packet_bytes)
            .field("topic_alias_max", &self.topic_alias_max)
            .field("auth_method", &self.auth_method)
            .finish()
    }
}

/// CONNACK. 3.1.1 has only the first two fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnAck {
    /// The server kept the session.
    pub session_present: bool,
    /// MQTT 5 code; written as the nearest return code in 3.1.1, and read back from it.
    pub reason: u8,
    /// Seconds, if other than what the client asked for.
    pub session_expiry_s: Option<u32>,
    /// Unacknowledged PUBLISHes that the server takes; absent = 65,535 (which is read back as absent).
    pub receive_max: Option<u16>,
    /// The highest QoS that the server takes; absent = 2 (which is read back as absent).
    pub qos_max: Option<Qos>,
    /// The longest packet that the server takes, in bytes.
    pub max_packet_bytes: Option<u32>,
    /// The highest topic alias that the server takes; absent = 0 (which is read back as absent).
    pub topic_alias_max: Option<u16>,
    /// The keep-alive that the client must use instead of its own, in seconds.
    pub server_keep_alive_s: Option<u16>,
    /// For humans.
    pub reason_string: Option<String>,
    /// Wildcard subscriptions are available.
    pub wildcards: bool,
    /// Shared subscriptions are available.
    pub shared: bool,
    /// Subscription identifiers are available.
    pub subscription_ids: bool,
    /// Retained messages are available.
    pub retain: bool,
    /// User properties.
    pub user: Vec<(String, String)>,
}

impl Default for ConnAck {
    fn default() -> Self {
        Self {
            session_present: false,
            reason: super::reason::SUCCESS,
            session_expiry_s: None,
            receive_max: None,
            qos_max: None,
            max_packet_bytes: None,
            topic_alias_max: None,
            server_keep_alive_s: None,
            reason_string: None,
            wildcards: true,
            shared: true,
            subscription_ids: true,
            retain: true,
            user: Vec::new(),
        }
    }
}

/// PUBLISH. Properties that are not named here are checked and dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publish {
    /// Sent before; never with QoS 0.
    pub dup: bool,
    /// Quality of service.
    pub qos: Qos,
    /// The retain flag.
    pub retain: bool,
    /// Without wildcard or NUL; empty only with a topic alias.
    pub topic: String,
    /// 0 = none: exactly with QoS 0.
    pub packet_id: u16,
    /// A slice of the read buffer, which lives as long as the payload does.
    pub payload: Bytes,
    /// 1 or more.
    pub topic_alias: Option<u16>,
    /// User properties.
    pub user: Vec<(String, String)>,
    /// Seconds.
    pub message_expiry_s: Option<u32>,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. A reason string and user properties are checked and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// 1 or more.
    pub packet_id: u16,
    /// MQTT 5 code; 0 in 3.1.1.
    pub reason: u8,
}

/// SUBSCRIBE. No Local and the retain options are checked and dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// 1 or more.
    pub packet_id: u16,
    /// 1 to [`FILTERS_MAX`](crate::limits::FILTERS_MAX), none empty; what they mean is for others to judge.
    pub filters: Vec<(String, Qos)>,
    /// 1 or more.
    pub subscription_id: Option<u32>,
}

/// SUBACK or UNSUBACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubAck {
    /// 1 or more.
    pub packet_id: u16,
    /// MQTT 5 codes, one for each filter. In 3.1.1 failures are all 0x80, and UNSUBACK has none.
    pub reasons: Vec<u8>,
}

/// UNSUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    /// 1 or more.
    pub packet_id: u16,
    /// 1 to [`FILTERS_MAX`](crate::limits::FILTERS_MAX), none empty.
    pub filters: Vec<String>,
}

/// DISCONNECT. In 3.1.1 it is empty and only a client sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disconnect {
    /// MQTT 5 code.
    pub reason: u8,
    /// Seconds; from a client only.
    pub session_expiry_s: Option<u32>,
    /// Another server to use; from a server only.
    pub server_reference: Option<String>,
    /// For humans.
    pub reason_string: Option<String>,
    /// User properties.
    pub user: Vec<(String, String)>,
}
