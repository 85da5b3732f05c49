//! When messages go out: scheduled ones, and what is held back for a while.

use metrics::{Counter, Gauge, counter, gauge};

use super::CounterBy;
use crate::labels;

labels! {
    /// How a message's wait for its time ended.
    ScheduledEnd {
        /// It was due, and is sent.
        Due = "due",
        /// Its sender took it back.
        Cancelled = "cancelled",
        /// The node was away for so long that it had expired.
        Expired = "expired",
    }
}

labels! {
    /// Why a look into a follower's queues ended early.
    Held {
        /// An entry is spread over its followers, and this one's turn has not come.
        Rate = "rate",
        /// The registration is paused.
        Paused = "paused",
        /// It is outside the registration's hours.
        Hours = "hours",
    }
}

/// Scheduled and held messages.
pub struct TimingMetrics {
    /// Messages that were accepted for later.
    pub scheduled: Counter,
    /// Messages whose wait is over, by how it ended.
    pub scheduled_ended: CounterBy<ScheduledEnd>,
    /// Messages that wait.
    pub scheduled_pending: Gauge,
    /// Looks into queues that ended early, by why.
    pub held: CounterBy<Held>,
}

impl TimingMetrics {
    pub(super) fn new() -> Self {
        Self {
            scheduled: counter!("carillon_scheduled_total"),
            scheduled_ended: CounterBy::new("carillon_scheduled_ended_total", "how"),
            scheduled_pending: gauge!("carillon_scheduled_pending"),
            held: CounterBy::new("carillon_held_looks_total", "why"),
        }
    }
}
