//! Packed frames.

use metrics::{Counter, counter};

use super::CounterBy;

crate::labels! {
    /// Of which bytes of a packed frame.
    PackedBytes {
        /// Of the frame.
        Plain = "plain",
        /// Of what was sent in its place.
        Packed = "packed",
    }
}

/// Packed frames.
pub struct PackingMetrics {
    /// Frames that went out packed.
    pub frames: Counter,
    /// Their bytes, before and after.
    pub bytes: CounterBy<PackedBytes>,
}

impl PackingMetrics {
    /// On the recorder that is installed now.
    pub(super) fn new() -> Self {
        Self {
            frames: counter!("carillon_packed_frames_total"),
            bytes: CounterBy::new("carillon_packed_frames_bytes_total", "side"),
        }
    }
}
