//! Pointers that are newer than the disk: written lazily, all of a registration
//! as one record. Losing the last second of them costs a redelivery, no more.

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;
use tokio::{sync::Notify, time::MissedTickBehavior};

use super::{Error, Service, records::Positions};
use crate::{
    base::{
        ids::{QueueId, RegId},
        maps,
    },
    crash_point,
    queue::{
        position::Position,
        store::{Batch, Space, decode, encode},
    },
};

/// Records of one flush's batch.
const FLUSH_RECORDS: usize = 1_024;
/// From a device's leaving to the flush.
const SOON: Duration = Duration::from_millis(20);

/// The changed pointers.
#[derive(Default)]
pub struct Pointers {
    changed: DashMap<RegId, Changed>,
    /// Somebody wants a flush before the period is over.
    is_wanted: Notify,
}

impl Pointers {
    pub(super) fn shrink(&self) {
        maps::shrink(&self.changed);
    }
}

struct Changed {
    positions: Positions,
    /// Grows with every change, so that a flush knows what it wrote.
    version: u64,
}

impl Service {
    /// The registration has handled everything up to `position`. Written within a second.
    pub fn acknowledge(&self, regid: &RegId, queue: QueueId, position: Position) {
        self.change_positions(regid, |positions| positions.set(queue, position));
    }

    /// All positions of a registration, newest first known.
    pub(super) fn positions(&self, regid: &RegId) -> Result<Positions, Error> {
        if let Some(changed) = self.pointers.changed.get(regid) {
            return Ok(changed.positions.clone());
        }
        self.read_positions(regid)
    }

    fn read_positions(&self, regid: &RegId) -> Result<Positions, Error> {
        match self.router.get(Space::Pointers, regid.as_bytes())? {
            Some(bytes) => Ok(decode(&bytes)?),
            None => Ok(Positions::default()),
        }
    }

    /// The registration no longer follows a queue.
    pub(super) fn forget_position(&self, regid: &RegId, queue: &QueueId) {
        self.change_positions(regid, |positions| positions.0.retain(|(id, _)| id != queue));
    }

    /// The registration is no more; its stored record goes with it.
    pub(super) fn forget_positions(&self, regid: &RegId) {
        self.pointers.changed.remove(regid);
    }

    fn change_positions(&self, regid: &RegId, change: impl FnOnce(&mut Positions)) {
        let mut changed = self.pointers.changed.entry(*regid).or_insert_with(|| {
            let stored = self.read_positions(regid).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read pointers, some entries will be redelivered");
                Positions::default()
            });
            Changed { positions: stored, version: 0 }
        });
        change(&mut changed.positions);
        changed.version += 1;
    }

    /// Writes all changed pointers; durable when this returns.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; they stay changed then.
    pub async fn flush_pointers(&self) -> Result<(), Error> {
        let changed = self.pointers.changed.iter();
        let changed = changed.map(|one| (*one.key(), one.version, encode(&one.positions)));
        let changed: Vec<(RegId, u64, Vec<u8>)> = changed.collect();
        for chunk in changed.chunks(FLUSH_RECORDS) {
            let mut batch = Batch::default();
            for (regid, _, record) in chunk {
                batch.put(Space::Pointers, regid.as_bytes(), record.clone());
            }
            crash_point!("pointers::before_flush");
            self.router.commit(batch).await?;
            for (regid, version, _) in chunk {
                self.pointers.changed.remove_if(regid, |_, one| one.version == *version);
            }
            self.metrics.queue.pointer_flushes.increment(chunk.len() as u64);
        }
        Ok(())
    }

    /// Writes all that is written lazily: before the node stops.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn settle(&self) -> Result<(), Error> {
        self.flush_pointers().await?;
        self.router.mark().await;
        Ok(())
    }

    /// A device leaves: what it acknowledged is written soon.
    pub fn flush_soon(&self) {
        self.pointers.is_wanted.notify_one();
    }

    /// Flushes at a period, and soon where that is wanted, until it is aborted. It
    /// alone flushes, so that an older record never overwrites a newer one.
    pub async fn flush_periodically(self: Arc<Self>, period: Duration) {
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => {}
                () = self.pointers.is_wanted.notified() => {
                    // A storm of leaving devices is a few flushes, not one each.
                    tokio::time::sleep(SOON.min(period)).await;
                }
            }
            if let Err(error) = self.flush_pointers().await {
                tracing::warn!(%error, "cannot flush pointers");
            }
        }
    }
}
