//! Rates, each kept in one number: the generic cell rate algorithm.
//!
//! The number is the time at which everything that was taken so far will be paid for.
//! It is a count of [`TICK`]s that wraps; what lies further ahead than the burst can
//! reach is a leftover of an earlier round and counts as nothing.

use std::time::Duration;

/// The unit of time: a tenth of a millisecond, so that 32 bits last for five days.
pub const TICK: Duration = Duration::from_micros(100);

/// So many in a time, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Ticks that one costs; 0: there is no limit.
    cost: u32,
    /// Ticks that may be owed.
    burst: u32,
}

impl Rate {
    /// `count` in each `period`, and `burst` at once. 0 of either: no limit.
    pub fn new(count: u32, period: Duration, burst: u32) -> Self {
        if count == 0 || burst == 0 {
            return Self { cost: 0, burst: 0 };
        }
        let ticks = ticks(period) / u64::from(count);
        let cost = u32::try_from(ticks).unwrap_or(OWED_MAX).clamp(1, OWED_MAX);
        Self { cost, burst: cost.saturating_mul(burst).min(OWED_MAX) }
    }

    /// Takes `count` at the time `now`. Gives what the number becomes.
    ///
    /// # Errors
    /// When as many can be taken. More than the burst are taken as the burst.
    pub fn take(self, paid_at: u32, now: u32, count: u32) -> Result<u32, Duration> {
        let (owed, price) = (self.owed(paid_at, now), self.price(count));
        match (owed + price).checked_sub(self.burst) {
            None | Some(0) => Ok(now.wrapping_add(owed + price)),
            Some(over) => Err(TICK * over),
        }
    }

    /// Whether one could be taken; nothing is.
    ///
    /// # Errors
    /// When it can.
    pub fn check(self, paid_at: u32, now: u32) -> Result<(), Duration> {
        self.take(paid_at, now, 1).map(drop)
    }

    fn owed(self, paid_at: u32, now: u32) -> u32 {
        let ahead = paid_at.wrapping_sub(now);
        if ahead > self.burst { 0 } else { ahead }
    }

    fn price(self, count: u32) -> u32 {
        self.cost.saturating_mul(count).min(self.burst)
    }
}

/// Whole ticks in a time.
pub fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() / TICK.as_nanos()).unwrap_or(u64::MAX)
}

/// Less than half of what the number counts: 27 hours.
const OWED_MAX: u32 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_s: u32, burst: u32) -> Rate {
        Rate::new(per_s, Duration::from_secs(1), burst)
    }

    /// How many of `tries` are let through, one tick apart.
    fn passed(rate: Rate, from: u32, tries: u32) -> u32 {
        let (mut paid_at, mut passed) = (from, 0);
        for now in 0..tries {
            if let Ok(paid) = rate.take(paid_at, from.wrapping_add(now), 1) {
                (paid_at, passed) = (paid, passed + 1);
            }
        }
        passed
    }

    #[test]
    fn a_flood_gets_its_burst_and_then_its_rate() {
        for from in [0, 7, u32::MAX - 3_000] {
            // Ten thousand ticks are a second: the burst, and what is earned meanwhile.
            assert_eq!(passed(rate(50, 10), from, 10_000), 10 + 49);
            assert_eq!(passed(rate(1, 1), from, 10_000), 1);
            assert_eq!(passed(rate(0, 10), from, 10_000), 10_000, "0 is no limit");
        }
    }

    #[test]
    fn a_refusal_says_when_and_then_it_is_so() {
        let rate = rate(10, 2);
        let mut paid_at = 0;
        for _ in 0..2 {
            paid_at = rate.take(paid_at, 500, 1).unwrap();
        }
        let wait = rate.take(paid_at, 500, 1).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        let then = 500 + ticks(wait) as u32;
        assert!(rate.take(paid_at, then - 1, 1).is_err());
        assert!(rate.check(paid_at, then).is_ok());
        assert!(rate.take(paid_at, then, 1).is_ok());
    }

    #[test]
    fn more_than_the_burst_is_the_burst_and_old_numbers_are_forgotten() {
        let rate = rate(10, 5);
        let paid_at = rate.take(0, 100, 1_000).unwrap();
        assert!(rate.take(paid_at, 100, 1).is_err());
        // A number that nobody touched while the clock wrapped half way.
        assert!(rate.take(paid_at, 100u32.wrapping_sub(1 << 31), 5).is_ok());
    }
}
