//! Stores with a planted bug: the simulation must notice each of them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use carillon::queue::store::{Batch, Error, Range, Record, Space, Store, memory::MemoryStore};

/// What the store does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Nothing.
    None,
    /// It says that data is durable before it is.
    LyingSync,
    /// Now and then it forgets the newest number of a queue.
    ForgottenHead,
    /// Now and then it loses an entry.
    LostEntry,
    /// It forgets which sends are not complete.
    ForgottenPending,
    /// It loses the changes of what devices follow.
    ForgottenDevice,
}

/// The memory store behind a bug.
pub struct Sabotaged {
    pub inner: Arc<MemoryStore>,
    pub bug: Bug,
    pub writes: AtomicU64,
}

impl Sabotaged {
    fn drops(&self, space: Space) -> bool {
        let is_now = |n| self.writes.fetch_add(1, Ordering::Relaxed) % n == n - 1;
        match (self.bug, space) {
            (Bug::ForgottenHead, Space::Heads) | (Bug::LostEntry, Space::Entries(_)) => is_now(20),
            (Bug::ForgottenDevice, Space::Devices) => is_now(8),
            (Bug::ForgottenPending, Space::Pending) => true,
            _ => false,
        }
    }
}

impl Store for Sabotaged {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.inner.get(space, key)
    }

    fn scan(&self, space: Space, range: &Range, limit: usize) -> Result<Vec<Record>, Error> {
        self.inner.scan(space, range, limit)
    }

    fn write(&self, batch: &Batch) -> Result<(), Error> {
        let mut batch = batch.clone();
        batch.writes.retain(|write| !self.drops(write.space));
        self.inner.write(&batch)
    }

    fn sync(&self) -> Result<(), Error> {
        match self.bug {
            Bug::LyingSync => Ok(()),
            _ => self.inner.sync(),
        }
    }

    fn days(&self) -> Vec<u32> {
        self.inner.days()
    }

    fn drop_day(&self, day: u32) -> Result<(), Error> {
        self.inner.drop_day(day)
    }

    fn drop_space(&self, space: Space) -> Result<(), Error> {
        self.inner.drop_space(space)
    }

    fn disk_bytes(&self) -> u64 {
        self.inner.disk_bytes()
    }
}
