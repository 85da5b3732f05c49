//! Taking messages back: copies that are pending never arrive, and devices that may have the
//! message are told.
//!
//! A recall is durable with its record; then it is known to whoever delivers, and an entry that
//! says so is appended to each of the message's queues. A crash between the two is made good at
//! the next start, before the doors open.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::{
    Error, Service,
    append::append_at,
    records::{MessageRecord, place_key},
    send::messages_of,
    trace::MessageState,
};
use crate::{
    base::{
        clock::day_of,
        ids::{AppId, MessageId, QueueId, QueueName},
        tasks,
    },
    crash_point,
    queue::{
        entry::{Body, Recall},
        position::Position,
        shard,
        store::{Range, Space, decode, encode},
        txn::Txn,
    },
};

/// Recalls of the days that are held; each is known in memory, in about 50 bytes.
const RECALLS_MAX: usize = 262_144;
/// Records of one page when a node starts.
const PAGE: usize = 1_024;
/// Records of days that are no longer held which one recall removes.
const SWEPT: usize = 16;

/// A recall as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Recalled {
    /// When, in milliseconds since 1970.
    at_ms: u64,
    /// What is still to be appended where; nothing once that is done.
    pending: Option<Pending>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pending {
    queues: Vec<QueueName>,
    recall: Recall,
}

/// What was recalled and is still held. An empty one costs a look at a number.
#[derive(Default)]
pub struct Recalls {
    count: AtomicUsize,
    /// With when it was recalled.
    ids: RwLock<HashMap<MessageId, u64>>,
}

impl Recalls {
    /// Whether a message was recalled.
    pub fn has(&self, id: &MessageId) -> bool {
        self.at_ms(id).is_some()
    }

    /// When it was, in milliseconds since 1970.
    pub fn at_ms(&self, id: &MessageId) -> Option<u64> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.ids.read().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    fn insert(&self, id: MessageId, at_ms: u64) {
        let mut ids = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        ids.entry(id).or_insert(at_ms);
        self.count.store(ids.len(), Ordering::Release);
    }

    /// Forgets those of days that are no longer held.
    pub(super) fn sweep(&self, oldest_day: u32) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut ids = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        ids.retain(|id, _| day_of(id.unix_ms()) >= oldest_day);
        self.count.store(ids.len(), Ordering::Release);
    }

    fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }
}

impl Service {
    /// Takes a message back; when this returns that is durable, and no device gets the message
    /// that does not have it. Twice is once.
    ///
    /// # Errors
    /// [`Error::NotFound`] (also for another app's), [`Error::Limit`], [`Error::Unavailable`].
    pub async fn recall(self: &Arc<Self>, app: &AppId, id: &str) -> Result<MessageState, Error> {
        let (id, record, _) = self.message_record(app, id)?;
        if !self.recalls.has(&id) {
            self.recall_now(id, record).await?;
        }
        self.message(app, &id.to_string())
    }

    async fn recall_now(
        self: &Arc<Self>,
        id: MessageId,
        record: MessageRecord,
    ) -> Result<(), Error> {
        if self.recalls.len() >= RECALLS_MAX {
            let what = "recalled messages within the retention";
            return Err(Error::Limit { what, max: RECALLS_MAX });
        }
        let in_flight = self.in_flight.clone().acquire_owned().await;
        let pending = Pending {
            recall: Recall {
                id,
                seq: record.place.map(|place| place.seq),
                is_shared: record.is_shared(),
                audience: record.audience,
            },
            queues: record.queues,
        };
        let at_ms = self.now_ms();
        let stored = Recalled { at_ms, pending: Some(pending.clone()) };
        let old = self.old_recalls()?;
        let is_first = self
            .router
            .run(id.shard(), move |txn| {
                if txn.get(Space::Recalls, id.as_bytes())?.is_some() {
                    return Ok::<_, Error>(false);
                }
                txn.put(Space::Recalls, id.as_bytes(), encode(&stored));
                old.into_iter().for_each(|key| txn.remove(Space::Recalls, key));
                Ok(true)
            })
            .await?;
        // Only now: a crash must not undo what made a device pass the message.
        self.recalls.insert(id, at_ms);
        if !is_first {
            return Ok(());
        }
        crash_point!("recall::after_record");
        let appends = self.begin_recall(&pending).await;
        let this = self.clone();
        tasks::spawn("recall", async move {
            if let Err(error) = this.finish_recall(id, at_ms, appends).await {
                tracing::warn!(%error, "a recall's appends wait for the next start");
            }
            drop(in_flight);
        });
        Ok(())
    }

