//! Judging a CONNECT: pure, before anything is looked up.

use carillon_wire::mqtt::{ConnAck, Connect, Qos, Version, reason};

use crate::{base::metrics::Handshake, config};

/// Unacknowledged uplinks that a device may have.
pub const UPLINKS_MAX: u16 = 16;

/// What both sides keep to after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// 3.1.1 or 5.
    pub version: Version,
    /// What is subscribed begins at its head.
    pub is_clean: bool,
    /// After so many seconds without a packet the connection ends.
    pub silence_max_s: u32,
    /// How long the session outlives the connection, in seconds.
    pub expiry_s: u32,
    /// What `expiry_s` may be raised to.
    pub expiry_s_max: u32,
    /// Unacknowledged PUBLISHes that the client takes.
    pub receive_max: u16,
    /// The longest packet that the client takes.
    pub max_packet_bytes: u32,
    /// The highest topic alias that the client takes.
    pub alias_max: u16,
}

impl Terms {
    /// Of a device without a connection. It takes whatever fits the window.
    pub fn of_visit(bounds: &config::Edge) -> Self {
        Self {
            version: Version::V5,
            is_clean: false,
            silence_max_s: silence_max_s(bounds.keep_alive_max_s),
            expiry_s: 0,
            expiry_s_max: 0,
            receive_max: u16::MAX,
            max_packet_bytes: u32::MAX,
            alias_max: 0,
        }
    }

    /// The keep-alive that is in force, in seconds.
    pub fn keep_alive_s(&self) -> u16 {
        u16::try_from(self.silence_max_s * 2 / 3).unwrap_or(u16::MAX)
    }
}

/// A CONNECT that may be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// What was agreed.
    pub terms: Terms,
    /// CONNACK, but for whether a session is present.
    pub connack: ConnAck,
}

/// A CONNECT that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// CONNACK's code.
    pub reason: u8,
    /// For the metric.
    pub result: Handshake,
}

impl Granted {
    /// Grants a shorter keep-alive, if the device can be told. Returns whether it can.
    pub fn lower_keep_alive(&mut self, keep_alive_s: u16) -> bool {
        if self.terms.version != Version::V5 || keep_alive_s >= self.terms.keep_alive_s() {
            return false;
        }
        self.terms.silence_max_s = silence_max_s(keep_alive_s);
        self.connack.server_keep_alive_s = Some(keep_alive_s);
        true
    }
}

fn silence_max_s(keep_alive_s: u16) -> u32 {
    (u32::from(keep_alive_s) * 3).div_ceil(2)
}

/// Judges everything of a CONNECT but its secret.
///
/// # Errors
/// [`Refusal`].
pub fn judge(connect: &Connect, bounds: &config::Edge) -> Result<Granted, Refusal> {
    let refuse = |reason, result| Err(Refusal { reason, result });
    if connect.auth_method.is_some() {
        return refuse(reason::BAD_AUTHENTICATION_METHOD, Handshake::BadCredentials);
    }
    if connect.client_id.is_empty() {
        return refuse(reason::CLIENT_ID_INVALID, Handshake::Malformed);
    }
    let is_other = connect.username.as_ref().is_some_and(|name| *name != connect.client_id);
    if is_other || connect.password.is_none() {
        return refuse(reason::BAD_CREDENTIALS, Handshake::BadCredentials);
    }
    let keep_alive_s = granted_keep_alive(connect, bounds);
    let expiry_s = connect.session_expiry_s.min(bounds.session_expiry_max_s);
    let terms = Terms {
        version: connect.version,
        is_clean: connect.clean_start,
        silence_max_s: silence_max_s(keep_alive_s),
        expiry_s,
        expiry_s_max: bounds.session_expiry_max_s,
        receive_max: connect.receive_max.max(1),
        max_packet_bytes: connect.max_packet_bytes.unwrap_or(u32::MAX),
        alias_max: connect.topic_alias_max,
    };
    let is_v5 = connect.version == Version::V5;
    let connack = ConnAck {
        reason: reason::SUCCESS,
        session_expiry_s: (expiry_s != connect.session_expiry_s && is_v5).then_some(expiry_s),
        receive_max: Some(UPLINKS_MAX),
        qos_max: Some(Qos::AtLeastOnce),
        max_packet_bytes: Some(bounds.packet_bytes_max),
        topic_alias_max: None,
        server_keep_alive_s: (keep_alive_s != connect.keep_alive_s && is_v5)
            .then_some(keep_alive_s),
        wildcards: false,
        shared: false,
        subscription_ids: false,
        retain: false,
        ..ConnAck::default()
    };
    Ok(Granted { terms, connack })
}

