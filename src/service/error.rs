//! What a call can answer instead of its result: whose fault, and what to do.

use std::time::Duration;

use crate::{
    base::metrics::Unsent,
    longterm,
    queue::{shard, store},
};

/// A refused or failed business call. The text says what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A value is out of its bounds: the caller's fault, do not retry.
    #[error("{field}: {rule}")]
    Invalid {
        /// The field, in the API's words.
        field: &'static str,
        /// What a valid one looks like.
        rule: String,
    },
    /// There is no such thing, or it is another app's: the answer is the same.
    #[error("no such {what}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
    },
    /// The credential is wrong or does not cover this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The app seals its payloads, and this has no key.
    #[error("{0}")]
    Sealed(&'static str),
    /// The app's aliases are not safe enough for collections.
    #[error(
        "collections need an app whose alias policy is `signed` or `server`: with `open` any device may bind any alias"
    )]
    NeedsPolicy,
    /// What followed a position is not held any more, or was lost.
    #[error("the changes after this position are not held any more: take a snapshot")]
    Gone,
    /// A bound on the number of things is reached.
    #[error("at most {max} {what}")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// It exists already.
    #[error("{0} exists already")]
    Conflict(&'static str),
    /// The app sends more than it may.
    #[error("{what}")]
    Allowance {
        /// Which bound, in words.
        what: &'static str,
        /// The same for the metric.
        bound: Unsent,
        /// When to try again.
        after: Duration,
    },
    /// A call with the same idempotency key still runs.
    #[error("a call with this Idempotency-Key is still running")]
    KeyInUse,
    /// The idempotency key was used for another call.
    #[error("this Idempotency-Key was used for another request within the last 24 hours")]
    KeyReused,
    /// Long-term storage is too far behind to take more changes; messages go on.
    #[error(
        "long-term storage is behind, changes of collections have to wait; messages are accepted"
    )]
    StorageBehind,
    /// Not the caller's fault: try again later.
    #[error("the node cannot do this now, try again later")]
    Unavailable(#[source] shard::Error),
}

impl Error {
    /// Whether stored records are damaged: others can still be read.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Unavailable(shard::Error::Store(store::Error::Damaged(_))))
    }

    /// Why a message was not accepted, for the metric.
    pub fn unsent(&self) -> Unsent {
        match self {
            Self::Invalid { .. } => Unsent::Invalid,
            Self::NotFound { .. } => Unsent::NotFound,
            Self::Limit { .. } => Unsent::Limit,
            Self::Allowance { bound, .. } => *bound,
            Self::KeyInUse => Unsent::KeyInUse,
            Self::KeyReused => Unsent::KeyReused,
            Self::Forbidden(_)
            | Self::Sealed(_)
            | Self::NeedsPolicy
            | Self::Gone
            | Self::Conflict(_) => Unsent::Refused,
            Self::StorageBehind | Self::Unavailable(_) => Unsent::Unavailable,
        }
    }
}

impl From<shard::Error> for Error {
    fn from(error: shard::Error) -> Self {
        Self::Unavailable(error)
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Unavailable(error.into())
    }
}

impl From<longterm::Error> for Error {
    fn from(error: longterm::Error) -> Self {
        let error = match error {
            longterm::Error::Store(error) => error,
            longterm::Error::Damaged(what) => store::Error::Damaged(what),
            other => {
                let (step, cause) = ("read long-term storage", other.to_string());
                store::Error::Engine { step, cause }
            }
        };
        error.into()
    }
}

impl From<crate::base::ids::ParseError> for Error {
    fn from(error: crate::base::ids::ParseError) -> Self {
        Self::Invalid { field: error.kind, rule: error.rule.to_owned() }
    }
}
