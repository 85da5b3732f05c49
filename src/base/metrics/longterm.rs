//! Long-term storage.

use metrics::{Counter, Gauge, counter, gauge};

/// Long-term storage.
pub struct LongTermMetrics {
    /// Entries that were folded.
    pub folded: Counter,
    /// Times that folding failed and is tried again.
    pub failures: Counter,
    /// Changes that were refused because the writer is far behind.
    pub refused: Counter,
    /// Entries that are not folded yet.
    pub behind_entries: Gauge,
    /// How long the oldest of them has waited.
    pub behind_seconds: Gauge,
}

impl LongTermMetrics {
    pub(super) fn new() -> Self {
        Self {
            folded: counter!("carillon_longterm_folded_entries_total"),
            failures: counter!("carillon_longterm_failures_total"),
            refused: counter!("carillon_longterm_refused_changes_total"),
            behind_entries: gauge!("carillon_longterm_behind_entries"),
            behind_seconds: gauge!("carillon_longterm_behind_seconds"),
        }
    }
}
