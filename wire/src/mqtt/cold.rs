//! Decoding of the rare packets by `rmqtt-codec`, after [`check`](super::check) has judged their bytes.
//!
//! The codec is handed a copy of one whole packet: it reserves room by what a header announces, and would do so in
//! the connection's buffer.

use bytes::{Bytes, BytesMut};
use rmqtt_codec::types::QoS;
use rmqtt_codec::{v3, v5};
use tokio_util::codec::Decoder as _;

use super::error::Error;
use super::packet::{
    ConnAck, Connect, Disconnect, Packet, Qos, SubAck, Subscribe, Unsubscribe, Version,
};
use super::reason;

/// Decodes one whole packet, header included.
pub(super) fn decode(version: Version, packet: &[u8]) -> Result<Packet, Error> {
    let mut copy = BytesMut::from(packet);
    match version {
        Version::V311 => match v3::Codec::new(0).decode(&mut copy) {
            Ok(Some((packet, _))) => from_v3(packet),
            Ok(None) | Err(_) => Err(REFUSED),
        },
        Version::V5 => match v5::Codec::new(0, 0).decode(&mut copy) {
            Ok(Some((packet, _))) => from_v5(packet),
            Ok(None) | Err(_) => Err(REFUSED),
        },
    }
}

fn from_v3(packet: v3::Packet) -> Result<Packet, Error> {
    Ok(match packet {
        v3::Packet::Connect(connect) => Packet::Connect(Box::new(connect_v3(*connect))),
        v3::Packet::ConnectAck(ack) => Packet::ConnAck(Box::new(ConnAck {
            session_present: ack.session_present,
            reason: from_return_code(ack.return_code),
            ..ConnAck::default()
        })),
        v3::Packet::Subscribe { packet_id, topic_filters } => Packet::Subscribe(Subscribe {
            packet_id: packet_id.get(),
            filters: topic_filters
                .iter()
                .map(|(filter, qos)| (filter.to_string(), from_qos(*qos)))
                .collect(),
            subscription_id: None,
        }),
        v3::Packet::SubscribeAck { packet_id, status } => Packet::SubAck(SubAck {
            packet_id: packet_id.get(),
            reasons: status
                .into_iter()
                .map(|status| match status {
                    v3::SubscribeReturnCode::Success(qos) => qos.value(),
                    v3::SubscribeReturnCode::Failure => reason::UNSPECIFIED,
                })
                .collect(),
        }),
        v3::Packet::Unsubscribe { packet_id, topic_filters } => Packet::Unsubscribe(Unsubscribe {
            packet_id: packet_id.get(),
            filters: topic_filters.iter().map(ToString::to_string).collect(),
        }),
        v3::Packet::UnsubscribeAck { packet_id } => {
            Packet::UnsubAck(SubAck { packet_id: packet_id.get(), reasons: Vec::new() })
        }
        v3::Packet::Disconnect => Packet::Disconnect(Disconnect::default()),
        v3::Packet::Publish(_)
        | v3::Packet::PublishAck { .. }
        | v3::Packet::PublishReceived { .. }
        | v3::Packet::PublishRelease { .. }
        | v3::Packet::PublishComplete { .. }
        | v3::Packet::PingRequest
        | v3::Packet::PingResponse => return Err(REFUSED),
    })
}

