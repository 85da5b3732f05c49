//! From a message that may be appended to durable entries.
//!
//! A message to one queue is durable with its entry. A message to several is
//! durable with its record; the appends follow in the order of the sends, are
//! idempotent by (message, queue), and are completed after a crash.

use std::sync::Arc;

use futures_util::future::join_all;

use super::{
    Error, Service,
    receipts::Along,
    records::{MessageRecord, PendingMessage, place_key},
    send::{Prepared, messages_of},
};
use crate::{
    base::{
        ids::{MessageId, QueueId, QueueName},
        tasks,
    },
    crash_point,
    queue::{
        entry::{Body, Message},
        shard,
        store::{self, Range, Space, decode, encode},
        txn::Txn,
    },
};

/// Pending messages of one page when a node starts.
const PAGE: usize = 1_024;

/// Whether registrations that ended since a message was accepted are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// They are: it had waited.
    Told,
    /// It was accepted a moment ago.
    NotTold,
}

impl Service {
    /// Makes a message durable.
    pub(super) async fn write(self: &Arc<Self>, prepared: Prepared) -> Result<(), Error> {
        let Prepared { record, message, with, .. } = match prepared.sent.is_scheduled {
            true => return self.schedule(prepared).await,
            false => prepared,
        };
        match record.queues.as_slice() {
            [_] => self.append_one(record, message, with).await,
            _ => self.append_many(record, message, with).await,
        }
    }

    /// The same for one that has a callback, which hears of it. Goes on if the caller does not
    /// wait: what is in the log is known here.
    pub(super) async fn write_along(
        self: &Arc<Self>,
        prepared: Prepared,
        along: Along,
    ) -> Result<(), Error> {
        let this = self.clone();
        let written = tasks::spawn("send", async move {
            this.write(prepared).await?;
            along.became_durable(&this);
            Ok::<_, Error>(())
        });
        written.await.unwrap_or_else(|_| Err(shard::Error::Stopped.into()))
    }

    async fn append_one(
        &self,
        record: MessageRecord,
        message: Message,
        with: store::Batch,
    ) -> Result<(), Error> {
        let shard = record.queues[0].id().shard();
        let change = |txn: &mut Txn<'_>| {
            append_with_record(txn, record, message)?;
            txn.put_all(with);
            Ok::<_, Error>(())
        };
        self.router.run(shard, change).await
    }

    pub(super) async fn append_many(
        self: &Arc<Self>,
        record: MessageRecord,
        message: Message,
        with: store::Batch,
    ) -> Result<(), Error> {
        let in_flight = self.in_flight.clone().acquire_owned().await;
        let id = message.id;
        let pending = PendingMessage { message, queues: record.queues.clone() };
        let stored = encode(&pending);
        self.router
            .run(id.shard(), move |txn| {
                txn.put(messages_of(&id), id.as_bytes(), encode(&record));
                txn.put(Space::Pending, id.as_bytes(), stored);
                txn.put_all(with);
                Ok::<_, Error>(())
            })
            .await?;
        crash_point!("send::after_record");
        // The appends have their places in order when this send is answered.
        let appends = self.begin_appends(pending).await;
        let this = self.clone();
        tasks::spawn("appends", async move {
            this.finish_appends(id, appends, Gone::NotTold).await;
            drop(in_flight);
        });
        Ok(())
    }

    pub(super) async fn begin_appends(
        &self,
        pending: PendingMessage,
    ) -> Vec<shard::Begun<(), Error>> {
        let PendingMessage { message, queues } = pending;
        let mut appends = Vec::new();
        let queues = queues.iter().map(QueueName::id);
        for (shard, queues) in self.router.by_owner(queues, |queue| queue.shard()) {
            let message = message.clone();
            let change = move |txn: &mut Txn<'_>| {
                for queue in queues {
                    let (space, key) = (messages_of(&message.id), place_key(&message.id, &queue));
                    if txn.get(space, &key)?.is_some() {
                        continue;
                    }
                    append_at(txn, queue, Body::Message(message.clone()), (space, key))?;
                }
                Ok(())
            };
            appends.push(self.router.begin(shard, change).await);
        }
        appends
    }

    pub(super) async fn finish_appends(
        &self,
        id: MessageId,
        appends: Vec<shard::Begun<(), Error>>,
        gone: Gone,
    ) {
        let mut appended: Result<(), Error> = join_all(appends).await.into_iter().collect();
        if gone == Gone::Told && appended.is_ok() {
            appended = self.tell_of_gone(&id).await;
        }
        crash_point!("send::before_done");
        let done = match appended {
            Ok(()) => {
                let forget = move |txn: &mut Txn<'_>| {
                    txn.remove(Space::Pending, id.as_bytes());
                    Ok::<_, Error>(())
                };
                self.router.run(id.shard(), forget).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "a message's appends wait for the next start");
        }
    }

    /// Completes the appends that a crash left undone. Before the doors open.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn complete_pending(&self) -> Result<usize, Error> {
        let (mut completed, mut from) = (0, Vec::new());
        loop {
            let range = Range { from, to: None };
            let page = self.router.scan(Space::Pending, &range, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(completed) };
            from = [last.as_ref(), &[0]].concat();
            for (key, bytes) in page {
                match decode(&bytes) {
                    Ok(pending) => self.complete(key.to_vec(), pending).await?,
                    // It must not keep the node from starting.
                    Err(error) => tracing::error!(%error, "a pending message cannot be read"),
                }
                completed += 1;
            }
        }
    }

    async fn complete(&self, key: Vec<u8>, pending: PendingMessage) -> Result<(), Error> {
        let id = pending.message.id;
        for append in self.begin_appends(pending).await {
            append.await?;
        }
        self.tell_of_gone(&id).await?;
        let mut done = store::Batch::default();
        done.remove(Space::Pending, key);
        Ok(self.router.commit(done).await?)
    }
}

/// Appends a message to its one queue; its record goes with it.
pub(super) fn append_with_record(
    txn: &mut Txn<'_>,
    mut record: MessageRecord,
    message: Message,
) -> Result<(), store::Error> {
    let (id, space) = (message.id, messages_of(&message.id));
    record.place = Some(txn.append(record.queues[0].id(), Body::Message(message))?);
    txn.put_unread(space, id.as_bytes(), encode(&record));
    Ok(())
}

/// Appends to one of several queues, and notes the place there. One damaged queue does not keep
/// the others from theirs.
pub(super) fn append_at(
    txn: &mut Txn<'_>,
    queue: QueueId,
    body: Body,
    (space, key): (Space, Vec<u8>),
) -> Result<(), store::Error> {
    match txn.append(queue, body) {
        Ok(place) => txn.put(space, key, encode(&place)),
        Err(store::Error::Damaged(cause)) => {
            tracing::error!(%queue, cause, "cannot append to a damaged queue");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
