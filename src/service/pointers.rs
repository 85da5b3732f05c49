//! Pointers that are newer than the disk: written lazily, all of a registration
//! as one record. Losing the last second of them costs a redelivery, no more.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::MissedTickBehavior};

use super::{
    Error, Service,
    allowance::{Delivered, Sums},
    deliver::Following,
    records::Positions,
};
use crate::{
    base::{
        ids::{QueueId, RegId},
        maps::{self, Shared},
    },
    crash_point,
    queue::{
        position::Position,
        store::{Batch, Space, decode, encode},
    },
};

/// Records of one flush's batch: a message that comes meanwhile waits for no more.
const FLUSH_RECORDS: usize = 256;
/// From a device's leaving to the flush.
const SOON: Duration = Duration::from_millis(20);
/// Records that stay in memory when they are written, so that the next acknowledgement of the
/// same registration need not read its own: about 280 bytes each.
const KEPT_MAX: usize = 65_536;

/// The pointers of those who acknowledged something lately.
#[derive(Default)]
pub struct Pointers {
    recent: Shared<RegId, Recent>,
    /// Those whose record is to be written, each once.
    unwritten: Mutex<Vec<RegId>>,
    /// Somebody wants a flush before the period is over.
    is_wanted: Notify,
}

struct Recent {
    positions: Positions,
    /// What was delivered since the last flush.
    delivered: Sums,
    /// Grows with every change, so that a flush knows what it wrote.
    version: u64,
    /// It is among the unwritten, or a flush has it in hand.
    is_unwritten: bool,
    /// It has changed since the last sweep.
    is_fresh: bool,
}

impl Pointers {
    /// Forgets what is written and did not change since the last time.
    pub(super) fn sweep(&self) {
        self.recent.retain(|_, one| one.is_unwritten || std::mem::take(&mut one.is_fresh));
        maps::shrink(&self.recent);
    }

    fn push_unwritten(&self, regids: &[RegId]) {
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        unwritten.extend_from_slice(regids);
    }

    /// All that is to be written, neighbours in the store beside each other.
    fn take_unwritten(&self) -> InHand<'_> {
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        let mut regids = std::mem::take(&mut *unwritten);
        drop(unwritten);
        regids.sort_unstable();
        InHand { pointers: self, regids, done: 0 }
    }

    /// What the record of a registration is to be.
    fn record(&self, regid: &RegId) -> Option<Record> {
        let one = self.recent.get(regid)?;
        let (bytes, delivered) = (encode(&one.positions), one.delivered.clone());
        Some(Record { regid: *regid, version: one.version, bytes, delivered })
    }

    /// The record is durable.
    fn written(&self, record: &Record, is_kept: bool) {
        let regid = &record.regid;
        let Some(mut one) = self.recent.get_mut(regid) else { return };
        one.delivered.subtract(&record.delivered);
        if one.version != record.version {
            drop(one);
            return self.push_unwritten(&[*regid]);
        }
        one.is_unwritten = false;
        drop(one);
        if !is_kept {
            self.recent.remove_if(regid, |_, one| !one.is_unwritten);
        }
    }
}

/// One registration's pointers as they are written.
struct Record {
    regid: RegId,
    version: u64,
    bytes: Vec<u8>,
    delivered: Sums,
}

/// What a flush writes. What it has not written when it is dropped is unwritten again.
struct InHand<'a> {
    pointers: &'a Pointers,
    regids: Vec<RegId>,
    done: usize,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if let Some(left @ [_, ..]) = self.regids.get(self.done..) {
            self.pointers.push_unwritten(left);
        }
    }
}

impl Service {
    /// The registration has handled everything up to `position`. Written within a second.
    /// What was delivered by that is counted with it.
    pub fn acknowledge(
        &self,
        regid: &RegId,
        queue: QueueId,
        position: Position,
        delivered: Option<Delivered>,
    ) {
        self.change_recent(regid, |recent| {
            recent.positions.set(queue, position);
            if let Some(delivered) = delivered {
                recent.delivered.add(delivered);
            }
        });
    }

    /// The registration has handled so many messages of `all[at]`, its own queue being first.
    pub(super) fn delivered(&self, regid: &RegId, all: &[Following], at: usize, messages: u32) {
        if let Some(delivered) = Delivered::of(all, at, messages) {
            self.change_recent(regid, |recent| recent.delivered.add(delivered));
        }
    }

    /// All positions of a registration, newest first known.
    pub(super) fn positions(&self, regid: &RegId) -> Result<Positions, Error> {
        if let Some(recent) = self.pointers.recent.get(regid) {
            return Ok(recent.positions.clone());
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
        self.change_recent(regid, |recent| recent.positions.0.retain(|(id, _)| id != queue));
    }

    /// The registration is no more; its stored record goes with it.
    pub(super) fn forget_positions(&self, regid: &RegId) {
        self.pointers.recent.remove(regid);
    }

    fn change_recent(&self, regid: &RegId, change: impl FnOnce(&mut Recent)) {
        let mut recent = self.pointers.recent.entry(*regid).or_insert_with(|| {
            let positions = self.read_positions(regid).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read pointers, some entries will be redelivered");
                Positions::default()
            });
            let delivered = Sums::default();
            Recent { positions, delivered, version: 0, is_unwritten: false, is_fresh: true }
        });
        change(&mut recent);
        recent.version += 1;
        recent.is_fresh = true;
        if !std::mem::replace(&mut recent.is_unwritten, true) {
            self.pointers.push_unwritten(&[*regid]);
        }
    }

    /// Writes all changed pointers; durable when this returns. Cancel-safe: what was not
    /// written is written the next time.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; they stay changed then.
    pub async fn flush_pointers(&self) -> Result<(), Error> {
        let mut in_hand = self.pointers.take_unwritten();
        while in_hand.done < in_hand.regids.len() {
            let left = &in_hand.regids[in_hand.done..];
            let chunk = &left[..left.len().min(FLUSH_RECORDS)];
            let records: Vec<_> = chunk.iter().filter_map(|r| self.pointers.record(r)).collect();
            // What these pointers have passed is noted already: a receipt must not be lost by
            // a crash that its pointer outlives.
            self.write_receipts().await?;
            let mut batch = Batch::default();
            for record in &records {
                batch.put(Space::Pointers, record.regid.as_bytes(), record.bytes.clone());
            }
            let delivered = self.put_delivered(records.iter().map(|r| &r.delivered), &mut batch);
            crash_point!("pointers::before_flush");
            self.router.commit(batch).await?;
            let is_kept = self.pointers.recent.len() <= KEPT_MAX;
            for record in &records {
                self.pointers.written(record, is_kept);
            }
            self.count_delivered(delivered);
            self.metrics.queue.pointer_flushes.increment(records.len() as u64);
            in_hand.done += chunk.len();
        }
        self.write_receipts().await?;
        self.write_used().await
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
