//! The one door to wall-clock time.
//!
//! Durations and deadlines use tokio's monotonic clock; only what is stored or
//! shown to people uses this one. A simulation drives it with paused tokio time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds in a day: the grain of retention.
pub const DAY_MS: u64 = 86_400_000;

/// Wall-clock time, fixed at its start and moved on by the monotonic clock: it
/// never runs backwards while the process lives.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: tokio::time::Instant,
    unix_at_start: Duration,
}

impl Clock {
    /// The operating system's time.
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    pub fn system() -> Self {
        let unix_at_start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { started: tokio::time::Instant::now(), unix_at_start }
    }

    /// A clock that starts at a given time; it follows tokio's clock, paused or not.
    pub fn starting_at(unix_ms: u64) -> Self {
        Self { started: tokio::time::Instant::now(), unix_at_start: Duration::from_millis(unix_ms) }
    }

    /// Milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        (self.unix_at_start + self.started.elapsed()).as_millis() as u64
    }
}

/// The day that a time falls into, as days since 1970.
pub fn day_of(unix_ms: u64) -> u32 {
    (unix_ms / DAY_MS) as u32
}
