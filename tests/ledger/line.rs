//! One device's part of one queue, as the checker follows it: what came, what was
//! acknowledged, and what may come again.

use std::{
    collections::{BTreeMap, btree_map::Entry},
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
}

struct Held {
    /// When it came last.
    came: Duration,
    /// An acknowledgement is written, so that it need not come again.
    is_acked: bool,
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
            self.held.insert(position, Held::at(came));
            return Arrival::First;
        }
        if let Some((settled, read)) = self.settled.filter(|(settled, _)| position <= *settled) {
            return Arrival::AckedAgain(format!("acknowledged up to {settled} at {read:?}"));
        }
        if let Entry::Vacant(unknown) = self.held.entry(position) {
            unknown.insert(Held::at(came));
            return Arrival::Late;
        }
        let reads: Option<Vec<Read>> = self.held.range(..=position).map(|(_, h)| h.read).collect();
        // Its pointer stands before it, so that everything behind it comes again, too.
        self.held.range_mut(position..).for_each(|(_, held)| held.read = None);
        self.held.insert(position, Held::at(came));
        let lost = |read: &Read| kills.iter().any(|kill| forgives(*kill, *read, forgiven));
        match reads {
            Some(reads) if !reads.iter().any(lost) => {
                Arrival::AckedAgain(format!("acknowledged at {:?}", reads.last()))
            }
            _ => Arrival::Again,
        }
    }

    /// What should have come again on this connection before `position`, but has not.
    pub fn passed_over(&self, position: Position, connected_at: Duration) -> Option<Position> {
        let is_missing = |held: &Held| held.came < connected_at && !held.is_acked;
        let before = self.held.range(..position);
        before.filter(|(_, held)| is_missing(held)).map(|(position, _)| *position).next()
    }

    /// An acknowledgement is written.
    pub fn acknowledge(&mut self, position: Position) {
        self.held.entry(position).and_modify(|held| held.is_acked = true);
    }

    /// The device itself stands here.
    pub fn keep(&mut self, position: Position) {
        self.settled = Some((position, None));
        self.held.retain(|at, _| *at > position);
    }

    /// The node has read an acknowledgement.
    pub fn confirm(&mut self, position: Position, read: Read) {
        self.held.entry(position).and_modify(|held| held.read = Some(read));
    }

    /// The device is asked to follow no longer: nothing need come again.
    pub fn excuse(&mut self) {
        self.held.values_mut().for_each(|held| held.is_acked = true);
    }

    /// The device follows again: what was left unacknowledged is let go.
    pub fn begin_anew(&mut self) {
        self.held.clear();
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
            self.settled = Some((first.remove_entry().0, read));
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
            self.settled = Some((settled, held.read));
        }
    }
}

impl Held {
    fn at(came: Duration) -> Self {
        Self { came, is_acked: false, read: None }
    }
}

/// Whether a kill may have cost an acknowledgement.
fn forgives((killed, dead): Kill, (from, until): Read, forgiven: Duration) -> bool {
    from <= dead && killed < until + forgiven
}
