//! Snapshots: chunks are gathered beside the items, and take their place once what was gathered is exact.
//!
//! Until then the position stays that of the items, and deltas behind the snapshot go to what is gathered. What the
//! gateway put into a chunk although it is newer than the snapshot is left out: the deltas that follow bring it, unless
//! it is gone again, and then nobody would say so.

use carillon_wire::frame::{epoch_from_idl, seq_from_idl, tag_from_idl};
use carillon_wire::idl;

use super::delta::Delta;
use super::{Fault, Outcome, Replica};
use crate::items::{CollectionDigest, Item, Side, Step, What};
use crate::names::{Position, QueueName, RegId};
use crate::state::Registration;

/// A snapshot that is not in the place of the items yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gathering {
    /// Its position.
    pub at: Position,
    /// What it lacks.
    pub missing: Missing,
}

/// See [`Gathering`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The chunks behind this cursor.
    Chunks(Vec<u8>),
    /// No chunk, but the deltas behind `reached` up to `until`.
    Deltas { reached: Position, until: u64 },
}

/// A chunk as a value that cannot be wrong.
struct Chunk {
    gathering: Gathering,
    items: Vec<Item>,
    begins: bool,
}

impl Replica {
    /// Takes a chunk of a snapshot, or asks for the right one.
    ///
    /// # Errors
    /// A frame that cannot be; or no progress although the gateway was told where we stand.
    pub fn snapshot(&mut self, frame: idl::SnapshotChunk) -> Result<Outcome, Fault> {
        let regid = RegId::from(frame.regid.as_str());
        let queue = QueueName::from_idl(frame.queue.clone());
        let chunk = Chunk::from_idl(frame)?;
        let mut outcome = Outcome::default();
        let Some(QueueName::Alias(alias)) = queue else { return Ok(outcome) };
        let queue = QueueName::Alias(alias.clone());
        let key = (regid.clone(), queue.clone());
        if self.link.ended.contains(&regid) || self.link.unfollowed.contains(&key) {
            return Ok(outcome);
        }
        let registration = self.state.registrations.entry(regid.clone()).or_default();
        self.is_dirty = true;
        if !chunk.fits(registration.gathering.get(&queue)) {
            self.link.count_gap(key)?;
            outcome.send.extend(self.ask(&regid));
            return Ok(outcome);
        }
        self.link.gaps.remove(&key);
        let began = chunk.begins.then_some(What::Began);
        registration.gathering.insert(queue.clone(), chunk.gathering);
        let steps = began.into_iter().chain([What::Gathered(chunk.items)]);
        outcome.step(&regid, &alias, steps.chain(registration.switch(&queue)));
        Ok(outcome)
    }

    /// What the gateway holds of collections: to be compared after the deltas of the same frame.
    pub(super) fn digests(
        regid: &RegId,
        digests: Option<Vec<idl::CollectionDigest>>,
        outcome: &mut Outcome,
    ) {
        for digest in digests.unwrap_or_default() {
            let queue = QueueName::from_idl(digest.queue.clone());
            if let (Some(QueueName::Alias(alias)), Some(digest)) =
                (queue, CollectionDigest::from_idl(digest))
            {
                outcome.step(regid, &alias, [What::Digest(digest)]);
            }
        }
    }
}

impl Registration {
    /// Where what is gathered ends, if this delta continues that.
    pub(super) fn reached(&self, delta: &Delta) -> Option<Position> {
        match self.gathering.get(&delta.queue)?.missing {
            Missing::Deltas { reached, .. } if delta.continues(reached) => Some(reached),
            Missing::Deltas { .. } | Missing::Chunks(_) => None,
        }
    }

