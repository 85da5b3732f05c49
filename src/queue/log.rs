//! The shape of one queue: which numbers exist, from which epoch and day.
//!
//! A log is contiguous: entries `(floor, head]`, each in exactly one span. The
//! spans are the queue's head record; the floor is derived from the days that
//! the store still holds, and is never written.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::position::{Epoch, Position, Seq};

/// Entries appended in one epoch on one day, from `first` up to the next span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Days since 1970: names the keyspace that holds these entries.
    pub day: u32,
    /// The epoch of their append.
    pub epoch: Epoch,
    /// The first of them.
    pub first: Seq,
}

/// Most queues have one.
type Spans = SmallVec<[Span; 1]>;

/// The head record of a queue.
///
/// Invariants: spans ascend strictly by `first` and never descend by day or
/// epoch; the last span's `first` is at most `head`; only a log that never had an
/// entry has no span: the last one outlives its day, as the memory of its epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    head: Seq,
    #[serde(with = "spans")]
    spans: Spans,
    is_folded: bool,
}

impl Log {
    /// The newest number given.
    pub fn head(&self) -> Seq {
        self.head
    }

    /// Where the queue stands: the newest entry and its epoch. A queue that
    /// never had an entry stands at 0 of the given epoch.
    pub fn head_position(&self, current: Epoch) -> Position {
        let epoch = self.spans.last().map_or(current, |span| span.epoch);
        Position { epoch, seq: self.head }
    }

    /// Gives the next number.
    ///
    /// # Panics
    /// If `day` or `epoch` is older than that of the newest entry.
    pub fn append(&mut self, day: u32, epoch: Epoch) -> Position {
        self.head = self.head.next();
        match self.spans.last() {
            Some(last) if last.day == day && last.epoch == epoch => {}
            last => {
                assert!(
                    last.is_none_or(|last| last.day <= day && last.epoch <= epoch),
                    "a log never goes back: {last:?} then day {day}, {epoch:?}"
                );
                self.spans.push(Span { day, epoch, first: self.head });
            }
        }
        Position { epoch, seq: self.head }
    }

    /// The day of the newest entry; a clock that jumped back must not go below it.
    pub fn newest_day(&self) -> Option<u32> {
        self.spans.last().map(|span| span.day)
    }

    /// Forgets the spans of days before `oldest`, which retention has dropped,
    /// but for the last one.
    pub fn trim(&mut self, oldest: u32) {
        let last = self.spans.last().copied();
        self.spans.retain(|span| span.day >= oldest || Some(*span) == last);
    }

    /// From now on the storage writer folds it.
    pub fn fold(&mut self) {
        self.is_folded = true;
    }

    /// Whether the storage writer folds it: it has collections.
    pub fn is_folded(&self) -> bool {
        self.is_folded
    }

    /// The day of an entry, if the log remembers it.
    pub fn day_at(&self, seq: Seq) -> Option<u32> {
        self.span_at(seq).map(|span| span.day)
    }

    fn span_at(&self, seq: Seq) -> Option<&Span> {
        if seq > self.head {
            return None;
        }
        self.spans.iter().rev().find(|span| span.first <= seq)
    }

    /// The oldest number still held, minus one.
    pub fn floor(&self, oldest: u32) -> Seq {
        self.held(oldest).next().map_or(self.head, |span| span.first.prev())
    }

    /// The spans that the store still holds.
    pub fn held(&self, oldest: u32) -> impl Iterator<Item = &Span> {
        self.spans.iter().filter(move |span| span.day >= oldest)
    }

    /// The epoch in which `seq` was appended, if the log remembers it.
    pub fn epoch_at(&self, seq: Seq) -> Option<Epoch> {
        self.span_at(seq).map(|span| span.epoch)
    }

    /// Whether a position is older than all that the log remembers: then nobody can say
    /// any more which epoch its entry had, and all that is held is behind it.
    pub fn is_forgotten(&self, position: Position) -> bool {
        let first = self.spans.first();
        first.is_some_and(|span| position.seq < span.first && position.epoch <= span.epoch)
    }

