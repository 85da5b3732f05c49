//! Encoding of any packet. PUBLISH, acknowledgements and pings by hand, the rest through `rmqtt-codec`.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::{BufMut, BytesMut};
use rmqtt_codec::types::{Protocol, QoS};
use rmqtt_codec::{v3, v5};
use tokio_util::codec::Encoder as _;

use super::decoder::Kind;
use super::error::Error;
use super::hot::is_ack_reason;
use super::packet::{
    Ack, ConnAck, Connect, Disconnect, Packet, Publish, Qos, SubAck, Subscribe, Unsubscribe,
    Version,
};
use super::publish::{PublishHead, encode_publish};
use super::reason;

/// Appends `packet` to `out`.
///
/// What MQTT 3.1.1 cannot say is left out; CONNACK and SUBACK codes become the nearest that it has.
///
/// # Errors
/// [`Error::Unencodable`]: a packet id of 0, a string over 65,535 bytes, an empty list, a Will, AUTH in 3.1.1, a code
/// below 0x80 that the packet cannot carry. `out` is then as before.
pub fn encode(version: Version, packet: &Packet, out: &mut BytesMut) -> Result<(), Error> {
    let length = out.len();
    let result = encode_any(version, packet, out);
    if result.is_err() {
        out.truncate(length);
    }
    result
}

fn encode_any(version: Version, packet: &Packet, out: &mut BytesMut) -> Result<(), Error> {
    match packet {
        Packet::Publish(publish) => return encode_checked_publish(version, publish, out),
        Packet::PubAck(ack) => return encode_ack(version, 0x40, Kind::PubAck, *ack, out),
        Packet::PubRec(ack) => return encode_ack(version, 0x50, Kind::PubRec, *ack, out),
        Packet::PubRel(ack) => return encode_ack(version, 0x62, Kind::PubRel, *ack, out),
        Packet::PubComp(ack) => return encode_ack(version, 0x70, Kind::PubComp, *ack, out),
        Packet::PingReq => out.put_slice(&[0xC0, 0]),
        Packet::PingResp => out.put_slice(&[0xD0, 0]),
        Packet::Disconnect(disconnect) if is_plain(version, disconnect) => {
            out.put_slice(&[0xE0, 0])
        }
        Packet::Connect(_)
        | Packet::ConnAck(_)
        | Packet::Subscribe(_)
        | Packet::SubAck(_)
        | Packet::Unsubscribe(_)
        | Packet::UnsubAck(_)
        | Packet::Disconnect(_)
        | Packet::Auth => match version {
            Version::V311 => {
                let packet = to_v3(packet)?;
                v3::Codec::new(0).encode(packet, out).map_err(|_| REFUSED)?;
            }
            Version::V5 => {
                let packet = to_v5(packet)?;
                v5::Codec::new(0, 0).encode(packet, out).map_err(|_| REFUSED)?;
            }
        },
    }
    Ok(())
}

fn is_plain(version: Version, disconnect: &Disconnect) -> bool {
    version == Version::V311 || *disconnect == Disconnect::default()
}

fn encode_ack(
    version: Version,
    first: u8,
    kind: Kind,
    ack: Ack,
    out: &mut BytesMut,
) -> Result<(), Error> {
    packet_id(ack.packet_id)?;
    if !is_ack_reason(kind, ack.reason) {
        return Err(Error::Unencodable("a reason that this packet cannot carry"));
    }
    let [high, low] = ack.packet_id.to_be_bytes();
    match (version, ack.reason) {
        (Version::V311, _) | (Version::V5, 0) => out.put_slice(&[first, 2, high, low]),
        (Version::V5, reason) => out.put_slice(&[first, 3, high, low, reason]),
    }
    Ok(())
}

