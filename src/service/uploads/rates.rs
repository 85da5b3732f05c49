//! How many edits one registration may upload in a second. In memory: it begins anew with the
//! process.

use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

use crate::base::{
    gcra::{self, Rate},
    ids::RegId,
    maps,
};

/// Who uploaded lately.
pub struct Rates {
    began: Instant,
    /// Until when the edits are paid for, in ticks.
    paid_at: DashMap<RegId, u32>,
}

impl Default for Rates {
    fn default() -> Self {
        Self { began: Instant::now(), paid_at: DashMap::new() }
    }
}

impl Rates {
    /// Takes so many edits, unless they are too many.
    pub fn take(&self, regid: RegId, edits: u32, per_s: u32, burst: u32) -> bool {
        if edits == 0 {
            return true;
        }
        let (rate, now) = (Rate::new(per_s, Duration::from_secs(1), burst), self.now());
        let mut paid_at = self.paid_at.entry(regid).or_insert(now);
        match rate.take(*paid_at, now, edits) {
            Ok(later) => {
                *paid_at = later;
                true
            }
            Err(_) => false,
        }
    }

    /// Forgets who owes nothing.
    pub fn sweep(&self) {
        let now = self.now();
        // What lies behind wraps to the other half.
        self.paid_at.retain(|_, paid_at| (1..=u32::MAX / 2).contains(&paid_at.wrapping_sub(now)));
        maps::shrink(&self.paid_at);
    }

    fn now(&self) -> u32 {
        // It wraps, as the numbers do that are compared with it.
        gcra::ticks(self.began.elapsed()) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_registration_has_its_rate_and_is_forgotten_when_it_owes_nothing() {
        let rates = Rates::default();
        let [one, other] = [1, 2].map(|byte| RegId([byte; 20]));
        assert!(rates.take(one, 10, 5, 10));
        assert!(!rates.take(one, 1, 5, 10));
        assert!(rates.take(one, 0, 5, 10), "what is sent again is free");
        assert!(rates.take(other, 10, 5, 10));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(rates.take(one, 5, 5, 10));
        assert!(!rates.take(one, 1, 5, 10));
        tokio::time::advance(Duration::from_millis(1_500)).await;
        rates.sweep();
        assert_eq!(rates.paid_at.len(), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        rates.sweep();
        assert!(rates.paid_at.is_empty());
        assert!(rates.take(one, 10, 0, 0), "without a bound there is none");
    }
}
