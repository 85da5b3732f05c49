//! MQTT 5 reason codes. Encoding maps them for 3.1.1, where only CONNACK and SUBACK carry one.

/// Done (CONNACK, PUBACK, UNSUBACK); also "granted QoS 0".
pub const SUCCESS: u8 = 0x00;
/// A normal end of the connection (DISCONNECT).
pub const NORMAL: u8 = 0x00;
/// SUBACK: granted, at most QoS 1.
pub const GRANTED_QOS_1: u8 = 0x01;
/// SUBACK: granted, at most QoS 2.
pub const GRANTED_QOS_2: u8 = 0x02;
/// DISCONNECT by the client that wants its Will published.
pub const WITH_WILL: u8 = 0x04;
/// PUBACK: accepted, and nobody follows.
pub const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
/// UNSUBACK: there was no such subscription.
pub const NO_SUBSCRIPTION: u8 = 0x11;
/// No other code fits.
pub const UNSPECIFIED: u8 = 0x80;
/// The packet does not follow the specification's syntax.
pub const MALFORMED: u8 = 0x81;
/// The packet is well formed and must not be sent, or not now.
pub const PROTOCOL_ERROR: u8 = 0x82;
/// Valid, but not accepted by this gateway.
pub const IMPLEMENTATION_SPECIFIC: u8 = 0x83;
/// A protocol other than MQTT 3.1.1 and 5.
pub const UNSUPPORTED_VERSION: u8 = 0x84;
/// The client id is not one of ours.
pub const CLIENT_ID_INVALID: u8 = 0x85;
/// User name or password is wrong.
pub const BAD_CREDENTIALS: u8 = 0x86;
/// Known, and not allowed to do this.
pub const NOT_AUTHORIZED: u8 = 0x87;
/// The gateway cannot serve now.
pub const SERVER_UNAVAILABLE: u8 = 0x88;
/// Too many connections or too much work: come back later.
pub const SERVER_BUSY: u8 = 0x89;
/// Administratively refused.
pub const BANNED: u8 = 0x8A;
/// The node is draining.
pub const SERVER_SHUTTING_DOWN: u8 = 0x8B;
/// Extended authentication is not supported.
pub const BAD_AUTHENTICATION_METHOD: u8 = 0x8C;
/// Nothing was heard for 1.5 times the keep-alive.
pub const KEEP_ALIVE_TIMEOUT: u8 = 0x8D;
/// Another connection of the same device took over.
pub const SESSION_TAKEN_OVER: u8 = 0x8E;
/// A topic filter that this gateway does not have.
pub const TOPIC_FILTER_INVALID: u8 = 0x8F;
/// A topic name that is not one.
pub const TOPIC_NAME_INVALID: u8 = 0x90;
/// The packet id is in use.
pub const PACKET_ID_IN_USE: u8 = 0x91;
/// The packet id is not known.
pub const PACKET_ID_NOT_FOUND: u8 = 0x92;
/// More unacknowledged PUBLISHes than Receive Maximum.
pub const RECEIVE_MAX_EXCEEDED: u8 = 0x93;
/// A topic alias that is 0 or above Topic Alias Maximum.
pub const TOPIC_ALIAS_INVALID: u8 = 0x94;
/// Longer than Maximum Packet Size.
pub const PACKET_TOO_LARGE: u8 = 0x95;
/// Too much in too short a time.
pub const MESSAGE_RATE_TOO_HIGH: u8 = 0x96;
/// A limit of this gateway is exceeded.
pub const QUOTA_EXCEEDED: u8 = 0x97;
/// Ended by an operator, or the registration is gone.
pub const ADMINISTRATIVE: u8 = 0x98;
/// The payload is not what its format says.
pub const PAYLOAD_FORMAT_INVALID: u8 = 0x99;
/// Retained messages are not supported.
pub const RETAIN_NOT_SUPPORTED: u8 = 0x9A;
/// Above Maximum QoS.
pub const QOS_NOT_SUPPORTED: u8 = 0x9B;
/// Use another server for now.
pub const USE_ANOTHER_SERVER: u8 = 0x9C;
/// Use another server from now on.
pub const SERVER_MOVED: u8 = 0x9D;
/// `$share/` filters are not supported.
pub const SHARED_NOT_SUPPORTED: u8 = 0x9E;
/// Connections come too fast.
pub const CONNECTION_RATE_EXCEEDED: u8 = 0x9F;
/// The connection is too old.
pub const CONNECT_TIME_MAX: u8 = 0xA0;
/// Subscription identifiers are not supported.
pub const SUBSCRIPTION_IDS_NOT_SUPPORTED: u8 = 0xA1;
/// `+` and `#` are not supported.
pub const WILDCARD_NOT_SUPPORTED: u8 = 0xA2;