    async fn begin_recall(&self, pending: &Pending) -> Vec<shard::Begun<(), Error>> {
        let mut appends = Vec::new();
        let queues = pending.queues.iter().map(QueueName::id);
        for (shard, queues) in self.router.by_owner(queues, |queue| queue.shard()) {
            let recall = pending.recall.clone();
            let change = move |txn: &mut Txn<'_>| {
                let space = messages_of(&recall.id);
                for queue in queues {
                    let key = recall_key(&recall.id, &queue);
                    if txn.get(space, &key)?.is_some() {
                        continue;
                    }
                    let mut recall = recall.clone();
                    if let Some(place) = txn.get(space, &place_key(&recall.id, &queue))? {
                        recall.seq = Some(decode::<Position>(&place)?.seq);
                    }
                    append_at(txn, queue, Body::Recall(recall), (space, key))?;
                }
                Ok(())
            };
            appends.push(self.router.begin(shard, change).await);
        }
        appends
    }

    async fn finish_recall(
        &self,
        id: MessageId,
        at_ms: u64,
        appends: Vec<shard::Begun<(), Error>>,
    ) -> Result<(), Error> {
        join_all(appends).await.into_iter().collect::<Result<(), Error>>()?;
        let done = encode(&Recalled { at_ms, pending: None });
        let change = move |txn: &mut Txn<'_>| {
            txn.put(Space::Recalls, id.as_bytes(), done);
            Ok::<_, Error>(())
        };
        self.router.run(id.shard(), change).await
    }

    /// Learns what was recalled, and completes the appends that a crash left undone. Before the
    /// doors open, behind the appends of messages.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn load_recalls(&self) -> Result<usize, Error> {
        let (mut loaded, mut from) = (0, Vec::new());
        let oldest_day = self.router.oldest_day();
        loop {
            let page = self.router.scan(Space::Recalls, &Range { from, to: None }, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(loaded) };
            from = [last.as_ref(), &[0]].concat();
            for (key, bytes) in page {
                let (Some(id), Ok(recalled)) =
                    (MessageId::from_slice(&key), decode::<Recalled>(&bytes))
                else {
                    // It must not keep the node from starting.
                    tracing::error!("a recall cannot be read");
                    continue;
                };
                if day_of(id.unix_ms()) < oldest_day {
                    continue;
                }
                self.recalls.insert(id, recalled.at_ms);
                loaded += 1;
                if let Some(pending) = recalled.pending {
                    let appends = self.begin_recall(&pending).await;
                    self.finish_recall(id, recalled.at_ms, appends).await?;
                }
            }
        }
    }

    /// Some keys of recalls whose messages are no longer held; ids begin with their time.
    fn old_recalls(&self) -> Result<Vec<Vec<u8>>, Error> {
        let oldest_day = self.router.oldest_day();
        let oldest = self.router.scan(Space::Recalls, &Range::prefix(b""), SWEPT)?;
        let is_old = |key: &[u8]| {
            MessageId::from_slice(key).is_some_and(|id| day_of(id.unix_ms()) < oldest_day)
        };
        Ok(oldest.iter().map(|(key, _)| key.to_vec()).filter(|key| is_old(key)).collect())
    }
}

/// Key of a recall's place in one queue, beside that of the message's. Longer than the key of a receipt, with which it
/// shares its beginning where the queue's id begins with an `r`.
fn recall_key(message: &MessageId, queue: &QueueId) -> Vec<u8> {
    [message.as_bytes(), queue.as_bytes(), b"rc"].concat()
}
