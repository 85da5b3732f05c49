//! What an app asks of the gateway, and how that can end.

use carillon_wire::idl;
use tokio::sync::oneshot;

use crate::names::{App, RegId};

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no connection, or it ended before the answer came. Whether the gateway acted is not known; all calls
    /// may be repeated.
    #[error("offline")]
    Offline,
    /// No answer within 15 s.
    #[error("no answer in time")]
    Timeout,
    /// More calls are waiting than the device holds.
    #[error("too many calls at a time")]
    Busy,
    /// Too long for a frame.
    #[error("the call is too long for a frame")]
    TooLarge,
    /// The gateway said no.
    #[error("refused, {refusal:?}: {message}")]
    Refused {
        /// Why.
        refusal: Refusal,
        /// For humans.
        message: String,
    },
    /// The gateway said yes and left out what was asked for.
    #[error("the answer lacks the registration")]
    Incomplete,
}

/// Why the gateway said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The frame was not valid.
    Malformed,
    /// The gateway does not know such a call.
    UnknownKind,
    /// A name, list or token is out of its bounds.
    Invalid,
    /// Unknown regID on this device, or wrong app id or key.
    NotFound,
    /// The app's policy does not allow this, or the token is not valid.
    Forbidden,
    /// Too many aliases, topics or registrations.
    Limit,
    /// Repeat it later, with jitter.
    Unavailable,
    /// A code that this version does not know: no.
    Other(i32),
}

impl Refusal {
    fn from_idl(code: idl::ResultCode) -> Self {
        match code {
            idl::ResultCode::MALFORMED => Self::Malformed,
            idl::ResultCode::UNKNOWN_KIND => Self::UnknownKind,
            idl::ResultCode::INVALID => Self::Invalid,
            idl::ResultCode::NOT_FOUND => Self::NotFound,
            idl::ResultCode::FORBIDDEN => Self::Forbidden,
            idl::ResultCode::LIMIT => Self::Limit,
            idl::ResultCode::UNAVAILABLE => Self::Unavailable,
            other => Self::Other(other.0),
        }
    }
}

/// How a call ended: with the regID, if it was a registration.
pub type Answer = Result<Option<RegId>, CallError>;

/// A call on its way to the connection.
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    pub reply: oneshot::Sender<Answer>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Request {
    Register(idl::Register),
    Unregister(RegId),
    Bind(idl::Bind),
    Unbind(idl::Unbind),
    Subscribe(idl::Subscribe),
    Unsubscribe(idl::Unsubscribe),
    Event(idl::Event),
    Accept(idl::Accept),
}

/// What the device's own state owes to a call that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    Registers(App),
    Unregisters(RegId),
}

impl Request {
    /// What to remember until the answer.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Register(register) => {
                let idl::Register { app_id, app_key, .. } = register.clone();
                Effect::Registers(App { app_id, app_key })
            }
            Self::Unregister(regid) => Effect::Unregisters(regid.clone()),
            Self::Bind(_)
            | Self::Unbind(_)
            | Self::Subscribe(_)
            | Self::Unsubscribe(_)
            | Self::Event(_)
            | Self::Accept(_) => Effect::None,
        }
    }

    /// The frame, with its number.
    pub fn into_up(self, number: i64) -> idl::Up {
        let mut up = idl::Up { request: Some(number), ..carillon_wire::frame::empty_up() };
        match self {
            Self::Register(register) => up.register_app = Some(register),
            Self::Unregister(regid) => {
                let regid = regid.to_string();
                up.unregister = Some(idl::Unregister { regid });
            }
            Self::Bind(bind) => up.bind = Some(bind),
            Self::Unbind(unbind) => up.unbind = Some(unbind),
            Self::Subscribe(subscribe) => up.subscribe = Some(subscribe),
            Self::Unsubscribe(unsubscribe) => up.unsubscribe = Some(unsubscribe),
            Self::Event(event) => up.event = Some(event),
            Self::Accept(accept) => up.accept = Some(accept),
        }
        up
    }
}

/// Reads a `Result`.
pub fn answer(result: idl::Result) -> Answer {
    match result.code {
        idl::ResultCode::OK => Ok(result.regid.map(RegId::from)),
        code => Err(CallError::Refused {
            refusal: Refusal::from_idl(code),
            message: result.message.unwrap_or_default(),
        }),
    }
}
