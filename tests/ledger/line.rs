//! One device's part of one queue, as the checker follows it: what came, what was
//! acknowledged, and what may come again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::Position;

/// Acknowledgements so much older than a kill must have survived it, on a machine that
/// answers at once. The slowest answer to a ping comes on top.
pub const FORGIVEN: Duration = Duration::from_millis(1_500);

/// From when to when the node died.
pub type Kill = (Duration, Duration);

/// What one device has of one queue.
#[derive(Default)]
pub struct Line {
    newest: Option<Position>,
    pub newest_on_connection: Option<Position>,
    pub newest_in_session: Option<Position>,
    /// Up to here nothing may come again, and why.
    settled: Option<(Position, Option<Read>)>,
    /// What came and is not settled.
    held: BTreeMap<Position, Held>,
    /// Of these, those of which no acknowledgement is written, so that they must come again.
    /// Few, while the others are as many as came since the last kill.
    open: BTreeSet<Position>,
}

struct Held {
    /// When it came last.
    came: Duration,
    /// When the node read that, once this is sure.
    read: Option<Read>,
}

/// From when to when the node read an acknowledgement: from ping to answer.
pub type Read = (Duration, Duration);

/// What a delivery is to a line.
pub enum Arrival {
    /// Something new.
    First,
    /// A redelivery that may be.
    Again,
    /// Not seen before, though something behind it was.
    Late,
    /// A redelivery that may not be, and why.
    AckedAgain(String),
}

impl Line {
    /// A delivery. The position may be new or not.
    pub fn arrive(
        &mut self,
        came: Duration,
        position: Position,
        kills: &[Kill],
        forgiven: Duration,
    ) -> Arrival {
        if self.newest.is_none_or(|newest| newest < position) {
            self.newest = Some(position);
            self.hold(position, came);
            return Arrival::First;
        }
        if let Some((settled, read)) = self.settled.filter(|(settled, _)| position <= *settled) {
            return Arrival::AckedAgain(format!("acknowledged up to {settled} at {read:?}"));
        }
        if !self.held.contains_key(&position) {
            self.hold(position, came);
            return Arrival::Late;
        }
        // Newest first: of what may come again that one is not read, and nothing else is looked at.
        let before = self.held.range(..=position).rev();
        let reads: Option<Vec<Read>> = before.map(|(_, held)| held.read).collect();
        // Its pointer stands before it, so that everything behind it comes again, too.
        self.held.range_mut(position..).for_each(|(_, held)| held.read = None);
        self.hold(position, came);
        let lost = |read: &Read| kills.iter().any(|kill| forgives(*kill, *read, forgiven));
        match reads {
            Some(reads) if !reads.iter().any(lost) => {
                Arrival::AckedAgain(format!("acknowledged at {:?}", reads.first()))
            }
            _ => Arrival::Again,
        }
    }

    fn hold(&mut self, position: Position, came: Duration) {
        self.held.insert(position, Held { came, read: None });
        self.open.insert(position);
    }

    /// What should have come again on this connection before `position`, but has not.
    pub fn passed_over(&self, position: Position, connected_at: Duration) -> Option<Position> {
        let is_missing = |at: &&Position| self.held[*at].came < connected_at;
        self.open.range(..position).find(is_missing).copied()
    }

    /// An acknowledgement is written.
    pub fn acknowledge(&mut self, position: Position) {
        self.open.remove(&position);
    }

    /// The device itself stands here.
    pub fn keep(&mut self, position: Position) {
        self.settled = Some((position, None));
        self.held.retain(|at, _| *at > position);
        self.open.retain(|at| *at > position);
    }

    /// The node has read an acknowledgement.
    pub fn confirm(&mut self, position: Position, read: Read) {
        self.held.entry(position).and_modify(|held| held.read = Some(read));
    }

    /// The device is asked to follow no longer: nothing need come again.
    pub fn excuse(&mut self) {
        self.open.clear();
    }

    /// The device follows again: what was left unacknowledged is let go.
    pub fn begin_anew(&mut self) {
        self.held.clear();
        self.open.clear();
    }

    /// A kill: acknowledgements that are old enough survive it, unless an earlier one lost them.
    pub fn survive(&mut self, kill: Duration, earlier: &[Kill], forgiven: Duration) {
        while let Some(first) = self.held.first_entry() {
            let read = first.get().read.filter(|read| {
                read.1 + forgiven <= kill && !earlier.iter().any(|k| forgives(*k, *read, forgiven))
            });
            if read.is_none() {
                return;
            }
            let settled = first.remove_entry().0;
            self.open.remove(&settled);
            self.settled = Some((settled, read));
        }
    }

    /// A delivery after a kill: what came before the kill and stands before it is not
    /// repeated, so that its acknowledgement survived.
    pub fn survived(&mut self, position: Position, dead: Duration) {
        while let Some(first) = self.held.first_entry() {
            if *first.key() >= position || first.get().came > dead {
                return;
            }
            let (settled, held) = first.remove_entry();
            self.open.remove(&settled);
            self.settled = Some((settled, held.read));
        }
    }
}

/// Whether a kill may have cost an acknowledgement.
fn forgives((killed, dead): Kill, (from, until): Read, forgiven: Duration) -> bool {
    from <= dead && killed < until + forgiven
}
