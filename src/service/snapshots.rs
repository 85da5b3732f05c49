//! Snapshots for devices: what an alias's collections were at a position, in chunks, the newest
//! items first.
//!
//! Of a snapshot nothing is kept here: who takes it says where it is. It is read from long-term
//! storage while that folds on. An item that changes meanwhile is missing in the chunks, and the
//! deltas behind the position bring it; what changed behind the position is never in them,
//! because of an item that came and went the deltas say nothing.

use super::{
    Error, Service,
    deliver::{Claim, Following, Take},
    items::ItemView,
    judge::Verdict,
};
use crate::{
    base::{ids::QueueId, metrics::SnapshotReason},
    longterm,
    queue::{
        collection::item::Item,
        entry::Body,
        log::Log,
        plan::{Jump, SyncPlan},
        position::{Position, Seq},
        store::{Range, Space, decode},
    },
};

/// A snapshot that a device is to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    /// Why not a delta.
    pub reason: Jump,
    /// Where it goes on; `None`: it begins.
    pub place: Option<Place>,
}

/// A place in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The position of the snapshot.
    pub at: Position,
    /// The items that changed before this one are still to come.
    pub before: Seq,
}

/// What comes next of a snapshot.
#[derive(Clone, Debug)]
pub enum Part {
    /// This.
    Chunk(Chunk),
    /// Nothing yet: long-term storage has not come so far.
    Later,
    /// No snapshot: deltas go on from where the device stands.
    Deltas,
}

/// Some items of a snapshot.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Why there is a snapshot.
    pub reason: Jump,
    /// Its position.
    pub at: Position,
    /// It is the first chunk.
    pub begins: bool,
    /// The items, newest first.
    pub items: Vec<ItemView>,
    /// What follows.
    pub rest: Rest,
}

/// What follows a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Chunks of items that changed before this one.
    Before(Seq),
    /// Deltas: from this one on it is exact.
    Until(Seq),
}

impl Gather {
    /// What a device keeps of a place; it says nothing to it.
    pub fn cursor(reason: Jump, before: Seq) -> Vec<u8> {
        [&[reason as u8], &before.0.to_be_bytes()[..]].concat()
    }

    /// The snapshot that goes on at a cursor, if it is one.
    pub fn from_cursor(at: Position, cursor: &[u8]) -> Option<Self> {
        let (reason, before) = cursor.split_first()?;
        let reason = *JUMPS.iter().find(|jump| **jump as u8 == *reason)?;
        let before = Seq(u64::from_be_bytes(before.try_into().ok()?));
        let place = Some(Place { at, before: before.min(at.seq.next()) });
        Some(Self { reason, place })
    }
}

impl Service {
    /// Whether a device is to have a snapshot before deltas, and why: its items do not lead to
    /// where deltas begin, or the deltas may be larger.
    pub(super) fn to_gather(
        &self,
        of: &Following,
        log: &Log,
        plan: &SyncPlan,
        claim: Claim,
        stored: Option<Position>,
    ) -> Result<Option<Jump>, Error> {
        if !log.is_folded() {
            return Ok(None);
        }
        // At the place where its following began it has no items, unless we gave it some.
        let is_bare = match claim {
            Claim::Nothing => true,
            Claim::Stored => stored.is_none_or(|stored| stored.seq < of.since.seq),
            Claim::At { position, is_genuine } => !is_genuine && position.seq == of.since.seq,
        };
        let queue = of.queue.id();
        match plan.jump {
            Some(Jump::New) => Ok(self.has_items(&queue).then_some(Jump::New)),
            None if is_bare => Ok(self.has_items(&queue).then_some(Jump::New)),
            Some(jump) => Ok(Some(jump)),
            None if log.head().0 - plan.after.0.min(log.head().0) < FEW => Ok(None),
            None => Ok(self.may_be_smaller(&queue, plan.after)?.then_some(Jump::Smaller)),
        }
    }

