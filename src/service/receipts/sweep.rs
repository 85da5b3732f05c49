//! Messages that ask, by the time when they expire: what their senders are told then.
//!
//! A follower that has not acknowledged the message by then is reported, page by page, with one
//! commit for each, of however many messages; how far that is stands in the index, so that a crash
//! repeats a page at most.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use super::{
    Event, EventKind,
    log::{Endpoint, EndpointId},
};
use crate::{
    base::ids::{MessageId, RegId},
    queue::store::{Batch, Range, Space, decode, encode},
    route::Router,
    service::{
        Error, Service,
        records::{MessageRecord, Registration},
    },
};

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(1);
/// An acknowledgement may still be on its way so long after the expiry.
const GRACE_MS: u64 = 5_000;
/// Messages of one look.
const MESSAGES: usize = 256;
/// Followers of one step.
const FOLLOWERS: usize = 512;

/// How far the followers of one message were looked at.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Cursor {
    queue: u32,
    after: Option<RegId>,
}

/// What one commit writes: about a page of followers, of however many messages.
#[derive(Default)]
struct Swept {
    batch: Batch,
    events: HashMap<EndpointId, (Arc<Endpoint>, Vec<Event>)>,
    /// Followers that were looked at.
    looked: usize,
}

impl Swept {
    fn add(&mut self, endpoint: &Arc<Endpoint>, events: Vec<Event>, looked: usize) {
        self.looked += looked;
        if !events.is_empty() {
            let new = || (endpoint.clone(), Vec::new());
            self.events.entry(endpoint.id).or_insert_with(new).1.extend(events);
        }
    }
}

fn index_key(expires_ms: u64, id: &MessageId) -> Vec<u8> {
    [b"x", expires_ms.to_be_bytes().as_slice(), id.as_bytes()].concat()
}

/// Adds a message to the index.
pub(super) fn put(batch: &mut Batch, expires_ms: u64, id: &MessageId) {
    batch.put(Space::Callbacks, index_key(expires_ms, id), encode(&Cursor::default()));
}

/// Whether some message asks.
pub(super) fn is_any(router: &Router) -> Result<bool, Error> {
    Ok(!router.scan(Space::Callbacks, &Range::prefix(b"x"), 1)?.is_empty())
}

impl Service {
    /// Looks for expired messages once a second until it is aborted.
    pub async fn sweep_expired(self: Arc<Self>) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.has_receipts()
                && let Err(error) = self.sweep_due().await
            {
                tracing::warn!(%error, "cannot tell of expired messages");
            }
        }
    }

    /// Deals with every message whose time has passed.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; what is left is dealt with the next time.
    pub async fn sweep_due(&self) -> Result<(), Error> {
        loop {
            let due_ms = self.now_ms().saturating_sub(GRACE_MS);
            let to = [b"x", due_ms.to_be_bytes().as_slice()].concat();
            let range = Range { from: b"x".to_vec(), to: Some(to) };
            let due = self.router.scan(Space::Callbacks, &range, MESSAGES)?;
            if due.is_empty() {
                return Ok(());
            }
            let mut swept = Swept::default();
            for (key, cursor) in due {
                let id = key.get(9..).and_then(MessageId::from_slice);
                let cursor: Cursor = decode(&cursor).unwrap_or_default();
                let done = match id {
                    Some(id) => self.sweep_message(&key, &id, cursor, &mut swept).await,
                    None => Ok(()),
                };
                match done {
                    // One damaged record does not keep the others waiting.
                    Err(error) if error.is_damage() => {
                        tracing::error!(%error, "an expired message cannot be looked at");
                    }
                    done => done?,
                }
                swept.batch.remove(Space::Callbacks, key.as_ref());
            }
            self.commit_swept(&mut swept).await?;
        }
    }

    async fn sweep_message(
        &self,
        key: &[u8],
        id: &MessageId,
        mut cursor: Cursor,
        swept: &mut Swept,
    ) -> Result<(), Error> {
        let record = self.record_of(id)?;
        let wanted = record.and_then(|record| {
            if record.cancelled_ms.is_some() {
                return None;
            }
            let endpoint = record.asked.wants(EventKind::Expired)?;
            Some((self.receipts.log.known(&endpoint)?, record))
        });
        let Some((endpoint, record)) = wanted else { return Ok(()) };
        while let Some(queue) = record.queues.get(cursor.queue as usize) {
            let followers = self.followers_after(queue, cursor.after, FOLLOWERS)?;
            let mut events = Vec::new();
            for regid in &followers {
                if self.is_missed(id, &record, cursor.queue as usize, regid)? {
                    let at_ms = record.expires_ms.unwrap_or_default();
                    let kind = EventKind::Expired;
                    events.push(Event { kind, message: *id, regid: regid.to_string(), at_ms });
                }
            }
            cursor.after = followers.last().copied().filter(|_| followers.len() == FOLLOWERS);
            if cursor.after.is_none() {
                cursor.queue += 1;
            }
            swept.add(&endpoint, events, followers.len());
            if swept.looked >= FOLLOWERS {
                swept.batch.put(Space::Callbacks, key, encode(&cursor));
                self.commit_swept(swept).await?;
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn commit_swept(&self, swept: &mut Swept) -> Result<(), Error> {
        let Swept { batch, events, .. } = std::mem::take(swept);
        self.commit_events(batch, events.into_values().collect()).await
    }

    /// Whether a registration was to take the message from this queue and has not acknowledged it.
    fn is_missed(
        &self,
        id: &MessageId,
        record: &MessageRecord,
        at: usize,
        regid: &RegId,
    ) -> Result<bool, Error> {
        let Some(registration) = self.registration_named(regid)? else { return Ok(false) };
        let queue = &record.queues[at];
        let all = self.followings(&registration);
        let Some(at) = all.iter().position(|following| following.queue.name() == queue) else {
            return Ok(false);
        };
        let place = self.place(id, record, queue)?.filter(|place| place.seq > all[at].since.seq);
        let Some(place) = place else { return Ok(false) };
        if self.row(id, regid)?.is_some_and(|row| row.acked_ms.is_some()) {
            return Ok(false);
        }
        // What was recalled, collapsed or not meant for it did not expire.
        self.was_due(&all, at, place, record.expires_ms.unwrap_or(u64::MAX))
    }

    /// The registration of this name, whoever's it is.
    pub(super) fn registration_named(&self, regid: &RegId) -> Result<Option<Registration>, Error> {
        let Some(device) = self.device_of(regid)? else { return Ok(None) };
        Ok(self.registrations(&device)?.into_iter().find(|one| one.regid == *regid))
    }
}
