//! How far one consumer of one queue has come.

use super::position::Seq;

/// Invariant: `acked <= sent`; the gateway adds `sent <= head`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    acked: Seq,
    sent: Seq,
}

impl Pointer {
    /// A consumer that has handled everything up to `at`.
    pub fn at(at: Seq) -> Self {
        Self { acked: at, sent: at }
    }

    /// Everything up to here is acknowledged.
    pub fn acked(&self) -> Seq {
        self.acked
    }

    /// Everything up to here is on its way or acknowledged.
    pub fn sent(&self) -> Seq {
        self.sent
    }

    /// A frame that ends at `to` goes out.
    ///
    /// # Panics
    /// If `to` is behind what was sent already.
    pub fn send(&mut self, to: Seq) {
        assert!(to >= self.sent, "a pointer never goes back: {self:?} to {to:?}");
        self.sent = to;
    }

    /// The consumer acknowledges everything up to `to`. Returns whether that is news.
    ///
    /// # Panics
    /// If `to` was never sent.
    pub fn ack(&mut self, to: Seq) -> bool {
        assert!(to <= self.sent, "acknowledged before sent: {self:?} to {to:?}");
        let is_news = to > self.acked;
        self.acked = self.acked.max(to);
        is_news
    }
}