fn encode_checked_publish(
    version: Version,
    publish: &Publish,
    out: &mut BytesMut,
) -> Result<(), Error> {
    let user: Vec<(&str, &str)> =
        publish.user.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let texts =
        user.iter().flat_map(|(name, value)| [*name, *value]).chain([publish.topic.as_str()]);
    for item in texts {
        text(item)?;
    }
    if (publish.packet_id == 0) != (publish.qos == Qos::AtMostOnce) {
        return Err(Error::Unencodable("a packet id exactly above QoS 0"));
    }
    if publish.dup && publish.qos == Qos::AtMostOnce {
        return Err(Error::Unencodable("DUP with QoS 0"));
    }
    let has_alias = version == Version::V5 && publish.topic_alias.is_some();
    if publish.topic_alias == Some(0) || publish.topic.is_empty() && !has_alias {
        return Err(Error::Unencodable("no topic"));
    }
    let head = PublishHead {
        version,
        dup: publish.dup,
        qos: publish.qos,
        retain: publish.retain,
        topic: &publish.topic,
        packet_id: publish.packet_id,
        topic_alias: publish.topic_alias,
        user: &user,
        message_expiry_s: publish.message_expiry_s,
    };
    if super::publish_bytes(&head, publish.payload.len())
        > crate::limits::REMAINING_BYTES_MAX as usize
    {
        return Err(Error::Unencodable("longer than MQTT can say"));
    }
    encode_publish(&head, &publish.payload, out);
    Ok(())
}

fn to_v3(packet: &Packet) -> Result<v3::Packet, Error> {
    Ok(match packet {
        Packet::Connect(connect) => v3::Packet::Connect(Box::new(connect_v3(connect)?)),
        Packet::ConnAck(ack) => v3::Packet::ConnectAck(v3::ConnectAck {
            session_present: ack.session_present,
            return_code: to_return_code(ack.reason),
        }),
        Packet::Subscribe(subscribe) => v3::Packet::Subscribe {
            packet_id: packet_id(subscribe.packet_id)?,
            topic_filters: filters(&subscribe.filters, |(filter, qos)| {
                Ok((text(filter)?.into(), to_qos(*qos)))
            })?,
        },
        Packet::SubAck(ack) => v3::Packet::SubscribeAck {
            packet_id: packet_id(ack.packet_id)?,
            status: filters(&ack.reasons, |reason| match Qos::from_bits(*reason) {
                Some(qos) => Ok(v3::SubscribeReturnCode::Success(to_qos(qos))),
                None if *reason >= reason::UNSPECIFIED => Ok(v3::SubscribeReturnCode::Failure),
                None => Err(Error::Unencodable("a reason that this packet cannot carry")),
            })?,
        },
        Packet::Unsubscribe(unsubscribe) => v3::Packet::Unsubscribe {
            packet_id: packet_id(unsubscribe.packet_id)?,
            topic_filters: filters(&unsubscribe.filters, |filter| Ok(text(filter)?.into()))?,
        },
        Packet::UnsubAck(ack) => {
            v3::Packet::UnsubscribeAck { packet_id: packet_id(ack.packet_id)? }
        }
        _ => return Err(Error::Unencodable("a packet that MQTT 3.1.1 does not have")),
    })
}

fn to_v5(packet: &Packet) -> Result<v5::Packet, Error> {
    Ok(match packet {
        Packet::Connect(connect) => v5::Packet::Connect(Box::new(connect_v5(connect)?)),
        Packet::ConnAck(ack) => v5::Packet::ConnectAck(Box::new(connack_v5(ack)?)),
        Packet::Subscribe(subscribe) => v5::Packet::Subscribe(subscribe_v5(subscribe)?),
        Packet::SubAck(ack) => v5::Packet::SubscribeAck(v5::SubscribeAck {
            packet_id: packet_id(ack.packet_id)?,
            properties: Vec::new(),
            reason_string: None,
            status: filters(&ack.reasons, |reason| {
                nearest(
                    *reason,
                    v5::SubscribeAckReason::try_from,
                    v5::SubscribeAckReason::UnspecifiedError,
                )
            })?,
        }),
        Packet::Unsubscribe(Unsubscribe { packet_id: id, filters: list }) => {
            v5::Packet::Unsubscribe(v5::Unsubscribe {
                packet_id: packet_id(*id)?,
                user_properties: Vec::new(),
                topic_filters: filters(list, |filter| Ok(text(filter)?.into()))?,
            })
        }
        Packet::UnsubAck(SubAck { packet_id: id, reasons }) => {
            v5::Packet::UnsubscribeAck(v5::UnsubscribeAck {
                packet_id: packet_id(*id)?,
                properties: Vec::new(),
                reason_string: None,
                status: filters(reasons, |reason| {
                    nearest(
                        *reason,
                        v5::UnsubscribeAckReason::try_from,
                        v5::UnsubscribeAckReason::UnspecifiedError,
                    )
                })?,
            })
        }
        Packet::Disconnect(disconnect) => v5::Packet::Disconnect(disconnect_v5(disconnect)?),
        Packet::Auth => v5::Packet::Auth(v5::Auth::default()),
        _ => return Err(REFUSED),
    })
}

