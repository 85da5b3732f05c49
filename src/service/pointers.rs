//! Pointers that are newer than the disk: written lazily, all of a registration
//! as one record. Losing the last second of them costs a redelivery, no more.

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;

use super::{Error, Service, records::Positions};
use crate::{
    base::ids::{QueueId, RegId},
    crash_point,
    queue::{
        position::Position,
        store::{Batch, Space, decode, encode},
    },
};

/// Records of one flush's batch.
const FLUSH_RECORDS: usize = 1_024;

/// The changed pointers.
#[derive(Default)]
pub struct Pointers {
    changed: DashMap<RegId, Changed>,
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
        // Outside the map's lock, as it may read the store.
        let stored = match self.pointers.changed.contains_key(regid) {
            true => Ok(Positions::default()),
            false => self.positions(regid),
        };
        let stored = stored.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read pointers, some entries will be redelivered");
            Positions::default()
        });
        let mut changed = self
            .pointers
            .changed
            .entry(*regid)
            .or_insert_with(|| Changed { positions: stored, version: 0 });
        change(&mut changed.positions);
        changed.version += 1;
    }

    /// Writes all changed pointers; durable when this returns.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; they stay changed then.
    pub async fn flush_pointers(&self) -> Result<(), Error> {
        let changed: Vec<(RegId, u64, Vec<u8>)> = self
            .pointers
            .changed
            .iter()
            .map(|one| (*one.key(), one.version, encode(&one.positions)))
            .collect();
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

    /// Flushes at a period until it is aborted.
    pub async fn flush_periodically(self: Arc<Self>, period: Duration) {
        let mut tick = tokio::time::interval(period);
        loop {
            tick.tick().await;
            if let Err(error) = self.flush_pointers().await {
                tracing::warn!(%error, "cannot flush pointers");
            }
        }
    }
}
