//! Bugs that are planted between the parts, and what happened in a run.

use std::{
    collections::BTreeSet,
    ops::AddAssign,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use carillon::queue::store::{Batch, Error, Range, Record, Space, Store, memory::MemoryStore};
use carillon_wire::idl;

/// What somebody does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Nothing.
    None,
    /// A device makes its positions durable before the items, and dies in between.
    PositionFirst,
    /// The gateway leaves out deletes.
    LostDelete,
    /// It gives a change to the wrong item.
    WrongItem,
    /// It leaves a range out of the answers to repairs.
    LostRange,
    /// It loses what it knows of an item, though not the change.
    LostItem,
    /// A device gives an edit another number when it sends it again.
    OtherNumber,
    /// The gateway forgets which edits it has taken.
    LostUploads,
    /// It leaves an item out of a snapshot.
    LostChunkItem,
    /// Its store says that data is durable before it is.
    LyingSync,
}

impl Bug {
    pub const ALL: [Self; 9] = [
        Self::OtherNumber,
        Self::LostUploads,
        Self::LostChunkItem,
        Self::PositionFirst,
        Self::LostDelete,
        Self::WrongItem,
        Self::LostRange,
        Self::LostItem,
        Self::LyingSync,
    ];

    pub fn is_on_the_line(self) -> bool {
        use Bug::{LostChunkItem, LostDelete, LostRange, OtherNumber, WrongItem};
        matches!(self, LostDelete | WrongItem | LostRange | OtherNumber | LostChunkItem)
    }

    /// Makes of a frame of a device another one. False if it is as it was.
    pub fn spoil_up(self, up: &mut idl::Up, seen: &mut Seen) -> bool {
        let Some(upload) = up.upload.as_mut().filter(|_| self == Self::OtherNumber) else {
            return false;
        };
        let Some(first) = upload.edits.first().map(|edit| edit.cseq) else { return false };
        let is_new = seen.sent.insert((upload.regid.clone(), first));
        if !is_new {
            upload.edits.iter_mut().for_each(|edit| edit.cseq += 1);
        }
        !is_new
    }

    /// The same for the gateway's.
    pub fn spoil_down(self, down: &mut idl::Down, seen: &mut Seen) -> bool {
        let deltas = down.deltas.as_mut().map(|deltas| &mut deltas.deltas);
        let entries = deltas.into_iter().flatten().flat_map(|delta| &mut delta.entries);
        let mut changes = entries.filter_map(|entry| entry.change.as_mut());
        let is_spoilt = match self {
            Self::LostDelete => {
                let mut deletes = changes.filter(|change| change.kind == idl::ChangeKind::DELETE);
                // An item that never was is deleted instead.
                deletes.next().map(|change| change.key.push('x')).is_some()
            }
            Self::WrongItem => {
                let change = changes.find(|change| change.kind != idl::ChangeKind::DELETE);
                change.map(|change| change.key = "k1".into()).is_some()
            }
            Self::LostChunkItem => {
                down.snapshot.as_mut().is_some_and(|chunk| chunk.items.pop().is_some())
            }
            Self::LostRange => {
                let ranges = down.result.as_mut().and_then(|result| result.ranges.as_mut());
                ranges.is_some_and(|ranges| ranges.pop().is_some())
            }
            _ => false,
        };
        seen.spoilt += u64::from(is_spoilt);
        is_spoilt
    }
}

/// What was seen to happen, so that nobody believes a simulation in which nothing did.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub changes: u64,
    pub edits: u64,
    pub messages: u64,
    pub node_crashes: u64,
    pub lost_batches: u64,
    pub device_crashes: u64,
    /// Of these, so many while a frame was made durable.
    pub in_commit: u64,
    pub cuts: u64,
    pub clock_jumps: u64,
    pub damages: u64,
    pub deltas: u64,
    pub coalesced: u64,
    pub repairs: u64,
    pub uploads: u64,
    pub chunks: u64,
    pub conflicts: u64,
    pub told: u64,
    pub spoilt: u64,
    /// Registrations and first edits of uploads that were sent.
    pub sent: BTreeSet<(String, i64)>,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        let mine = self.numbers();
        mine.into_iter().zip(other.clone().numbers()).for_each(|((_, to), (_, more))| *to += *more);
    }
}

impl Seen {
    /// Each number with its name.
    pub fn numbers(&mut self) -> [(&'static str, &mut u64); 17] {
        [
            ("changes", &mut self.changes),
            ("edits", &mut self.edits),
            ("messages", &mut self.messages),
            ("crashes of the node", &mut self.node_crashes),
            ("batches lost", &mut self.lost_batches),
            ("crashes of devices", &mut self.device_crashes),
            ("in a commit", &mut self.in_commit),
            ("cuts", &mut self.cuts),
            ("jumps of clocks", &mut self.clock_jumps),
            ("damages", &mut self.damages),
            ("frames of deltas", &mut self.deltas),
            ("coalesced", &mut self.coalesced),
            ("repairs", &mut self.repairs),
            ("uploads", &mut self.uploads),
            ("chunks", &mut self.chunks),
            ("conflicts", &mut self.conflicts),
            ("told", &mut self.told),
        ]
    }
}

/// The store of one life of the node: dead with it, whatever its last tasks still try.
pub struct Fused {
    pub inner: Arc<MemoryStore>,
    pub is_dead: Arc<AtomicBool>,
    pub bug: Bug,
    pub writes: AtomicU64,
}

impl Fused {
    fn alive(&self) -> Result<&MemoryStore, Error> {
        if self.is_dead.load(Ordering::Relaxed) {
            return Err(Error::Engine { step: "read or write", cause: "the node is dead".into() });
        }
        Ok(&self.inner)
    }

    fn loses(&self, space: Space) -> bool {
        let nth = |n| self.writes.fetch_add(1, Ordering::Relaxed) % n == n - 1;
        match (self.bug, space) {
            (Bug::LostItem, Space::Items) => nth(8),
            (Bug::LostUploads, Space::Uploads) => nth(2),
            _ => false,
        }
    }
}

impl Store for Fused {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.alive()?.get(space, key)
    }

    fn scan(&self, space: Space, range: &Range, limit: usize) -> Result<Vec<Record>, Error> {
        self.alive()?.scan(space, range, limit)
    }

    fn write(&self, batch: &Batch) -> Result<(), Error> {
        let store = self.alive()?;
        if !matches!(self.bug, Bug::LostItem | Bug::LostUploads) {
            return store.write(batch);
        }
        let mut batch = batch.clone();
        batch.writes.retain(|write| !self.loses(write.space));
        store.write(&batch)
    }

    fn sync(&self) -> Result<(), Error> {
        let store = self.alive()?;
        if self.bug == Bug::LyingSync { Ok(()) } else { store.sync() }
    }

    fn days(&self) -> Vec<u32> {
        self.inner.days()
    }

    fn drop_day(&self, day: u32) -> Result<(), Error> {
        self.alive()?.drop_day(day)
    }

    fn drop_space(&self, space: Space) -> Result<(), Error> {
        self.alive()?.drop_space(space)
    }

    fn disk_bytes(&self) -> u64 {
        self.inner.disk_bytes()
    }
}
