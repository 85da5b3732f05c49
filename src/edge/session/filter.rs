//! Topic filters: which there are, and whose they are. Pure.

use carillon_wire::mqtt::{Qos, reason};

use crate::{
    base::ids::{AppId, RegId, Topic},
    service::{self, records::Registration},
};

/// What a filter asks for. The app is named where it is not the only one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Frames.
    Down,
    /// Everything that a registration follows.
    Push(Option<AppId>),
    /// One topic, which it follows from then on.
    Topic(Option<AppId>, Topic),
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it means.
    pub filter: Filter,
    /// What it says: the MQTT topic of what is delivered by it.
    pub text: String,
    /// As asked.
    pub qos: Qos,
}

/// One filter that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// As subscribed; the MQTT topic of what is delivered by it.
    pub text: Box<str>,
    /// At most 1.
    pub qos: Qos,
    /// The registration that it is about.
    pub regid: RegId,
    /// The one topic, or everything that the registration follows.
    pub topic: Option<Topic>,
}

/// Reads a topic filter.
///
/// # Errors
/// The reason code for SUBACK.
pub fn parse(text: &str) -> Result<Filter, u8> {
    if text.starts_with("$share/") {
        return Err(reason::SHARED_NOT_SUPPORTED);
    }
    if text.contains(['+', '#']) {
        return Err(reason::WILDCARD_NOT_SUPPORTED);
    }
    let app = |text: &str| text.parse().map(Some).map_err(|_| reason::TOPIC_FILTER_INVALID);
    let topic = |text: &str| text.parse().map_err(|_| reason::TOPIC_FILTER_INVALID);
    let parts: Vec<&str> = text.splitn(4, '/').collect();
    match parts[..] {
        ["down"] => Ok(Filter::Down),
        ["push"] => Ok(Filter::Push(None)),
        ["push", name] => Ok(Filter::Push(app(name)?)),
        ["topic", name] => Ok(Filter::Topic(None, topic(name)?)),
        ["topic", owner, name] => Ok(Filter::Topic(app(owner)?, topic(name)?)),
        _ => Err(reason::TOPIC_FILTER_INVALID),
    }
}

/// The filters that a plain connection may have: frames do not mix in.
pub fn only_plain(wanted: Result<Wanted, u8>) -> Result<Wanted, u8> {
    wanted.and_then(|wanted| match wanted.filter {
        Filter::Down => Err(reason::NOT_AUTHORIZED),
        Filter::Push(_) | Filter::Topic(..) => Ok(wanted),
    })
}

/// Which of the device's registrations a filter is about.
///
/// # Errors
/// The reason code for SUBACK.
pub fn resolve(wanted: Wanted, registrations: &[Registration]) -> Result<Subscription, u8> {
    let (app, topic) = match wanted.filter {
        Filter::Down => return Err(reason::NOT_AUTHORIZED),
        Filter::Push(app) => (app, None),
        Filter::Topic(app, topic) => (app, Some(topic)),
    };
    let registration = match (app, registrations) {
        (None, [only]) => only,
        (None, []) => return Err(reason::NOT_AUTHORIZED),
        (None, [_, _, ..]) => return Err(reason::TOPIC_FILTER_INVALID),
        (Some(app), all) => {
            all.iter().find(|registration| registration.app == app).ok_or(reason::NOT_AUTHORIZED)?
        }
    };
    let qos = wanted.qos.min(Qos::AtLeastOnce);
    Ok(Subscription { text: wanted.text.into(), qos, regid: registration.regid, topic })
}

/// SUBACK's and UNSUBACK's code for a topic that could not be followed.
pub fn refusal(error: &service::Error) -> u8 {
    match error {
        service::Error::Invalid { .. }
        | service::Error::Gone
        | service::Error::Conflict(_)
        | service::Error::KeyInUse
        | service::Error::KeyReused => reason::TOPIC_FILTER_INVALID,
        service::Error::NotFound { .. }
        | service::Error::Forbidden(_)
        | service::Error::Sealed(_)
        | service::Error::NeedsPolicy => reason::NOT_AUTHORIZED,
        service::Error::Limit { .. } | service::Error::Allowance { .. } => reason::QUOTA_EXCEEDED,
        service::Error::StorageBehind | service::Error::Unavailable(_) => {
            reason::IMPLEMENTATION_SPECIFIC
        }
    }
}
