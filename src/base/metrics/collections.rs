//! Changes of collections.

use metrics::{Counter, counter};

use super::CounterBy;

crate::labels! {
    /// What became of a change.
    ChangeOutcome {
        /// It stands as it was made.
        Applied = "applied",
        /// It stands together with what others made.
        Merged = "merged",
        /// It is kept under a key of its own.
        Copied = "copied",
        /// What was there stays.
        Lost = "lost",
        /// Its collection's rule cannot read it.
        Invalid = "invalid",
    }
}

/// Collections.
pub struct CollectionMetrics {
    /// Changes that were decided, by what became of them.
    pub changes: CounterBy<ChangeOutcome>,
    /// Bytes of their values.
    pub bytes: Counter,
}

impl CollectionMetrics {
    pub(super) fn new() -> Self {
        Self {
            changes: CounterBy::new("carillon_changes_total", "outcome"),
            bytes: counter!("carillon_change_bytes_total"),
        }
    }
}
