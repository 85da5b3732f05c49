//! Where a message is, told from positions: no write per delivery.

use serde::Serialize;

use super::{Error, Service};
use crate::base::ids::AppId;

/// A message's state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MessageState {
    /// Its id.
    pub id: String,
    /// `accepted` while appends are pending, then `queued`, `expired`.
    pub state: &'static str,
    /// When it was accepted, in milliseconds since 1970.
    pub accepted_ms: u64,
    /// From when on it is not delivered.
    pub expires_ms: Option<u64>,
    /// How far it is.
    pub counts: Counts,
}

/// How far a message is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Queues that it was sent to.
    pub queues: usize,
    /// Of these, where it has its place.
    pub appended: usize,
    /// Registrations that follow these queues now and were looked at.
    pub followers: usize,
    /// Of these, whose pointer is at or past the message.
    pub passed: usize,
    /// More follow than were looked at.
    pub is_partial: bool,
}

/// What happened to a message on its way to one registration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trace {
    /// The message.
    pub id: String,
    /// The registration.
    pub regid: String,
    /// In time order.
    pub milestones: Vec<Milestone>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Milestone {
    /// `accepted`, `durable`, `passed`, `not_followed`, `expired`, `pending`.
    pub name: &'static str,
    /// When, in milliseconds since 1970, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// The queue, as `own`, `alias:NAME`, `topic:NAME`, `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// The place in it, `epoch:seq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

/// A registration as its app sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RegistrationView {
    /// Its name.
    pub regid: String,
    /// Whether its device is connected.
    pub online: bool,
    /// Bound aliases.
    pub aliases: Vec<String>,
    /// Topics that it subscribes to.
    pub topics: Vec<String>,
    /// How far it is in each queue that it follows.
    pub pointers: Vec<PointerView>,
}

/// How far a registration is in one queue.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PointerView {
    /// `own`, `alias:NAME`, `topic:NAME`, `all`.
    pub queue: String,
    /// Acknowledged up to, `epoch:seq`.
    pub acked: String,
    /// The queue's head, `epoch:seq`.
    pub head: String,
}

impl Service {
    /// A message's state and counts.
    ///
    /// # Errors
    /// [`Error::NotFound`] (also for another app's), [`Error::Unavailable`].
    pub fn message(&self, _app: &AppId, _id: &str) -> Result<MessageState, Error> {
        todo!()
    }

    /// What happened to a message on its way to one registration.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub fn trace(&self, _app: &AppId, _id: &str, _regid: &str) -> Result<Trace, Error> {
        todo!()
    }

    /// Bindings, presence and pointers of a registration.
    ///
    /// # Errors
    /// [`Error::NotFound`] (also for another app's), [`Error::Unavailable`].
    pub fn registration(&self, _app: &AppId, _regid: &str) -> Result<RegistrationView, Error> {
        todo!()
    }
}
