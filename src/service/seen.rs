//! When devices were last here, to the day, and the end of registrations whose devices stay
//! away.
//!
//! The day is written once a day at most: with the first connection of a day, and for those
//! that stay connected when it turns. An index by day finds who has stayed away, in steps.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::MissedTickBehavior;

use super::{
    Error, Service,
    feedback::Why,
    register::{erase, load},
};
use crate::{
    base::{
        clock::day_of,
        ids::{DeviceId, RegId},
    },
    queue::{
        store::{Range, Space, encode},
        txn::Txn,
    },
};

/// How often new days are written.
const PERIOD: Duration = Duration::from_secs(5);
/// Devices of one change of an owner.
const STEP: usize = 200;
/// Devices that wait for it; the others are noted the next time that they connect.
const WAITING_MAX: usize = 1 << 20;
/// Ended registrations of which a device is told why, when it comes back.
const EXPIRED_MAX: usize = 32;
/// Between two steps, so that they stay in the background.
const PAUSE: Duration = Duration::from_millis(20);

/// Devices whose day is to be written.
#[derive(Default)]
pub struct Seen {
    waiting: Mutex<Vec<DeviceId>>,
    /// The day for which those that are connected were noted.
    day: AtomicU32,
}

impl Service {
    /// A device is here, and its record is of another day.
    pub(super) fn note_seen(&self, device: DeviceId) {
        let mut waiting = self.seen.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX {
            waiting.push(device);
        }
    }

    /// Whether this was a registration of the device's that ended because it stayed away.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn has_expired(&self, device: &DeviceId, regid: &str) -> Result<bool, Error> {
        let Ok(regid) = regid.parse::<RegId>() else { return Ok(false) };
        Ok(self.device(device)?.is_some_and(|record| record.expired.contains(&regid)))
    }

    fn is_noted(&self, device: &DeviceId) -> bool {
        let waiting = self.seen.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.contains(device)
    }

    /// Today, as days since 1970.
    pub(super) fn today(&self) -> u32 {
        day_of(self.now_ms())
    }

    /// Writes days and ends registrations until it is aborted.
    pub async fn keep_seen(self: Arc<Self>) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let kept = async {
                self.write_seen().await?;
                self.expire_registrations().await
            };
            if let Err(error) = kept.await {
                tracing::warn!(%error, "cannot keep the days of devices");
            }
        }
    }

    /// Writes the day of all devices that are to be noted.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; the rest is noted later.
    pub async fn write_seen(&self) -> Result<(), Error> {
        let today = self.today();
        let mut waiting = {
            let mut waiting = self.seen.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *waiting)
        };
        let before = self.seen.day.swap(today, Ordering::Relaxed);
        if before != today && before != 0 {
            waiting.extend(self.presence.iter().map(|present| *present.key()));
        }
        waiting.sort_unstable();
        waiting.dedup();
        for step in waiting.chunks(STEP) {
            self.write_day(step, today).await?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn write_day(&self, devices: &[DeviceId], today: u32) -> Result<(), Error> {
        let groups = self.router.by_owner(devices.iter().copied(), |device| device.shard());
        for (shard, group) in groups {
            let change = move |txn: &mut Txn<'_>| {
                for device in group {
                    match load(txn, &device) {
                        Ok(mut record) if record.seen_day != today => {
                            txn.remove(Space::Feedback, day_key(record.seen_day, &device));
                            record.seen_day = today;
                            txn.put(Space::Feedback, day_key(today, &device), Vec::new());
                            txn.put(Space::Devices, device.as_bytes(), encode(&record));
                        }
                        Ok(_) | Err(Error::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            };
            self.router.run(shard, change).await?;
        }
        Ok(())
    }

    /// Ends the registrations of devices that have stayed away for too long. Gives how many.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; the rest is ended the next time.
    pub async fn expire_registrations(&self) -> Result<usize, Error> {
        let days = self.limits.load().registration_expires_days;
        if days == 0 {
            return Ok(0);
        }
        let today = self.today();
        let last = today.saturating_sub(days);
        let mut range = Range { from: b"d".to_vec(), to: Some(day_prefix(last)) };
        let mut ended = 0;
        loop {
            let page = self.router.scan(Space::Feedback, &range, STEP)?;
            let Some((newest, _)) = page.last() else { return Ok(ended) };
            range.from = [newest.as_ref(), &[0]].concat();
            let devices = page.iter().filter_map(|(key, _)| read_day_key(key));
            let (here, away): (Vec<_>, Vec<_>) =
                devices.partition(|(_, device)| self.is_online(device) || self.is_noted(device));
            let here: Vec<DeviceId> = here.into_iter().map(|(_, device)| device).collect();
            self.write_day(&here, today).await?;
            for device in away {
                ended += self.expire(device, last).await?;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ends the registrations of one device, unless it was here after all.
    async fn expire(&self, (day, device): (u32, DeviceId), last: u32) -> Result<usize, Error> {
        let known = self.device(&device)?;
        let known = known.map(|record| record.registrations.clone()).unwrap_or_default();
        let all: Vec<RegId> = known.iter().map(|one| one.regid).collect();
        let (listed, held) = self.ending(&known, Why::Expired)?;
        let change = move |txn: &mut Txn<'_>| {
            let mut record = match load(txn, &device) {
                Ok(record) => record,
                // The account is no more.
                Err(Error::NotFound { .. }) => {
                    txn.remove(Space::Feedback, day_key(day, &device));
                    return Ok::<_, Error>(None);
                }
                Err(error) => return Err(error),
            };
            let regids = record.registrations.iter().map(|one| one.regid);
            let is_same = regids.eq(all.iter().copied());
            if record.seen_day >= last || !is_same {
                return Ok(None);
            }
            txn.remove(Space::Feedback, day_key(record.seen_day, &device));
            let ended = std::mem::take(&mut record.registrations);
            for one in &ended {
                erase(txn, one);
                record.expired.push(one.regid);
            }
            let surplus = record.expired.len().saturating_sub(EXPIRED_MAX);
            record.expired.drain(..surplus);
            txn.put(Space::Devices, device.as_bytes(), encode(&record));
            txn.put_all(listed);
            Ok(Some(ended))
        };
        let Some(ended) = self.router.run(device.shard(), change).await? else { return Ok(0) };
        for one in &ended {
            self.erased(one);
        }
        self.metrics.receipts.registrations_expired.increment(ended.len() as u64);
        self.refresh(&device);
        self.told_of(held).await?;
        Ok(ended.len())
    }
}

fn day_prefix(day: u32) -> Vec<u8> {
    [b"d", day.to_be_bytes().as_slice()].concat()
}

/// The index of devices by the day when they were last here.
pub(super) fn day_key(day: u32, device: &DeviceId) -> Vec<u8> {
    [day_prefix(day).as_slice(), device.as_bytes()].concat()
}

fn read_day_key(key: &[u8]) -> Option<(u32, DeviceId)> {
    let (day, device) = key.get(1..)?.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*day), DeviceId::from_slice(device)?))
}
