//! What becomes of sends besides being accepted.

use metrics::{Counter, counter};

use super::CounterBy;

crate::labels! {
    /// The target of a send.
    TargetKind {
        /// regIDs.
        Regids = "regids",
        /// Aliases.
        Aliases = "aliases",
        /// A topic.
        Topic = "topic",
        /// Everybody.
        All = "all",
        /// Whoever follows topics as a condition says.
        Condition = "condition",
    }
}

crate::labels! {
    /// Why a message was not accepted.
    Unsent {
        /// A value is out of its bounds.
        Invalid = "invalid",
        /// None of its targets is the app's.
        NotFound = "not_found",
        /// A bound on the number of things.
        Limit = "limit",
        /// The app's rate of targets.
        Rate = "rate",
        /// The app's rate of broadcasts.
        BroadcastRate = "broadcast_rate",
        /// The app's deliveries of the day.
        Quota = "quota",
        /// The app's deliveries of broadcasts of the day.
        BroadcastQuota = "broadcast_quota",
        /// The targets that the app may send to in a day.
        DayTargets = "day_targets",
        /// The broadcasts that the app may send in a day.
        DayBroadcasts = "day_broadcasts",
        /// A call with its idempotency key runs.
        KeyInUse = "key_in_use",
        /// Its idempotency key belongs to another call.
        KeyReused = "key_reused",
        /// Anything else that is the caller's fault.
        Refused = "refused",
        /// The store cannot take it.
        Unavailable = "unavailable",
    }
}

/// What becomes of sends besides being accepted.
pub struct SendMetrics {
    /// Messages that were not accepted, by reason.
    pub unsent: CounterBy<Unsent>,
    /// Calls that were answered, in whole or in part, from a kept answer.
    pub replays: Counter,
}

impl SendMetrics {
    /// On the recorder that is installed now.
    pub(super) fn new() -> Self {
        Self {
            unsent: CounterBy::new("carillon_unsent_messages_total", "reason"),
            replays: counter!("carillon_idempotent_replays_total"),
        }
    }
}
