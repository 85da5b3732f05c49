//! Several messages in one call: each fares by itself, and those to one queue share commits.

use std::{sync::Arc, time::Instant};

use futures_util::future::{join, join_all};

use super::{
    Error, Service,
    append::append_with_record,
    receipts::Along,
    records::{CallRecord, Line, MessageRecord, call_key},
    send::{Call, Prepared, Send, Sent, messages_of},
};
use crate::{
    base::{
        ids::{AppId, Shard},
        tasks,
    },
    queue::{
        entry::{Body, Message},
        shard,
        store::{self, Batch, encode_about},
        txn::Txn,
    },
};

/// A message by its place in the call.
type Placed = (usize, Prepared);
/// A message's place in the call, and why it was not taken.
type Refused = (usize, Error);

impl Service {
    /// Sends messages. When this returns, each that was accepted is durable. Messages to one
    /// queue each keep the order of the call; one to several queues may come after them.
    /// At most 65,000 of them: an id names a message's place in the call.
    ///
    /// Gives a result for each, with the errors of [`Service::send`].
    pub async fn send_all(
        self: &Arc<Self>,
        app: &AppId,
        sends: Vec<Send>,
    ) -> Vec<Result<Sent, Error>> {
        self.send_all_with(app, sends, |_, _| Batch::default()).await
    }

    /// As [`Service::send_all`], with writes that are durable with each message and not without
    /// it, by its place in the call.
    pub(super) async fn send_all_with(
        self: &Arc<Self>,
        app: &AppId,
        sends: Vec<Send>,
        with: impl Fn(usize, &Sent) -> Batch + std::marker::Send,
    ) -> Vec<Result<Sent, Error>> {
        let (since, call) = (Instant::now(), Call::new(self, app));
        let (mut alone, mut several) = (Vec::new(), Vec::new());
        let mut alongs = Vec::new();
        let mut results: Vec<Result<Sent, Error>> = Vec::with_capacity(sends.len());
        let is_counted: Vec<bool> = sends.iter().map(|send| !send.is_dry_run).collect();
        for (at, send) in sends.into_iter().enumerate() {
            if !send.is_dry_run {
                self.metrics.queue.sends.of(send.target.kind()).increment(1);
            }
            // Places of a call are few: see above.
            results.push(self.prepare(&call, at as u16, send).map(|mut prepared| {
                let sent = prepared.sent.clone();
                if sent.is_dry_run {
                    return sent;
                }
                prepared.with.extend(with(at, &sent));
                alongs.extend(prepared.along.take().map(|along| (at, along)));
                let is_alone = prepared.record.queues.len() == 1 && !sent.is_scheduled;
                (if is_alone { &mut alone } else { &mut several }).push((at, prepared));
                sent
            }));
        }
        for (at, error) in self.write_all(alone, several, alongs).await {
            results[at] = Err(error);
        }
        let took = since.elapsed();
        for (result, _) in results.iter().zip(is_counted).filter(|(_, is_counted)| *is_counted) {
            self.note_send(app, result, took);
        }
        results
    }

    /// Makes messages durable. With callbacks, which hear of it, it goes on if the caller does
    /// not wait.
    async fn write_all(
        self: &Arc<Self>,
        alone: Vec<Placed>,
        several: Vec<Placed>,
        alongs: Vec<(usize, Along)>,
    ) -> Vec<Refused> {
        if alongs.is_empty() {
            return self.append_all(alone, several).await;
        }
        let places: Vec<usize> = alone.iter().chain(&several).map(|(at, _)| *at).collect();
        let this = self.clone();
        let written = tasks::spawn("sends", async move {
            let refused = this.append_all(alone, several).await;
            for (at, along) in alongs {
                if !refused.iter().any(|(of, _)| *of == at) {
                    along.became_durable(&this);
                }
            }
            refused
        });
        let stopped = |at| (at, shard::Error::Stopped.into());
        written.await.unwrap_or_else(|_| places.into_iter().map(stopped).collect())
    }

    async fn append_all(
        self: &Arc<Self>,
        alone: Vec<Placed>,
        several: Vec<Placed>,
    ) -> Vec<Refused> {
        let groups = self.router.by_owner(alone, |(_, one)| one.record.queues[0].id().shard());
        let alone = (0..).zip(groups);
        let alone = alone.map(|(owner, (shard, group))| self.append_group(owner, shard, group));
        let several = several
            .into_iter()
            .map(async |(at, one)| self.write(one).await.err().map(|error| (at, error)));
        let (alone, several) = join(join_all(alone), join_all(several)).await;
        alone.into_iter().flatten().chain(several.into_iter().flatten()).collect()
    }

    /// One change of the owner for all, and one record for those that ask for nothing.
    async fn append_group(&self, owner: u8, shard: Shard, group: Vec<Placed>) -> Vec<Refused> {
        let places: Vec<usize> = group.iter().map(|(at, _)| *at).collect();
        let change = move |txn: &mut Txn<'_>| {
            let (mut refused, mut call) = (Vec::new(), None);
            let count = group.len();
            for (at, Prepared { record, message, with, .. }) in group {
                let id = message.id;
                let appended = match record.is_plain() {
                    true => {
                        let (_, of) = call.get_or_insert_with(|| {
                            let (app, at_ms) = (record.app.clone(), record.at_ms);
                            (id, CallRecord { app, at_ms, lines: Vec::with_capacity(count) })
                        });
                        append_with_line(txn, record, message).map(|line| of.lines.extend(line))
                    }
                    false => append_with_record(txn, record, message),
                };
                match appended {
                    Ok(()) => txn.put_all(with),
                    // One damaged queue does not keep the others from theirs.
                    Err(error @ store::Error::Damaged(_)) => refused.push((at, error.into())),
                    Err(error) => return Err(Error::from(error)),
                }
            }
            if let Some((id, of)) = call {
                let record = encode_about(&of, of.lines.len() * LINE_BYTES);
                txn.put_unread(messages_of(&id), call_key(&id, owner), record);
            }
            Ok(refused)
        };
        match self.router.run(shard, change).await {
            Ok(refused) => refused,
            Err(error) => places.into_iter().map(|at| (at, error.clone())).collect(),
        }
    }
}

/// Appends a message that is plain to its one queue. Gives its line in the record of its call.
fn append_with_line(
    txn: &mut Txn<'_>,
    record: MessageRecord,
    message: Message,
) -> Result<Option<Line>, store::Error> {
    let (call_place, expires_ms) = (message.id.place(), record.expires_ms);
    let Some(queue) = record.queues.into_iter().next() else { return Ok(None) };
    let place = txn.append(queue.id(), Body::Message(message))?;
    Ok(Some(Line { call_place, expires_ms, queue, place }))
}

/// About what a line takes.
const LINE_BYTES: usize = 40;