fn connect_v3(connect: &Connect) -> Result<v3::Connect, Error> {
    check_connect(connect)?;
    if connect.password.is_some() && connect.username.is_none() {
        return Err(Error::Unencodable("a password without a user name"));
    }
    Ok(v3::Connect {
        protocol: Protocol::default(),
        clean_session: connect.clean_start,
        keep_alive: connect.keep_alive_s,
        last_will: None,
        client_id: text(&connect.client_id)?.into(),
        username: optional_text(connect.username.as_ref())?,
        password: connect.password.clone(),
        cert: None,
    })
}

fn connect_v5(connect: &Connect) -> Result<v5::Connect, Error> {
    check_connect(connect)?;
    Ok(v5::Connect {
        clean_start: connect.clean_start,
        keep_alive: connect.keep_alive_s,
        session_expiry_interval_secs: connect.session_expiry_s,
        auth_method: optional_text(connect.auth_method.as_ref())?,
        receive_max: Some(non_zero(connect.receive_max)?).filter(|max| max.get() != u16::MAX),
        topic_alias_max: connect.topic_alias_max,
        max_packet_size: connect
            .max_packet_bytes
            .map(|bytes| NonZeroU32::new(bytes).ok_or(Error::Unencodable("a maximum of zero")))
            .transpose()?,
        client_id: text(&connect.client_id)?.into(),
        username: optional_text(connect.username.as_ref())?,
        password: connect.password.clone(),
        ..v5::Connect::default()
    })
}

fn check_connect(connect: &Connect) -> Result<(), Error> {
    if connect.has_will {
        return Err(Error::Unencodable("a Will"));
    }
    if connect.client_id.is_empty() && !connect.clean_start {
        return Err(Error::Unencodable("an empty client id"));
    }
    Ok(())
}

fn connack_v5(ack: &ConnAck) -> Result<v5::ConnectAck, Error> {
    Ok(v5::ConnectAck {
        session_present: ack.session_present,
        reason_code: match ack.reason {
            reason::SERVER_SHUTTING_DOWN => v5::ConnectAckReason::ServerUnavailable,
            code => nearest(
                code,
                v5::ConnectAckReason::try_from,
                v5::ConnectAckReason::UnspecifiedError,
            )?,
        },
        session_expiry_interval_secs: ack.session_expiry_s,
        receive_max: non_zero(ack.receive_max.unwrap_or(u16::MAX))?,
        max_qos: to_qos(ack.qos_max.unwrap_or(Qos::ExactlyOnce)),
        max_packet_size: ack.max_packet_bytes,
        topic_alias_max: ack.topic_alias_max.unwrap_or(0),
        retain_available: ack.retain,
        wildcard_subscription_available: ack.wildcards,
        subscription_identifiers_available: ack.subscription_ids,
        shared_subscription_available: ack.shared,
        server_keepalive_sec: ack.server_keep_alive_s,
        reason_string: optional_text(ack.reason_string.as_ref())?,
        user_properties: user_v5(&ack.user)?,
        ..v5::ConnectAck::default()
    })
}

