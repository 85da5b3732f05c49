//! Why entries are not delivered.

use super::CounterBy;

crate::labels! {
    /// Why an entry was skipped on its way to a registration.
    Skip {
        /// Its time was over.
        Expired = "expired",
        /// A newer one has its collapse key.
        Collapsed = "collapsed",
        /// The registration's attributes do not match its filter.
        Filtered = "filtered",
        /// Its condition does not hold for what the registration follows.
        Condition = "condition",
        /// Its sender took it back.
        Recalled = "recalled",
    }
}

pub(super) fn counters() -> CounterBy<Skip> {
    CounterBy::new("carillon_skipped_total", "reason")
}
