//! What an app asks of the gateway, and how that can end.

use carillon_wire::idl;
use carillon_wire::seal::is_proof;
use tokio::sync::oneshot;

use crate::applier::Frame;
use crate::names::{App, RegId};
use crate::seals::{Offered, Rekeying};
use crate::session::Given;

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
    /// Whoever answered does not have the app's private key. Nothing of that registration is taken.
    #[error("the answer is not confirmed by the app's key")]
    NotConfirmed,
    /// The registration is not a sealed one of this device, or the system has no random numbers.
    #[error("there is no key to change")]
    NotSealed,
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
    /// The app seals its payloads: register with its key.
    Sealed,
    /// A code that this version does not know: no.
    Other(i32),
}

impl Refusal {
    pub(crate) fn from_idl(code: idl::ResultCode) -> Self {
        match code {
            idl::ResultCode::MALFORMED => Self::Malformed,
            idl::ResultCode::UNKNOWN_KIND => Self::UnknownKind,
            idl::ResultCode::INVALID => Self::Invalid,
            idl::ResultCode::NOT_FOUND => Self::NotFound,
            idl::ResultCode::FORBIDDEN => Self::Forbidden,
            idl::ResultCode::LIMIT => Self::Limit,
            idl::ResultCode::UNAVAILABLE => Self::Unavailable,
            idl::ResultCode::SEALED => Self::Sealed,
            other => Self::Other(other.0),
        }
    }
}

/// How a call ended: with what the gateway answered.
pub type Answer = Result<Box<idl::Result>, CallError>;

/// A call on its way to the connection.
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    pub reply: oneshot::Sender<Answer>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Request {
    Register(idl::Register, Option<Box<Offered>>),
    Rekey(Rekeying),
    Unregister(RegId),
    Bind(idl::Bind),
    Unbind(idl::Unbind),
    Subscribe(idl::Subscribe),
    Unsubscribe(idl::Unsubscribe),
    Event(idl::Event),
    Accept(idl::Accept),
    Describe(idl::Describe),
    /// An upload or a repair; whoever asks reads the code of the answer.
    #[cfg_attr(not(feature = "collections"), allow(dead_code, reason = "nobody asks"))]
    Collections(Box<idl::Up>),
}

/// What the device's own state owes to a call that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// Any answer is one.
    Collections,
    Registers(App, Option<Box<Offered>>),
    Rekeys(Box<Rekeying>),
    Unregisters(RegId),
}

impl Effect {
    /// What the answer means for the device's state, and for whoever called.
    pub fn settle(self, result: idl::Result, packet_id: Option<u16>) -> (Given, Answer) {
        if self == Self::Collections {
            return (Given::Nothing, Ok(Box::new(result)));
        }
        let seal = result.seal.clone();
        let answer = answer(result);
        let regid = answer.as_ref().ok().and_then(|result| result.regid.as_deref());
        let regid = regid.map(RegId::from);
        let unconfirmed = (Given::Nothing, Err(CallError::NotConfirmed));
        let frame = |frame| Given::Frame { frame, packet_id };
        let given = match (self, &answer) {
            (Self::Registers(app, offered), Ok(_)) => {
                let Some(regid) = regid else {
                    return (Given::Nothing, Err(CallError::Incomplete));
                };
                let Some(offered) = offered else { return (Given::Registered(regid, app), answer) };
                match offered.agree(&regid, seal.as_ref()) {
                    Some(agreed) => frame(Frame::Sealed(regid, Box::new(agreed))),
                    None => return unconfirmed,
                }
            }
            (Self::Rekeys(rekeying), Ok(_)) => {
                let confirmation = seal.map(|seal| seal.confirmation).unwrap_or_default();
                if !is_proof(&rekeying.confirmation, &confirmation) {
                    return unconfirmed;
                }
                frame(Frame::Rekeyed(RegId::from(rekeying.rekey.regid)))
            }
            (Self::Rekeys(rekeying), Err(CallError::Refused { .. })) => {
                frame(Frame::NotRekeyed(RegId::from(rekeying.rekey.regid)))
            }
            (Self::Unregisters(regid), Ok(_)) => Given::Unregistered(regid),
            (Self::None | Self::Collections, _) | (_, Err(_)) => Given::Nothing,
        };
        (given, answer)
    }
}

impl Request {
    /// What to remember until the answer.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Rekey(rekeying) => Effect::Rekeys(Box::new(rekeying.clone())),
            Self::Register(register, offered) => {
                let idl::Register { app_id, app_key, .. } = register.clone();
                Effect::Registers(App { app_id, app_key }, offered.clone())
            }
            Self::Unregister(regid) => Effect::Unregisters(regid.clone()),
            Self::Collections(_) => Effect::Collections,
            Self::Bind(_)
            | Self::Unbind(_)
            | Self::Subscribe(_)
            | Self::Unsubscribe(_)
            | Self::Event(_)
            | Self::Accept(_)
            | Self::Describe(_) => Effect::None,
        }
    }

    /// The frame, with its number.
    pub fn into_up(self, number: i64) -> idl::Up {
        let mut up = idl::Up { request: Some(number), ..carillon_wire::frame::empty_up() };
        match self {
            Self::Rekey(rekeying) => up.rekey = Some(rekeying.rekey),
            Self::Register(register, _) => up.register_app = Some(register),
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
            Self::Describe(describe) => up.describe = Some(describe),
            Self::Collections(asked) => up = idl::Up { request: up.request, ..*asked },
        }
        up
    }
}

/// Reads a `Result`.
fn answer(result: idl::Result) -> Answer {
    match result.code {
        idl::ResultCode::OK => Ok(Box::new(result)),
        code => Err(CallError::Refused {
            refusal: Refusal::from_idl(code),
            message: result.message.unwrap_or_default(),
        }),
    }
}