fn subscribe_v5(subscribe: &Subscribe) -> Result<v5::Subscribe, Error> {
    Ok(v5::Subscribe {
        packet_id: packet_id(subscribe.packet_id)?,
        id: subscribe
            .subscription_id
            .map(|id| {
                NonZeroU32::new(id).filter(|id| id.get() <= crate::limits::REMAINING_BYTES_MAX)
            })
            .map(|id| id.ok_or(Error::Unencodable("a subscription identifier out of range")))
            .transpose()?,
        user_properties: Vec::new(),
        topic_filters: filters(&subscribe.filters, |(filter, qos)| {
            let options =
                v5::SubscriptionOptions { qos: to_qos(*qos), ..v5::SubscriptionOptions::default() };
            Ok((text(filter)?.into(), options))
        })?,
    })
}

fn disconnect_v5(disconnect: &Disconnect) -> Result<v5::Disconnect, Error> {
    Ok(v5::Disconnect {
        reason_code: nearest(
            disconnect.reason,
            v5::DisconnectReasonCode::try_from,
            v5::DisconnectReasonCode::UnspecifiedError,
        )?,
        session_expiry_interval_secs: disconnect.session_expiry_s,
        server_reference: optional_text(disconnect.server_reference.as_ref())?,
        reason_string: optional_text(disconnect.reason_string.as_ref())?,
        user_properties: user_v5(&disconnect.user)?,
    })
}

/// A failure that the packet has no code for becomes its "unspecified error".
fn nearest<T, E>(code: u8, exact: impl Fn(u8) -> Result<T, E>, unspecified: T) -> Result<T, Error> {
    match exact(code) {
        Ok(code) => Ok(code),
        Err(_) if code >= reason::UNSPECIFIED => Ok(unspecified),
        Err(_) => Err(Error::Unencodable("a reason that this packet cannot carry")),
    }
}

fn to_return_code(code: u8) -> v3::ConnectAckReason {
    match code {
        reason::SUCCESS => v3::ConnectAckReason::ConnectionAccepted,
        reason::UNSUPPORTED_VERSION => v3::ConnectAckReason::UnacceptableProtocolVersion,
        reason::CLIENT_ID_INVALID => v3::ConnectAckReason::IdentifierRejected,
        reason::BAD_CREDENTIALS => v3::ConnectAckReason::BadUserNameOrPassword,
        reason::NOT_AUTHORIZED | reason::BANNED | reason::BAD_AUTHENTICATION_METHOD => {
            v3::ConnectAckReason::NotAuthorized
        }
        _ => v3::ConnectAckReason::ServiceUnavailable,
    }
}

fn to_qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

fn filters<T, U>(items: &[T], each: impl Fn(&T) -> Result<U, Error>) -> Result<Vec<U>, Error> {
    if items.is_empty() {
        return Err(Error::Unencodable("an empty list"));
    }
    items.iter().map(each).collect()
}

fn user_v5(user: &[(String, String)]) -> Result<v5::UserProperties, Error> {
    user.iter().map(|(name, value)| Ok((text(name)?.into(), text(value)?.into()))).collect()
}

fn text(text: &str) -> Result<&str, Error> {
    if text.len() > usize::from(u16::MAX) {
        return Err(Error::Unencodable("a string over 65,535 bytes"));
    }
    if text.contains('\0') {
        return Err(Error::Unencodable("a string with NUL"));
    }
    Ok(text)
}

fn optional_text<T: for<'a> From<&'a str>>(value: Option<&String>) -> Result<Option<T>, Error> {
    value.map(|value| text(value).map(T::from)).transpose()
}

fn packet_id(id: u16) -> Result<NonZeroU16, Error> {
    NonZeroU16::new(id).ok_or(Error::Unencodable("a packet id of zero"))
}

fn non_zero(max: u16) -> Result<NonZeroU16, Error> {
    NonZeroU16::new(max).ok_or(Error::Unencodable("a maximum of zero"))
}

const REFUSED: Error = Error::Unencodable("refused by the codec");
