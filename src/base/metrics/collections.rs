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

crate::labels! {
    /// Why a device is given a snapshot.
    SnapshotReason {
        /// It has no items of the queue.
        New = "new",
        /// What it has was lost or replaced.
        EpochChanged = "epoch_changed",
        /// It stands before what is held.
        Overflow = "overflow",
        /// It has what the gateway lost.
        Ahead = "ahead",
        /// The changes that it missed are larger.
        Smaller = "smaller",
    }
}

/// Collections.
pub struct CollectionMetrics {
    /// Changes that were decided, by what became of them.
    pub changes: CounterBy<ChangeOutcome>,
    /// Bytes of their values.
    pub bytes: Counter,
    /// Snapshots that began for a device, by why.
    pub snapshots: CounterBy<SnapshotReason>,
    /// Devices that went on without one, because long-term storage did not come so far in time.
    pub given_up: Counter,
    /// Chunks of them that were sent.
    pub chunks: Counter,
    /// Bytes of these before they were packed.
    pub chunk_bytes: Counter,
    /// Times that an item was left out because its value is nowhere.
    pub without_value: Counter,
}

impl CollectionMetrics {
    pub(super) fn new() -> Self {
        Self {
            changes: CounterBy::new("carillon_changes_total", "outcome"),
            bytes: counter!("carillon_change_bytes_total"),
            snapshots: CounterBy::new("carillon_snapshots_total", "reason"),
            given_up: counter!("carillon_snapshots_given_up_total"),
            chunks: counter!("carillon_snapshot_chunks_total"),
            chunk_bytes: counter!("carillon_snapshot_bytes_total"),
            without_value: counter!("carillon_items_without_value_total"),
        }
    }
}
