//! When to try again: exponential with full jitter. Pure; it knows no clock.

use std::time::Duration;

use crate::random::Random;

/// Delays between attempts.
#[derive(Debug)]
pub struct Backoff {
    attempts: u32,
    random: Random,
}

/// The first delay is below this.
pub const BASE: Duration = Duration::from_millis(500);
/// No delay is above this.
pub const CAP: Duration = Duration::from_secs(60);
/// A connection that lived this long ends the series.
pub const STABLE_AFTER: Duration = Duration::from_secs(10);

impl Backoff {
    /// No attempt has failed yet.
    pub fn new(random: Random) -> Self {
        Self { attempts: 0, random }
    }

    /// How long to wait after one more failure: anything between nothing and `min(CAP, BASE · 2ⁿ)`.
    pub fn next_delay(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        let ceiling = BASE.saturating_mul(factor).min(CAP);
        self.attempts = self.attempts.saturating_add(1).min(31);
        ceiling.mul_f64(self.random.fraction())
    }

    /// The link ended after it had been good for this long.
    pub fn lived(&mut self, time: Duration) {
        if time >= STABLE_AFTER {
            self.attempts = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_below_a_doubling_ceiling_and_use_all_of_it() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(Random::seeded(seed));
            let mut ceiling = BASE;
            for _ in 0..40 {
                assert!(backoff.next_delay() <= ceiling, "seed {seed}");
                ceiling = (ceiling * 2).min(CAP);
            }
        }
        let mut backoff = Backoff::new(Random::seeded(7));
        let late: Vec<Duration> = (0..1000).map(|_| backoff.next_delay()).skip(10).collect();
        assert!(late.iter().any(|delay| *delay < CAP / 10));
        assert!(late.iter().any(|delay| *delay > CAP / 10 * 9));
    }

    #[test]
    fn a_stable_connection_starts_the_series_anew_and_a_short_one_does_not() {
        let mut backoff = Backoff::new(Random::seeded(1));
        for _ in 0..10 {
            let _ = backoff.next_delay();
        }
        backoff.lived(STABLE_AFTER - Duration::from_millis(1));
        assert_eq!(backoff.attempts, 10);
        backoff.lived(STABLE_AFTER);
        assert!(backoff.next_delay() <= BASE);
    }
}
