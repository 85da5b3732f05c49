//! Sending: from a request that cannot be wrong to durable entries.

use bytes::Bytes;

use super::{Error, Service};
use crate::{
    base::{
        ids::{AppId, MessageId},
        metrics::TargetKind,
    },
    queue::entry::Notification,
};

/// What an app server sends.
#[derive(Clone, Debug)]
pub struct Send {
    /// To whom.
    pub target: Target,
    /// As sent: compact JSON, or bytes.
    pub payload: Bytes,
    /// What the device may show by itself.
    pub notification: Option<Notification>,
    /// How long it lives; `None` takes the default.
    pub ttl_s: Option<u64>,
}

/// To whom a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Registrations, as stated.
    Regids(Vec<String>),
    /// Aliases, as stated.
    Aliases(Vec<String>),
    /// Everybody who follows a topic.
    Topic(String),
    /// Every registration of the app.
    All,
}

/// An accepted, durable message.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its id.
    pub id: MessageId,
    /// The kind of its target.
    pub kind: TargetKind,
    /// regIDs: how many are valid. Others: how many registrations follow now.
    pub matched: usize,
    /// regIDs of the request that are not registrations of this app, as stated.
    pub invalid: Vec<String>,
}

impl Service {
    /// Sends a message. When this returns it is durable.
    ///
    /// # Errors
    /// [`Error::Invalid`] (payload, ttl, names, no target), [`Error::NotFound`] if none of the
    /// regIDs is the app's, [`Error::Limit`], [`Error::Unavailable`].
    pub async fn send(&self, _app: &AppId, _send: Send) -> Result<Sent, Error> {
        todo!()
    }
}
