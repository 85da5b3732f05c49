//! The epoch of every shard: which life its queues are in.
//!
//! An epoch is durable before anything is appended in it, and never used again.
//! Changing one is one write; so is changing all of them.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{
    position::Epoch,
    store::{Batch, Error, Range, Space, Store, mark::Facts},
    writer::STAMP,
};
use crate::base::ids::{SHARDS, Shard};

/// The epoch that all shards have at least.
const ALL: &[u8] = b"epoch";
/// With the shard's number behind it: that shard's own.
const ONE: &[u8] = b"epoch/";

/// The current epoch of each shard.
pub struct Epochs(Box<[AtomicU32]>);

/// What the store and the mark say about the last run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The stamp of the newest commit in the store.
    pub stamp: u64,
    /// The mark is ahead of the store: acknowledged data is gone.
    pub is_cut: bool,
}

impl Epochs {
    /// Reads the epochs of a store. If `mark` proves that the store lost
    /// commits, every shard gets a new epoch, durable when this returns.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be read or written.
    pub fn open(store: &dyn Store, mark: Option<Facts>) -> Result<(Self, Recovered), Error> {
        let stamp = store.get(Space::Meta, STAMP)?.map_or(Ok(0), |bytes| number(&bytes))?;
        let is_cut = mark.is_some_and(|mark| mark.stamp > stamp);
        let mut all = store.get(Space::Meta, ALL)?.map_or(Ok(0), |bytes| number(&bytes))? as u32;
        let mut ones = vec![0; usize::from(SHARDS)];
        for (key, value) in store.scan(Space::Meta, &Range::prefix(ONE), ones.len())? {
            let shard = key.get(ONE.len()..).and_then(|b| <[u8; 2]>::try_from(b).ok());
            let shard = usize::from(u16::from_be_bytes(
                shard.ok_or_else(|| Error::Damaged("the name of an epoch".into()))?,
            ));
            if let Some(one) = ones.get_mut(shard) {
                *one = number(&value)? as u32;
            }
        }
        if all == 0 || is_cut {
            let newest = ones.iter().copied().chain([all, mark.map_or(0, |mark| mark.epoch)]).max();
            all = newest.unwrap_or(0) + 1;
            let mut batch = Batch::default();
            batch.put(Space::Meta, ALL, u64::from(all).to_le_bytes().to_vec());
            store.write(&batch)?;
            store.sync()?;
        }
        let current = ones.into_iter().map(|one| AtomicU32::new(one.max(all))).collect();
        Ok((Self(current), Recovered { stamp, is_cut }))
    }

    /// The epoch in which a shard appends now.
    pub fn current(&self, shard: Shard) -> Epoch {
        Epoch(self.of(shard).load(Ordering::Acquire))
    }

    /// The newest epoch of any shard.
    pub fn newest(&self) -> u32 {
        self.0.iter().map(|epoch| epoch.load(Ordering::Acquire)).max().unwrap_or(0)
    }

    /// Gives a shard its next epoch, in the batch that makes it durable. Only
    /// the shard's owner calls this.
    pub(super) fn advance(&self, shard: Shard, batch: &mut Batch) -> Epoch {
        let epoch = self.of(shard).fetch_add(1, Ordering::AcqRel) + 1;
        let key = [ONE, &shard.0.to_be_bytes()].concat();
        batch.put(Space::Meta, key, u64::from(epoch).to_le_bytes().to_vec());
        Epoch(epoch)
    }

    fn of(&self, shard: Shard) -> &AtomicU32 {
        &self.0[usize::from(shard.0 % SHARDS)]
    }
}

fn number(bytes: &[u8]) -> Result<u64, Error> {
    bytes
        .try_into()
        .map(u64::from_le_bytes)
        .map_err(|_| Error::Damaged("a number of the store's own".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::store::memory::MemoryStore;

    #[test]
    fn s6_a_store_behind_its_mark_gets_an_epoch_that_nobody_had() {
        let store = MemoryStore::default();
        let (epochs, recovered) = Epochs::open(&store, None).unwrap();
        assert_eq!((epochs.newest(), recovered.is_cut), (1, false));
        let mut batch = Batch::default();
        epochs.advance(Shard(7), &mut batch);
        store.write(&batch).unwrap();
        let (again, _) = Epochs::open(&store, None).unwrap();
        assert_eq!((again.current(Shard(7)), again.current(Shard(8))), (Epoch(2), Epoch(1)));
        let (cut, recovered) = Epochs::open(&store, Some(Facts { stamp: 9, epoch: 5 })).unwrap();
        assert!(recovered.is_cut);
        assert_eq!((cut.current(Shard(7)), cut.current(Shard(8))), (Epoch(6), Epoch(6)));
    }
}
