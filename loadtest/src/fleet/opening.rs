//! One order to open devices while it runs: who is next, who comes again and when, and what came of it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::order::{GOLDEN, Open, Opened, mix};

/// See the module. All times in microseconds of the fleet's clock.
pub struct Opening {
    pub order: Open,
    pub began_us: u64,
    pub outcome: Opened,
    /// Not tried yet, the next one last.
    todo: Vec<u32>,
    in_flight: usize,
    again: BinaryHeap<Reverse<(u64, u32)>>,
    /// Attempts in the order of their ends: device, attempt.
    deadlines: VecDeque<(u64, u32, u8)>,
    random: u64,
}

/// Why an attempt came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Refused,
    TimedOut,
}

impl Opening {
    pub fn new(order: Open, began_us: u64, mut todo: Vec<u32>) -> Self {
        todo.reverse();
        Self {
            order,
            began_us,
            outcome: Opened::default(),
            todo,
            in_flight: 0,
            again: BinaryHeap::new(),
            deadlines: VecDeque::new(),
            random: GOLDEN,
        }
    }

    /// A device to try now.
    pub fn next(&mut self, now_us: u64) -> Option<u32> {
        if self.in_flight >= self.order.at_once.max(1) {
            return None;
        }
        let is_due = self.again.peek().is_some_and(|Reverse((at, _))| *at <= now_us);
        let device = if is_due {
            self.again.pop().map(|Reverse((_, device))| device)
        } else {
            self.todo.pop()
        }?;
        self.in_flight += 1;
        Some(device)
    }

    /// An attempt that ends at `deadline_us`, which never decreases.
    pub fn tried(&mut self, deadline_us: u64, device: u32, attempt: u8) {
        self.deadlines.push_back((deadline_us, device, attempt));
    }

    /// An attempt whose time is over: device and attempt.
    pub fn overdue(&mut self, now_us: u64) -> Option<(u32, u8)> {
        let (at, device, attempt) = *self.deadlines.front()?;
        (at <= now_us).then(|| {
            self.deadlines.pop_front();
            (device, attempt)
        })
    }

    pub fn succeeded(&mut self) {
        self.in_flight -= 1;
        self.outcome.opened += 1;
    }

    /// An attempt failed: it comes again after a random delay, or as the server said, until it was tried enough.
    pub fn failed(
        &mut self,
        now_us: u64,
        device: u32,
        attempt: u8,
        why: (Why, String, Option<u64>),
    ) {
        let (why, error, advice_ms) = why;
        self.in_flight -= 1;
        match why {
            Why::Refused => self.outcome.refused += 1,
            Why::TimedOut => self.outcome.timed_out += 1,
        }
        self.outcome.advised += usize::from(advice_ms.is_some());
        if attempt >= self.order.retries_max {
            self.outcome.failed += 1;
            self.outcome.error = Some(error);
            return;
        }
        self.outcome.retries += 1;
        let advice_ms = advice_ms.filter(|_| self.order.honour_advice);
        // The server's time and the device's own jitter add up.
        let delay_us = self.jitter_us(attempt) + advice_ms.unwrap_or(0).saturating_mul(1000);
        self.again.push(Reverse((now_us + delay_us, device)));
    }

    /// Full jitter: up to the cap, or up to 100 ms doubled with each attempt.
    fn jitter_us(&mut self, attempt: u8) -> u64 {
        let most_us = (BASE_US << attempt.min(20)).min(CAP_US);
        self.random = self.random.wrapping_add(GOLDEN);
        mix(self.random) % most_us
    }

    pub fn is_done(&self) -> bool {
        self.in_flight == 0 && self.todo.is_empty() && self.again.is_empty()
    }

    /// When something is due although no socket says so.
    pub fn wake_us(&self) -> Option<u64> {
        let again = self.again.peek().map(|Reverse((at, _))| *at);
        let deadline = self.deadlines.front().map(|(at, _, _)| *at);
        [again, deadline].into_iter().flatten().min()
    }
}

const BASE_US: u64 = 100_000;
const CAP_US: u64 = 5_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn order(retries_max: u8) -> Open {
        Open { to: 2, at_once: 1, retries_max, honour_advice: true, from_order: false }
    }

    #[test]
    fn a_failure_comes_again_as_advised_and_then_gives_up() {
        let mut opening = Opening::new(order(1), 0, vec![0, 1]);
        assert_eq!(opening.next(0), Some(0));
        assert_eq!(opening.next(0), None, "one at a time");
        let why = || (Why::Refused, "busy".to_owned(), Some(7));
        opening.failed(0, 0, 0, why());
        assert_eq!(opening.next(0), Some(1));
        opening.succeeded();
        assert_eq!(opening.next(6_999), None);
        let again_us = opening.wake_us().unwrap();
        assert!((7_000..7_000 + BASE_US).contains(&again_us), "{again_us}");
        assert_eq!(opening.next(again_us), Some(0));
        opening.failed(7_000, 0, 1, why());
        assert!(opening.is_done());
        let Opened { opened, failed, retries, refused, advised, .. } = opening.outcome;
        assert_eq!((opened, failed, retries, refused, advised), (1, 1, 1, 2, 2));
    }
}