    /// Whether the collections of a queue hold anything.
    pub fn has_items(&self, queue: &QueueId) -> bool {
        let totals = self.totals(queue);
        totals.is_some_and(|totals| totals.collections.iter().any(|total| total.items > 0))
    }

    /// Whether the changes after `after`, each counted, are more than a snapshot.
    fn may_be_smaller(&self, queue: &QueueId, after: Seq) -> Result<bool, Error> {
        let Some(totals) = self.totals(queue) else { return Ok(false) };
        let next = self.router.read(queue, after, NEXT)?;
        let first = next.iter().find_map(|entry| match &entry.body {
            Body::Change(change) => Some(change.bytes_so_far.saturating_sub(change.bytes() as u64)),
            _ => None,
        });
        let Some(passed) = first else { return Ok(false) };
        let snapshot = totals.collections.iter().map(|total| total.bytes).sum();
        Ok(is_more(totals.bytes_so_far.saturating_sub(passed), snapshot))
    }

    /// What comes next of a snapshot for who stands at `after` of `all[at]`, its own queue being
    /// first: items of at most `room` bytes.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn chunk(
        &self,
        all: &[Following],
        at: usize,
        after: Position,
        gather: Gather,
        room: usize,
    ) -> Result<Part, Error> {
        let queue = all[at].queue.id();
        let log = self.router.log(&queue)?;
        let Some(folded) = self.storage.longterm.position(queue).await? else {
            return Ok(Part::Later);
        };
        if folded.seq > log.head() && self.router.epoch(queue.shard()) > folded.epoch {
            // It holds what was lost, until the queue next changes.
            return Ok(Part::Deltas);
        }
        let is_same = log.epoch_at(folded.seq) == Some(folded.epoch) || log.is_forgotten(folded);
        if !is_same || folded.seq < after.seq {
            return Ok(Part::Later);
        }
        let floor = log.floor(self.router.oldest_day());
        if after.seq >= floor
            && let Some(place) = gather.place
        {
            return self.read_chunk(queue, gather.reason, place, false, room).await;
        }
        let (reason, after) = if after.seq < floor {
            let epoch = log.epoch_at(floor).unwrap_or(after.epoch);
            (Jump::Overflow, Position { epoch, seq: floor })
        } else {
            (gather.reason, after)
        };
        let at = self.last_quiet(all, at, after, folded.seq).await?;
        if reason == Jump::Smaller && !self.is_smaller(&queue, after.seq, at.seq).await? {
            return Ok(Part::Deltas);
        }
        let place = Place { at, before: at.seq.next() };
        self.read_chunk(queue, reason, place, true, room).await
    }

    /// How far a device may be taken by items alone: up to the first entry that it is to be given
    /// and that is no change, and not beyond `to`.
    async fn last_quiet(
        &self,
        all: &[Following],
        at: usize,
        mut from: Position,
        to: Seq,
    ) -> Result<Position, Error> {
        let now_ms = self.now_ms();
        for _ in 0..PAGES_MAX {
            let read = self.router.read(&all[at].queue.id(), from.seq, PAGE)?;
            if read.is_empty() {
                break;
            }
            for entry in read {
                let is_change = matches!(entry.body, Body::Change(_));
                if entry.position.seq > to
                    || !is_change && self.judge(&entry, all, at, now_ms)? == Verdict::Deliver
                {
                    return Ok(from);
                }
                from = entry.position;
            }
            tokio::task::yield_now().await;
        }
        Ok(from)
    }

    /// Whether what a device would be given of changes after `after` and up to `to`, coalesced, is
    /// more than all items.
    async fn is_smaller(&self, queue: &QueueId, after: Seq, to: Seq) -> Result<bool, Error> {
        let (mut deltas, mut snapshot) = (0, 0);
        let mut from = queue.as_bytes().to_vec();
        loop {
            let range = Range::prefix_after(queue.as_bytes(), from);
            let read = self.router.scan(Space::Items, &range, PAGE.entries)?;
            let Some((last, _)) = read.last() else { return Ok(is_more(deltas, snapshot)) };
            from = [last.as_ref(), &[0]].concat();
            for (key, item) in &read {
                let item: Item = decode(item)?;
                let is_unseen =
                    item.head.is_deleted && item.head.born > after && !item.lived_before;
                let bytes = match item.head.is_deleted {
                    true => (key.len() - size_of::<QueueId>()) as u64,
                    false => item.bytes,
                };
                if item.head.seq > after && item.head.seq <= to && !is_unseen {
                    deltas += bytes;
                }
                snapshot += item.bytes;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn read_chunk(
        &self,
        queue: QueueId,
        reason: Jump,
        Place { at, mut before }: Place,
        begins: bool,
        mut room: usize,
    ) -> Result<Part, Error> {
        let longterm = &self.storage.longterm;
        let mut items = Vec::new();
        let chunk = |items, rest| Ok(Part::Chunk(Chunk { reason, at, begins, items, rest }));
        loop {
            let take = Take { entries: PAGE.entries, bytes: room.max(1) };
            let page = longterm.newest(queue, Some(before), take).await?;
            if page.is_empty() {
                break;
            }
            for item in page {
                let bytes = bytes_of(&item);
                if bytes > room || items.len() >= ITEMS_MAX {
                    if !items.is_empty() {
                        return chunk(items, Rest::Before(before));
                    }
                    // No frame of this device takes it.
                    before = item.position.seq;
                    continue;
                }
                (room, before) = (room - bytes, item.position.seq);
                items.push(view(item));
            }
        }
        // Whatever changed while the chunks were read is before this.
        let folded = longterm.position(queue).await?.map_or(at.seq, |folded| folded.seq);
        // In another epoch deltas do not go on.
        let end = self.router.log(&queue)?.last_of(at.epoch).unwrap_or(at.seq);
        chunk(items, Rest::Until(folded.min(end).max(at.seq)))
    }
}

impl From<Jump> for SnapshotReason {
    fn from(jump: Jump) -> Self {
        match jump {
            Jump::New => Self::New,
            Jump::EpochChanged => Self::EpochChanged,
            Jump::Overflow => Self::Overflow,
            Jump::Ahead => Self::Ahead,
            Jump::Smaller => Self::Smaller,
        }
    }
}

fn view(item: longterm::Item) -> ItemView {
    let longterm::Item { name, position, stamp, born: _, value } = item;
    let longterm::Name { collection, key } = name;
    ItemView { collection, key, seq: position.seq, value, clock: stamp.clock }
}

/// What an item takes of a frame, at most.
fn bytes_of(item: &longterm::Item) -> usize {
    let longterm::Name { collection, key } = &item.name;
    ITEM_BYTES + collection.as_str().len() + key.len() + item.value.bytes.len()
}

fn is_more(deltas: u64, snapshot: u64) -> bool {
    deltas.saturating_mul(10) > snapshot.saturating_mul(7)
}

const JUMPS: [Jump; 5] =
    [Jump::New, Jump::EpochChanged, Jump::Overflow, Jump::Ahead, Jump::Smaller];
/// For who missed fewer entries, a snapshot is not considered.
const FEW: u64 = 64;
/// Where the first change behind a position is looked for.
const NEXT: Take = Take { entries: 16, bytes: 64 << 10 };
/// Entries or items of one read.
const PAGE: Take = Take { entries: 512, bytes: 1 << 20 };
/// Reads in which the place of a snapshot is looked for.
const PAGES_MAX: usize = 128;
/// Items of one chunk.
const ITEMS_MAX: usize = 4_096;
/// What an item takes besides its names and its value, at most: seq, clock, lengths, headers.
const ITEM_BYTES: usize = 48;