/// The keep-alive that is enforced. MQTT 5 is told of another one than it asked for;
/// 3.1.1 cannot be, so that a short one stays as it is.
fn granted_keep_alive(connect: &Connect, bounds: &config::Edge) -> u16 {
    let (min, max) = (bounds.keep_alive_min_s, bounds.keep_alive_max_s);
    match (connect.keep_alive_s, connect.version) {
        (0, _) => max,
        (asked, Version::V5) => asked.clamp(min, max),
        (asked, Version::V311) => asked.min(max),
    }
}

/// The version that a stream's first bytes claim, however broken the rest is.
pub fn claimed_version(bytes: &[u8]) -> Option<Version> {
    const CONNECT: u8 = 0x10;
    let (first, rest) = bytes.split_first()?;
    let varint_bytes = rest.iter().take(4).position(|byte| byte & 0x80 == 0)? + 1;
    let body = rest.get(varint_bytes..)?;
    match (*first, body) {
        (CONNECT, [0, 4, b'M', b'Q', b'T', b'T', 5, ..]) => Some(Version::V5),
        (CONNECT, [0, 4, b'M', b'Q', b'T', b'T', ..]) => Some(Version::V311),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn connect(version: Version) -> Connect {
        Connect {
            version,
            client_id: "device".into(),
            password: Some(Bytes::from_static(b"secret")),
            keep_alive_s: 60,
            ..Connect::default()
        }
    }

    fn refused(connect: &Connect) -> u8 {
        judge(connect, &config::Edge::default()).unwrap_err().reason
    }

    #[test]
    fn each_refusal_has_its_code() {
        let good = connect(Version::V5);
        assert_eq!(refused(&Connect { client_id: String::new(), ..good.clone() }), 0x85);
        assert_eq!(refused(&Connect { auth_method: Some("x".into()), ..good.clone() }), 0x8C);
        assert_eq!(refused(&Connect { password: None, ..good.clone() }), 0x86);
        assert_eq!(refused(&Connect { username: Some("other".into()), ..good.clone() }), 0x86);
        assert!(
            judge(&Connect { username: Some("device".into()), ..good }, &config::Edge::default())
                .is_ok()
        );
    }

    #[test]
    fn the_granted_keep_alive_is_in_bounds_and_told_where_it_can_be() {
        let bounds = config::Edge::default();
        let granted = |version, asked| {
            let connect = Connect { keep_alive_s: asked, ..connect(version) };
            let granted = judge(&connect, &bounds).unwrap();
            (granted.terms.silence_max_s, granted.connack.server_keep_alive_s)
        };
        assert_eq!(granted(Version::V5, 60), (90, None));
        assert_eq!(granted(Version::V5, 0), (1_800, Some(1_200)));
        assert_eq!(granted(Version::V5, 1), (15, Some(10)));
        assert_eq!(granted(Version::V311, 1), (2, None));
        assert_eq!(granted(Version::V311, 0), (1_800, None));
        assert_eq!(granted(Version::V311, 65_535), (1_800, None));
    }

    #[test]
    fn the_version_is_read_from_broken_packets_too() {
        assert_eq!(claimed_version(b"\x10\x0c\0\x04MQTT\x05\xff"), Some(Version::V5));
        assert_eq!(claimed_version(b"\x10\x0c\0\x04MQTT\x07"), Some(Version::V311));
        assert_eq!(claimed_version(b"GET / HTTP/1.1"), None);
        assert_eq!(claimed_version(b"\x10\xff\xff\xff\xff\xff"), None);
        assert_eq!(claimed_version(b""), None);
    }
}