    /// The newest surviving entry of an epoch, if there is one.
    pub fn last_of(&self, epoch: Epoch) -> Option<Seq> {
        let at = self.spans.iter().rposition(|span| span.epoch == epoch)?;
        Some(self.spans.get(at + 1).map_or(self.head, |next| next.first.prev()))
    }

    /// Up to which of these entries somebody had seen who stands at a position: what was lost
    /// since then is not among them.
    pub fn seen_at(&self, position: Position) -> Seq {
        let later = self.spans.iter().find(|span| span.epoch > position.epoch);
        position.seq.min(later.map_or(self.head, |span| span.first.prev()))
    }

    /// The days that hold `seq` and what follows, with the first number to read in each.
    pub fn days_from(&self, seq: Seq, oldest: u32) -> Vec<(u32, Seq)> {
        let held: Vec<&Span> = self.held(oldest).collect();
        let mut days: Vec<(u32, Seq)> = Vec::new();
        for (at, span) in held.iter().enumerate() {
            let last = held.get(at + 1).map_or(self.head, |next| next.first.prev());
            if last < seq || days.last().is_some_and(|(day, _)| *day == span.day) {
                continue;
            }
            days.push((span.day, span.first.max(seq)));
        }
        days
    }
}

mod spans {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Span, Spans};

    pub(super) fn serialize<S: Serializer>(spans: &Spans, to: S) -> Result<S::Ok, S::Error> {
        spans.as_slice().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Spans, D::Error> {
        Ok(Vec::<Span>::deserialize(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(appends: &[(u32, u32)]) -> Log {
        let mut log = Log::default();
        for (day, epoch) in appends {
            log.append(*day, Epoch(*epoch));
        }
        log
    }

    #[test]
    fn numbers_have_no_hole_over_days_and_epochs() {
        let log = log(&[(1, 1), (1, 1), (2, 1), (2, 2), (2, 2)]);
        assert_eq!(log.head(), Seq(5));
        assert_eq!(log.epoch_at(Seq(3)), Some(Epoch(1)));
        assert_eq!(log.epoch_at(Seq(4)), Some(Epoch(2)));
        assert_eq!(log.epoch_at(Seq(6)), None);
        assert_eq!(log.last_of(Epoch(1)), Some(Seq(3)));
        assert_eq!(log.last_of(Epoch(2)), Some(Seq(5)));
        assert_eq!(log.last_of(Epoch(3)), None);
    }

    #[test]
    fn what_was_lost_was_not_seen() {
        let log = log(&[(1, 1), (1, 1), (2, 3), (2, 3)]);
        let seen = |epoch, seq| log.seen_at(Position { epoch: Epoch(epoch), seq: Seq(seq) });
        assert_eq!((seen(1, 1), seen(1, 9), seen(2, 9)), (Seq(1), Seq(2), Seq(2)));
        assert_eq!((seen(3, 3), seen(3, 9), seen(7, 9)), (Seq(3), Seq(4), Seq(4)));
    }

    #[test]
    fn the_floor_follows_the_days_that_are_held() {
        let mut log = log(&[(1, 1), (1, 1), (2, 1), (4, 1)]);
        assert_eq!(log.floor(0), Seq(0));
        assert_eq!(log.floor(2), Seq(2));
        assert_eq!(log.floor(3), Seq(3));
        assert_eq!(log.floor(5), Seq(4));
        log.trim(5);
        assert_eq!((log.head(), log.floor(5)), (Seq(4), Seq(4)));
        assert_eq!(log.epoch_at(Seq(4)), Some(Epoch(1)));
    }

    #[test]
    fn a_read_knows_which_days_to_look_into() {
        let log = log(&[(1, 1), (1, 1), (2, 1), (2, 2), (4, 2)]);
        assert_eq!(log.days_from(Seq(1), 0), vec![(1, Seq(1)), (2, Seq(3)), (4, Seq(5))]);
        assert_eq!(log.days_from(Seq(4), 0), vec![(2, Seq(4)), (4, Seq(5))]);
        assert_eq!(log.days_from(Seq(1), 2), vec![(2, Seq(3)), (4, Seq(5))]);
        assert_eq!(log.days_from(Seq(6), 0), vec![]);
    }
}
