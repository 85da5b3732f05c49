//! Why entries are not delivered.

use super::{CounterBy, Label};

crate::labels! {
    /// Why an entry was skipped on its way to a registration.
    Skip {
        /// Its time was over.
        Expired = "expired",
        /// A newer one has its collapse key.
        Collapsed = "collapsed",
        /// A newer change of its item is there, or the item came and went.
        Coalesced = "coalesced",
        /// The registration's attributes do not match its filter.
        Filtered = "filtered",
        /// Its condition does not hold for what the registration follows.
        Condition = "condition",
        /// Its sender took it back.
        Recalled = "recalled",
    }
}

/// How many entries were skipped, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped([u32; Skip::ALL.len()]);

impl Skipped {
    /// One for each of these.
    pub fn of(all: impl Iterator<Item = Skip>) -> Self {
        let mut counts = Self::default();
        all.for_each(|why| counts.0[why as usize] += 1);
        counts
    }

    /// These too.
    pub fn add(&mut self, more: Self) {
        self.0.iter_mut().zip(more.0).for_each(|(count, more)| *count = count.saturating_add(more));
    }

    /// Those that there are.
    pub fn each(self) -> impl Iterator<Item = (Skip, u32)> {
        Skip::ALL.iter().map(move |why| (*why, self.0[*why as usize])).filter(|(_, n)| *n > 0)
    }
}

pub(super) fn counters() -> CounterBy<Skip> {
    CounterBy::new("carillon_skipped_total", "reason")
}