    /// A delta is applied: the position, or that of what is gathered, is at `next`.
    pub(super) fn moved(&mut self, queue: &QueueName, side: Side, next: Position) -> Vec<What> {
        if let (Side::Gathered, Some(gathering)) = (side, self.gathering.get_mut(queue)) {
            if let Missing::Deltas { reached, .. } = &mut gathering.missing {
                *reached = next;
            }
            return self.switch(queue).into_iter().collect();
        }
        let Position { epoch, seq, .. } = next;
        if self.positions.insert(queue.clone(), next) == Some(next) {
            return Vec::new();
        }
        // The gateway goes on without the snapshot.
        let voided = self.gathering.remove(queue).map(|_| What::Voided);
        voided.into_iter().chain([What::Moved { epoch, seq }]).collect()
    }

    /// A snapshot that is exact by now takes the place of the items.
    fn switch(&mut self, queue: &QueueName) -> Option<What> {
        match self.gathering.get(queue)?.missing {
            Missing::Deltas { reached, until } if reached.seq >= until => {
                self.gathering.remove(queue);
                self.positions.insert(queue.clone(), reached);
                Some(What::Switched { epoch: reached.epoch, seq: reached.seq })
            }
            Missing::Deltas { .. } | Missing::Chunks(_) => None,
        }
    }
}

impl Gathering {
    /// For the wire.
    pub fn to_idl(&self, queue: &QueueName) -> idl::Gathered {
        use carillon_wire::frame::{epoch_to_idl, seq_to_idl};
        let (cursor, reached_seq) = match &self.missing {
            Missing::Chunks(cursor) => (Some(cursor.clone()), None),
            Missing::Deltas { reached, .. } => (None, Some(seq_to_idl(reached.seq))),
        };
        idl::Gathered {
            queue: queue.to_idl(),
            epoch: epoch_to_idl(self.at.epoch),
            at_seq: seq_to_idl(self.at.seq),
            tag: self.at.tag.unwrap_or_default().to_vec(),
            cursor,
            reached_seq,
        }
    }
}

impl Outcome {
    /// A queue is not followed any more.
    pub(super) fn forgotten(&mut self, regid: &RegId, queue: &QueueName) {
        if let QueueName::Alias(alias) = queue {
            self.step(regid, alias, [What::Forgotten]);
        }
    }

    pub(super) fn step(
        &mut self,
        regid: &RegId,
        alias: &str,
        steps: impl IntoIterator<Item = What>,
    ) {
        let place = |what| Step { regid: regid.clone(), alias: alias.to_owned(), what };
        self.steps.0.extend(steps.into_iter().map(place));
    }
}

impl Chunk {
    fn from_idl(frame: idl::SnapshotChunk) -> Result<Self, Fault> {
        let epoch = epoch_from_idl(frame.epoch).map_err(|_| Fault("epoch"))?;
        let seq = seq_from_idl(frame.at_seq).map_err(|_| Fault("at_seq"))?;
        let tag = tag_from_idl(&frame.tag).map_err(|_| Fault("tag"))?;
        let at = Position { epoch, seq, tag: Some(tag) };
        let missing = match (frame.cursor, frame.until_seq) {
            (Some(cursor), _) => Missing::Chunks(cursor),
            (None, Some(until)) => {
                let until = seq_from_idl(until).map_err(|_| Fault("until_seq"))?;
                Missing::Deltas { reached: at, until }
            }
            (None, None) => return Err(Fault("a chunk that is neither the last nor has a cursor")),
        };
        let items = frame.items.into_iter().map(Item::from_idl);
        let mut items = items.collect::<Option<Vec<_>>>().ok_or(Fault("an item's seq"))?;
        items.retain(|item| item.seq <= seq);
        let gathering = Gathering { at, missing };
        Ok(Self { gathering, items, begins: frame.begins == Some(true) })
    }

    /// Whether it is the first one, or continues what we have.
    fn fits(&self, gathering: Option<&Gathering>) -> bool {
        let at = &self.gathering.at;
        let lacks_chunks = gathering.is_some_and(|ours| {
            (ours.at.epoch, ours.at.seq) == (at.epoch, at.seq)
                && matches!(ours.missing, Missing::Chunks(_))
        });
        self.begins || lacks_chunks
    }
}
