//! The slowest sends of the last minutes, from the parsed request to durable.
//!
//! Two windows, each with a bounded number of the slowest; what is faster than all of them costs
//! one comparison. No payloads and no names of targets.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;

use super::{Error, Service, send::Sent};
use crate::base::{
    ids::AppId,
    metrics::{Label, SendResult},
};

/// A slow send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Slow {
    /// The message.
    pub id: String,
    /// Its app.
    pub app: AppId,
    /// The kind of its target.
    pub kind: &'static str,
    /// Registrations that it was for.
    pub matched: usize,
    /// When it was durable, in milliseconds since 1970.
    pub at_ms: u64,
    /// From the parsed request to durable, in microseconds.
    pub durable_us: u64,
}

/// The slowest of two windows.
#[derive(Default)]
pub struct SlowLog {
    /// What is faster is not kept, in microseconds.
    least_us: AtomicU64,
    windows: Mutex<Windows>,
}

#[derive(Default)]
struct Windows {
    began_ms: u64,
    current: Vec<Slow>,
    before: Vec<Slow>,
}

impl SlowLog {
    fn note(&self, now_ms: u64, took: Duration, slow: impl FnOnce(u64) -> Slow) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if took_us < self.least_us.load(Ordering::Relaxed) {
            return;
        }
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.turn(now_ms);
        let current = &mut windows.current;
        let place = current.partition_point(|one| one.durable_us >= took_us);
        if place < KEPT_MAX {
            current.insert(place, slow(took_us));
            current.truncate(KEPT_MAX);
        }
        self.set_least(current);
    }

    fn set_least(&self, current: &[Slow]) {
        let least = current.get(KEPT_MAX - 1).map_or(0, |one| one.durable_us);
        self.least_us.store(least, Ordering::Relaxed);
    }

    fn slowest(&self, now_ms: u64) -> Vec<Slow> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.turn(now_ms);
        self.set_least(&windows.current);
        let mut all = [windows.current.as_slice(), windows.before.as_slice()].concat();
        all.sort_by_key(|one| std::cmp::Reverse(one.durable_us));
        all.truncate(KEPT_MAX);
        all
    }

    /// Once in a while, so that a window in which nothing was slow begins all the same.
    pub(super) fn sweep(&self, now_ms: u64) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.turn(now_ms);
        self.set_least(&windows.current);
    }
}

impl Windows {
    fn turn(&mut self, now_ms: u64) {
        let age_ms = now_ms.saturating_sub(self.began_ms);
        if age_ms < WINDOW_MS {
            return;
        }
        let ended = std::mem::take(&mut self.current);
        self.before = if age_ms < 2 * WINDOW_MS { ended } else { Vec::new() };
        self.began_ms = now_ms;
    }
}

impl Service {
    /// The slowest sends of the last five to ten minutes, slowest first; 32 at most.
    pub fn slow_sends(&self) -> Vec<Slow> {
        self.slow.slowest(self.now_ms())
    }

    /// Counts how a send was answered.
    pub(super) fn note_send(&self, app: &AppId, sent: &Result<Sent, Error>, took: Duration) {
        self.metrics.queue.send_results.of(result_of(sent)).increment(1);
        match sent {
            Ok(sent) => {
                self.metrics.queue.send_to_durable_seconds.record(took);
                self.note_slow(app, sent, took);
            }
            Err(error) => self.metrics.sends.unsent.of(error.unsent()).increment(1),
        }
    }

    fn note_slow(&self, app: &AppId, sent: &Sent, took: Duration) {
        let now_ms = self.now_ms();
        self.slow.note(now_ms, took, |durable_us| Slow {
            id: sent.id.to_string(),
            app: app.clone(),
            kind: sent.kind.label(),
            matched: sent.matched,
            at_ms: now_ms,
            durable_us,
        });
    }
}

/// For the metric.
fn result_of(sent: &Result<Sent, Error>) -> SendResult {
    match sent {
        Ok(_) => SendResult::Accepted,
        Err(Error::Unavailable(_)) => SendResult::Failed,
        Err(_) => SendResult::Refused,
    }
}

const KEPT_MAX: usize = 32;
const WINDOW_MS: u64 = 300_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn took(log: &SlowLog, now_ms: u64, us: u64) {
        log.note(now_ms, Duration::from_micros(us), |durable_us| Slow {
            id: String::new(),
            app: "app".parse().unwrap(),
            kind: "all",
            matched: 0,
            at_ms: now_ms,
            durable_us,
        });
    }

    fn held(log: &SlowLog, now_ms: u64) -> Vec<u64> {
        log.slowest(now_ms).iter().map(|one| one.durable_us).collect()
    }

    #[test]
    fn the_slowest_of_two_windows_are_kept() {
        let (log, start) = (SlowLog::default(), 1_000_000_000);
        (1..=1_000).for_each(|us| took(&log, start, us * 3 % 1_001));
        let wanted: Vec<u64> = (969..=1_000).rev().collect();
        assert_eq!(held(&log, start + 1), wanted);
        log.sweep(start + WINDOW_MS);
        took(&log, start + WINDOW_MS, 5);
        took(&log, start + WINDOW_MS, 2_000);
        assert_eq!(held(&log, start + WINDOW_MS)[..2], [2_000, 1_000]);
        assert_eq!(held(&log, start + 2 * WINDOW_MS), [2_000, 5]);
        assert!(held(&log, start + 4 * WINDOW_MS).is_empty());
    }
}
