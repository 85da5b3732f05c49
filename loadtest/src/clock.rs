//! The one clock that the processes of a run share.

use std::time::UNIX_EPOCH;

/// Microseconds since 1970. Both ends of a latency are on this machine.
#[expect(clippy::disallowed_methods, reason = "the generator's only door to the wall clock")]
pub fn unix_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
