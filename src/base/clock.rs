//! The one door to wall-clock time.
//!
//! Durations and deadlines use tokio's monotonic clock; only what is stored or
//! shown to people uses this one. A simulation drives it with paused tokio time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Milliseconds in a day: the grain of retention.
pub const DAY_MS: u64 = 86_400_000;

/// Wall-clock time that never runs backwards while the process lives.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Source);

#[derive(Clone, Copy, Debug)]
enum Source {
    /// Read anew each time: a machine that slept, or whose clock was set, is right at once.
    System,
    /// Tokio's clock behind a given beginning.
    Counted { started: tokio::time::Instant, unix_at_start: Duration },
}

impl Clock {
    /// The operating system's time. When that is set back, this one stands still until the
    /// other has caught up: what is stored later must not look older.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that starts at a given time; it follows tokio's clock, paused or not.
    pub fn starting_at(unix_ms: u64) -> Self {
        let (started, unix_at_start) =
            (tokio::time::Instant::now(), Duration::from_millis(unix_ms));
        Self(Source::Counted { started, unix_at_start })
    }

    /// Milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        match self.0 {
            Source::System => NEWEST.at_least(system_ms()),
            Source::Counted { started, unix_at_start } => {
                (unix_at_start + started.elapsed()).as_millis() as u64
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the door")]
fn system_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_millis() as u64
}

/// The newest time that was told, in milliseconds.
struct Newest(AtomicU64);

impl Newest {
    /// A reading, or the newest one if that was later. Writes once a millisecond at most.
    fn at_least(&self, read_ms: u64) -> u64 {
        let newest = self.0.load(Ordering::Relaxed);
        if read_ms <= newest {
            return newest;
        }
        self.0.fetch_max(read_ms, Ordering::Relaxed).max(read_ms)
    }
}

/// All clocks of the process are one.
static NEWEST: Newest = Newest(AtomicU64::new(0));

/// The day that a time falls into, as days since 1970.
pub fn day_of(unix_ms: u64) -> u32 {
    (unix_ms / DAY_MS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_follows_the_machine_forwards_and_never_backwards() {
        let newest = Newest(AtomicU64::new(0));
        let told = |read_ms| newest.at_least(read_ms);
        assert_eq!([1_000, 1_001].map(told), [1_000, 1_001]);
        // The machine slept for a day; then its clock was set back by an hour.
        let woken = 1_001 + DAY_MS;
        assert_eq!([woken, woken - 3_600_000, woken - 1].map(told), [woken; 3]);
        assert_eq!(told(woken + 1), woken + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_system_clock_is_read_anew_and_a_counted_one_counts() {
        let (system, counted) = (Clock::system(), Clock::starting_at(5));
        let before = system.unix_ms();
        // Tokio's clock runs ahead here, as a machine's own does when it counts what it slept
        // through: only the counted clock goes by it.
        tokio::time::advance(Duration::from_millis(DAY_MS)).await;
        assert_eq!(counted.unix_ms(), 5 + DAY_MS);
        assert!((before..before + DAY_MS).contains(&system.unix_ms()));
    }
}
