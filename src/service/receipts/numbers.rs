//! The numbers of events and of lists, from one counter of the node, and which of them are durable.
//!
//! Above their lowest bits stands the number of the start that gave them, so that a run begins
//! behind all that earlier ones gave. What reads by numbers stops before the smallest whose write
//! is not durable yet, so that it never passes one that is still to come.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// Bits of a number below that of its start.
const START_BITS: u32 = 32;

/// Numbers that are given, and which of them are not durable yet.
#[derive(Default)]
pub(super) struct Numbers(Mutex<Given>);

#[derive(Default)]
struct Given {
    next: u64,
    open: BTreeSet<u64>,
    /// The newest start whose numbers may be given: the next run begins behind them.
    start: u32,
}

impl Numbers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, start: u32) {
        let mut given = self.lock();
        (given.start, given.next) = (start, u64::from(start) << START_BITS);
    }

    /// The start whose numbers are to be taken, too: half of the newest one's are given.
    pub(super) fn to_reserve(&self) -> Option<u32> {
        let given = self.lock();
        let half = (u64::from(given.start) << START_BITS) + (1 << (START_BITS - 1));
        (given.next >= half).then(|| given.start.saturating_add(1))
    }

    pub(super) fn reserved(&self, start: u32) {
        self.lock().start = start;
    }

    pub(super) fn claim(self: &Arc<Self>, count: u64) -> Claim {
        let mut given = self.lock();
        let first = given.next;
        // At least one, so that no two claims begin at the same number.
        given.next += count.max(1);
        given.open.insert(first);
        Claim { first, numbers: self.clone() }
    }

    /// All numbers below are durable, or will never be used.
    pub(super) fn stable(&self) -> u64 {
        let given = self.lock();
        given.open.first().copied().unwrap_or(given.next)
    }
}

/// Numbers whose events are being written; dropped once they are durable.
pub struct Claim {
    /// The first of them.
    pub first: u64,
    numbers: Arc<Numbers>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.numbers.lock().open.remove(&self.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_does_not_pass_a_number_that_is_not_durable() {
        let numbers = Arc::new(Numbers::default());
        numbers.begin(1);
        let begin = 1 << START_BITS;
        let (first, second) = (numbers.claim(3), numbers.claim(1));
        assert_eq!((first.first, second.first, numbers.stable()), (begin, begin + 3, begin));
        drop(second);
        assert_eq!(numbers.stable(), begin);
        drop(first);
        assert_eq!(numbers.stable(), begin + 4);
    }

    #[test]
    fn a_run_begins_behind_all_numbers_of_the_one_before_however_many() {
        let numbers = Arc::new(Numbers::default());
        let mut stored = 1;
        numbers.begin(stored);
        assert_eq!(numbers.to_reserve(), None);
        for _ in 0..5 {
            drop(numbers.claim(1 << (START_BITS - 1)));
            // As once a second.
            if let Some(start) = numbers.to_reserve() {
                stored = start;
                numbers.reserved(start);
            }
            assert_eq!(numbers.to_reserve(), None);
        }
        let last = numbers.claim(1).first;
        let next = Arc::new(Numbers::default());
        next.begin(stored + 1);
        assert!(last >> START_BITS > 1, "more than one start has");
        assert!(next.claim(1).first > last, "{last:x}");
    }
}
