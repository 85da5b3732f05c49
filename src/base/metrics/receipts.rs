//! Metrics of receipts, callbacks, feedback and expired registrations.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::CounterBy;
use crate::labels;

labels! {
    /// What a receipt says.
    ReceiptKind {
        /// The device acknowledged the message.
        Acked = "acked",
        /// Somebody opened it.
        Clicked = "clicked",
    }
}

labels! {
    /// What became of an event for an app server.
    CallbackOutcome {
        /// The endpoint took it.
        Delivered = "delivered",
        /// It was too old when the endpoint was tried for the last time.
        GivenUp = "given_up",
        /// The endpoint has too many that wait.
        Overflow = "overflow",
    }
}

labels! {
    /// How one request to an endpoint ended.
    CallbackAttempt {
        /// With a status of 2xx.
        Taken = "taken",
        /// With another status.
        Refused = "refused",
        /// Without an answer in time.
        Timeout = "timeout",
        /// There was no connection.
        Unreachable = "unreachable",
    }
}

labels! {
    /// Why a regID is in `feedback/invalid`.
    InvalidReason {
        /// Its registration was ended.
        Unregistered = "unregistered",
        /// Its device did not connect for too long.
        Expired = "expired",
        /// A send named it, and it is not the app's.
        Unknown = "unknown",
    }
}

/// Receipts, callbacks, feedback and expired registrations.
pub struct ReceiptMetrics {
    /// Receipts written, by what they say.
    pub written: CounterBy<ReceiptKind>,
    /// Receipts that found no room before they were written.
    pub dropped: Counter,
    /// Events by what became of them.
    pub callbacks: CounterBy<CallbackOutcome>,
    /// Requests to endpoints by how they ended.
    pub attempts: CounterBy<CallbackAttempt>,
    /// From what an event tells to its delivery.
    pub callback_lag_seconds: Histogram,
    /// Events that wait for their endpoints.
    pub callbacks_pending: Gauge,
    /// Registrations that ended because their devices did not connect.
    pub registrations_expired: Counter,
    /// regIDs that went to `feedback/invalid`.
    pub feedback: CounterBy<InvalidReason>,
}

impl ReceiptMetrics {
    /// All of them, at 0.
    pub(super) fn new() -> Self {
        Self {
            written: CounterBy::new("carillon_receipts_total", "kind"),
            dropped: counter!("carillon_receipts_dropped_total"),
            callbacks: CounterBy::new("carillon_callback_events_total", "outcome"),
            attempts: CounterBy::new("carillon_callback_requests_total", "result"),
            callback_lag_seconds: histogram!("carillon_callback_lag_seconds"),
            callbacks_pending: gauge!("carillon_callback_events_pending"),
            registrations_expired: counter!("carillon_registrations_expired_total"),
            feedback: CounterBy::new("carillon_feedback_invalid_total", "reason"),
        }
    }
}