fn from_v5(packet: v5::Packet) -> Result<Packet, Error> {
    Ok(match packet {
        v5::Packet::Connect(connect) => Packet::Connect(Box::new(connect_v5(*connect))),
        v5::Packet::ConnectAck(ack) => Packet::ConnAck(Box::new(connack_v5(*ack))),
        v5::Packet::Subscribe(subscribe) => Packet::Subscribe(Subscribe {
            packet_id: subscribe.packet_id.get(),
            filters: subscribe
                .topic_filters
                .iter()
                .map(|(filter, options)| (filter.to_string(), from_qos(options.qos)))
                .collect(),
            subscription_id: subscribe.id.map(Into::into),
        }),
        v5::Packet::SubscribeAck(ack) => Packet::SubAck(SubAck {
            packet_id: ack.packet_id.get(),
            reasons: ack.status.into_iter().map(u8::from).collect(),
        }),
        v5::Packet::Unsubscribe(unsubscribe) => Packet::Unsubscribe(Unsubscribe {
            packet_id: unsubscribe.packet_id.get(),
            filters: unsubscribe.topic_filters.iter().map(ToString::to_string).collect(),
        }),
        v5::Packet::UnsubscribeAck(ack) => Packet::UnsubAck(SubAck {
            packet_id: ack.packet_id.get(),
            reasons: ack.status.into_iter().map(u8::from).collect(),
        }),
        v5::Packet::Disconnect(disconnect) => Packet::Disconnect(Disconnect {
            reason: disconnect.reason_code.into(),
            session_expiry_s: disconnect.session_expiry_interval_secs,
            server_reference: disconnect.server_reference.map(String::from),
            reason_string: disconnect.reason_string.map(String::from),
            user: from_user(disconnect.user_properties),
        }),
        v5::Packet::Auth(_) => Packet::Auth,
        v5::Packet::Publish(_)
        | v5::Packet::PublishAck(_)
        | v5::Packet::PublishReceived(_)
        | v5::Packet::PublishRelease(_)
        | v5::Packet::PublishComplete(_)
        | v5::Packet::PingRequest
        | v5::Packet::PingResponse => return Err(REFUSED),
    })
}

fn connect_v3(connect: v3::Connect) -> Connect {
    Connect {
        version: Version::V311,
        clean_start: connect.clean_session,
        keep_alive_s: connect.keep_alive,
        client_id: connect.client_id.into(),
        username: connect.username.map(String::from),
        password: connect.password.map(|password| Bytes::copy_from_slice(&password)),
        has_will: connect.last_will.is_some(),
        session_expiry_s: if connect.clean_session { 0 } else { u32::MAX },
        ..Connect::default()
    }
}

fn connect_v5(connect: v5::Connect) -> Connect {
    Connect {
        version: Version::V5,
        clean_start: connect.clean_start,
        keep_alive_s: connect.keep_alive,
        client_id: connect.client_id.into(),
        username: connect.username.map(String::from),
        password: connect.password.map(|password| Bytes::copy_from_slice(&password)),
        has_will: connect.last_will.is_some(),
        session_expiry_s: connect.session_expiry_interval_secs,
        receive_max: connect.receive_max.map_or(u16::MAX, Into::into),
        max_packet_bytes: connect.max_packet_size.map(Into::into),
        topic_alias_max: connect.topic_alias_max,
        auth_method: connect.auth_method.map(String::from),
    }
}

fn connack_v5(ack: v5::ConnectAck) -> ConnAck {
    ConnAck {
        session_present: ack.session_present,
        reason: ack.reason_code.into(),
        session_expiry_s: ack.session_expiry_interval_secs,
        receive_max: Some(ack.receive_max.get()).filter(|max| *max != u16::MAX),
        qos_max: Some(from_qos(ack.max_qos)).filter(|qos| *qos != Qos::ExactlyOnce),
        max_packet_bytes: ack.max_packet_size,
        topic_alias_max: Some(ack.topic_alias_max).filter(|max| *max != 0),
        server_keep_alive_s: ack.server_keepalive_sec,
        reason_string: ack.reason_string.map(String::from),
        wildcards: ack.wildcard_subscription_available,
        shared: ack.shared_subscription_available,
        subscription_ids: ack.subscription_identifiers_available,
        retain: ack.retain_available,
        user: from_user(ack.user_properties),
    }
}

fn from_return_code(code: v3::ConnectAckReason) -> u8 {
    match code {
        v3::ConnectAckReason::ConnectionAccepted => reason::SUCCESS,
        v3::ConnectAckReason::UnacceptableProtocolVersion => reason::UNSUPPORTED_VERSION,
        v3::ConnectAckReason::IdentifierRejected => reason::CLIENT_ID_INVALID,
        v3::ConnectAckReason::ServiceUnavailable => reason::SERVER_UNAVAILABLE,
        v3::ConnectAckReason::BadUserNameOrPassword => reason::BAD_CREDENTIALS,
        v3::ConnectAckReason::NotAuthorized => reason::NOT_AUTHORIZED,
        v3::ConnectAckReason::Reserved => reason::UNSPECIFIED,
    }
}

fn from_qos(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

fn from_user(properties: v5::UserProperties) -> Vec<(String, String)> {
    properties.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

const REFUSED: Error = Error::Malformed("refused by the codec");
