//! Messages that are sent later: durable when accepted, appended when due.
//!
//! A scheduled message is one record under its id, and its id begins with its time, so the
//! order of the records is the order of time. All that happens to it is decided by the owner of
//! its id, so that it is either cancelled or sent. When due it becomes a pending message in the
//! batch that ends its record; from there on it is completed like any other, also after a crash.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use futures_util::future::join_all;
use serde::Serialize;
use tokio::sync::Notify;

use super::{
    Error, Service,
    append::Gone,
    records::{MessageRecord, PendingMessage, ScheduledMessage},
    send::{Prepared, Timing, messages_of},
    spread,
};
use crate::{
    base::{
        clock::{Clock, DAY_MS, day_of},
        ids::{AppId, MessageId},
        metrics::timing::ScheduledEnd,
        tasks,
    },
    crash_point,
    queue::{
        shard,
        store::{self, Range, Space, decode, encode},
        txn::Txn,
    },
};

/// How far ahead a message may be scheduled.
const AHEAD_MAX_MS: u64 = 30 * DAY_MS;
/// Messages that become due in one change of an owner, and records of one scan.
const PAGE: usize = 256;
/// How often the clock is looked at while something waits: it may be set.
const LOOK_EVERY: Duration = Duration::from_secs(1);

const NO_MESSAGE: Error = Error::NotFound { what: "message" };

/// What is known in memory of the messages that wait.
pub struct Schedule {
    /// Nothing that the store holds is due before, in milliseconds since 1970.
    earliest_ms: AtomicU64,
    /// The above was moved forward.
    is_earlier: Notify,
    /// How many wait, for each app that has some.
    counts: DashMap<AppId, usize>,
}

/// A message that waits, as its app sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Its id.
    pub id: String,
    /// When it is sent, in milliseconds since 1970.
    pub due_ms: u64,
    /// When it was accepted.
    pub accepted_ms: u64,
    /// When it expires.
    pub expires_ms: Option<u64>,
    /// How many queues it goes to.
    pub queues: usize,
    /// The size of its payload.
    pub payload_bytes: usize,
}

/// What became of a request to take a message back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It was not due yet and will not be sent.
    Yes,
    /// It was or is being sent.
    TooLate,
}

impl Default for Schedule {
    fn default() -> Self {
        let earliest_ms = AtomicU64::new(u64::MAX);
        Self { earliest_ms, is_earlier: Notify::new(), counts: DashMap::new() }
    }
}

impl Schedule {
    /// Something is due then, and it is durable.
    fn expect(&self, due_ms: u64) {
        if due_ms < self.earliest_ms.fetch_min(due_ms, Ordering::AcqRel) {
            self.is_earlier.notify_one();
        }
    }

    /// Waits until something may be due.
    async fn wait(&self, clock: &Clock) {
        loop {
            let (earliest_ms, now_ms) = (self.earliest_ms.load(Ordering::Acquire), clock.unix_ms());
            if earliest_ms <= now_ms {
                return;
            }
            if earliest_ms == u64::MAX {
                self.is_earlier.notified().await;
                continue;
            }
            let ahead = Duration::from_millis(earliest_ms - now_ms).min(LOOK_EVERY);
            tokio::select! {
                () = self.is_earlier.notified() => {}
                () = tokio::time::sleep(ahead) => {}
            }
        }
    }

    fn add(&self, app: &AppId, max: usize) -> Result<(), Error> {
        let mut count = self.counts.entry(app.clone()).or_insert(0);
        if *count >= max {
            return Err(Error::Limit { what: "scheduled messages of an app", max });
        }
        *count += 1;
        Ok(())
    }

    fn remove(&self, app: &AppId) {
        if let Some(mut count) = self.counts.get_mut(app) {
            *count = count.saturating_sub(1);
        }
        self.counts.remove_if(app, |_, count| *count == 0);
    }
}

impl Timing {
    /// When a message is due, unless that is now.
    pub(super) fn due_ms(self, now_ms: u64) -> Result<Option<u64>, Error> {
        match self.send_at_ms {
            Some(at_ms) if at_ms <= now_ms || at_ms > now_ms + AHEAD_MAX_MS => {
                let rule = "a time in the future, at most 30 days ahead".to_owned();
                Err(Error::Invalid { field: "send_at", rule })
            }
            due_ms => Ok(due_ms),
        }
    }
}

impl Service {
    /// Makes a message durable that waits for its time. Goes on if the caller does not wait.
    pub(super) async fn schedule(self: &Arc<Self>, prepared: Prepared) -> Result<(), Error> {
        let this = self.clone();
        let kept = tasks::spawn("schedule", async move { this.keep_scheduled(prepared).await });
        kept.await.unwrap_or_else(|_| Err(shard::Error::Stopped.into()))
    }

    async fn keep_scheduled(&self, prepared: Prepared) -> Result<(), Error> {
        let Prepared { record, message, max_rate_per_s, with, .. } = prepared;
        let (id, app) = (message.id, record.app.clone());
        self.schedule.add(&app, self.limits.load().scheduled_per_app)?;
        let stored = encode(&ScheduledMessage { record, message, max_rate_per_s });
        let of_app = app_key(&app, &id);
        let kept = self.router.run(id.shard(), move |txn| {
            txn.put(Space::Scheduled, message_key(&id), stored);
            txn.put(Space::Scheduled, of_app, Vec::new());
            txn.put_all(with);
            Ok::<_, Error>(())
        });
        if let Err(error) = kept.await {
            self.schedule.remove(&app);
            return Err(error);
        }
        crash_point!("schedule::after_accept");
        self.metrics.timing.scheduled.increment(1);
        self.metrics.timing.scheduled_pending.increment(1.0);
        self.schedule.expect(id.unix_ms());
        Ok(())
    }

    /// A page of an app's messages that wait, by their times, behind the id `after`, and the id
    /// behind which there are more.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `after` is no id, [`Error::Unavailable`].
    pub fn scheduled(
        &self,
        app: &AppId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Waiting>, Option<MessageId>), Error> {
        let prefix = app_prefix(app);
        let from = match after.map(str::parse::<MessageId>).transpose() {
            Ok(None) => prefix.clone(),
            Ok(Some(id)) => [&app_key(app, &id)[..], &[0]].concat(),
            Err(error) => return Err(Error::Invalid { field: "after", rule: error.rule.into() }),
        };
        let range = Range::prefix_after(&prefix, from);
        let keys = self.router.scan(Space::Scheduled, &range, limit + 1)?;
        let (mut waiting, mut last) = (Vec::with_capacity(keys.len()), None);
        for (key, _) in keys.iter().take(limit) {
            let Some(id) = key.get(prefix.len()..).and_then(MessageId::from_slice) else {
                continue;
            };
            last = Some(id);
            // One that was sent in between is no longer there.
            if let Some(one) = self.scheduled_message(&id)? {
                waiting.push(view(&id, &one));
            }
        }
        Ok((waiting, last.filter(|_| keys.len() > limit)))
    }

    /// The record of a message that waits.
    pub(super) fn scheduled_record(&self, id: &MessageId) -> Result<Option<MessageRecord>, Error> {
        Ok(self.scheduled_message(id)?.map(|one| one.record))
    }

    fn scheduled_message(&self, id: &MessageId) -> Result<Option<ScheduledMessage>, Error> {
        let stored = self.router.get(Space::Scheduled, &message_key(id))?;
        Ok(stored.map(|bytes| decode(&bytes)).transpose()?)
    }

    /// Takes a message back that is not due yet; durable when this returns. Twice is once.
    ///
    /// # Errors
    /// [`Error::NotFound`] (also for another app's), [`Error::Unavailable`].
    pub async fn cancel(&self, app: &AppId, id: &str) -> Result<Cancelled, Error> {
        let id: MessageId = id.parse().map_err(|_| NO_MESSAGE)?;
        let (asking, now_ms) = (app.clone(), self.now_ms());
        let change = move |txn: &mut Txn<'_>| {
            let space = messages_of(&id);
            let Some(bytes) = txn.get(Space::Scheduled, &message_key(&id))? else {
                return Ok(false);
            };
            let ScheduledMessage { mut record, .. } = decode(&bytes)?;
            if record.app != asking {
                return Err(NO_MESSAGE);
            }
            forget(txn, &record.app, &id);
            record.cancelled_ms = Some(now_ms);
            txn.put(space, id.as_bytes(), encode(&record));
            Ok(true)
        };
        if self.router.run(id.shard(), change).await? {
            self.scheduled_ended(app, ScheduledEnd::Cancelled);
            return Ok(Cancelled::Yes);
        }
        // What moved it on is durable since the answer.
        let record = self.record_of(&id)?.filter(|record| record.app == *app);
        let record = record.ok_or(NO_MESSAGE)?;
        Ok(if record.cancelled_ms.is_some() { Cancelled::Yes } else { Cancelled::TooLate })
    }

    fn scheduled_ended(&self, app: &AppId, how: ScheduledEnd) {
        self.schedule.remove(app);
        self.metrics.timing.scheduled_ended.of(how).increment(1);
        self.metrics.timing.scheduled_pending.decrement(1.0);
    }

    /// Counts what waits and looks when the first is due. Before the doors open.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn load_schedule(&self) -> Result<(), Error> {
        let mut from = vec![OF_APP];
        let mut pending = 0;
        loop {
            let range = Range::prefix_after(&[OF_APP], from);
            let page = self.router.scan(Space::Scheduled, &range, 16 * PAGE)?;
            let Some((last, _)) = page.last() else { break };
            from = [last.as_ref(), &[0]].concat();
            pending += page.len();
            let app = |key: &[u8]| {
                let text = key.get(1..)?.split(|byte| *byte == 0).next()?;
                std::str::from_utf8(text).ok()?.parse::<AppId>().ok()
            };
            for app in page.iter().filter_map(|(key, _)| app(key)) {
                *self.schedule.counts.entry(app).or_insert(0) += 1;
            }
        }
        self.metrics.timing.scheduled_pending.set(pending as f64);
        self.expect_next(0)
    }

    /// The first message that is due at or behind a time is waited for.
    fn expect_next(&self, from_ms: u64) -> Result<(), Error> {
        let range = Range::prefix_after(&[MESSAGE], time_key(from_ms));
        let next = self.router.scan(Space::Scheduled, &range, 1)?;
        if let Some(id) = next.first().and_then(|(key, _)| MessageId::from_slice(key.get(1..)?)) {
            self.schedule.expect(id.unix_ms());
        }
        Ok(())
    }

    /// Sends what becomes due, until it is aborted. What it had in hand then is completed at
    /// the next start.
    pub async fn send_due_messages(self: Arc<Self>) {
        loop {
            self.schedule.wait(&self.clock).await;
            let from_ms = self.schedule.earliest_ms.swap(u64::MAX, Ordering::AcqRel);
            if let Err(error) = self.send_due_from(from_ms).await {
                tracing::warn!(%error, "scheduled messages wait, because they cannot be sent");
                self.schedule.expect(from_ms);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    async fn send_due_from(self: &Arc<Self>, from_ms: u64) -> Result<(), Error> {
        let now_ms = self.now_ms();
        let (mut from, to) = (time_key(from_ms), time_key(now_ms + 1));
        loop {
            let range = Range { from, to: Some(to.clone()) };
            let page = self.router.scan(Space::Scheduled, &range, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            from = [last.as_ref(), &[0]].concat();
            let mut due = Vec::with_capacity(page.len());
            for (_, bytes) in &page {
                match decode(bytes) {
                    Ok(one) => due.push(one),
                    // It must not keep the others from being sent.
                    Err(error) => tracing::error!(%error, "a scheduled message cannot be read"),
                }
            }
            self.send_page(due).await?;
        }
        self.expect_next(now_ms + 1)
    }

    async fn send_page(self: &Arc<Self>, mut due: Vec<ScheduledMessage>) -> Result<(), Error> {
        for one in &mut due {
            self.spread_again(one)?;
        }
        crash_point!("schedule::before_due");
        let oldest_day = self.router.oldest_day();
        let groups = self.router.by_owner(due, |one| one.message.id.shard());
        let changes = groups.into_iter().map(|(shard, group)| {
            self.router.run(shard, move |txn| {
                let ended = group.into_iter().map(|one| end_wait(txn, one, oldest_day));
                ended.collect::<Result<Vec<_>, _>>().map_err(Error::from)
            })
        });
        let ended: Result<Vec<_>, Error> = join_all(changes).await.into_iter().collect();
        let mut pending = Vec::new();
        for ended in ended?.into_iter().flatten() {
            match ended {
                Ended::Gone => {}
                Ended::TooOld(app) => self.scheduled_ended(&app, ScheduledEnd::Expired),
                Ended::Pending(app, message) => {
                    self.scheduled_ended(&app, ScheduledEnd::Due);
                    pending.push(message);
                }
            }
        }
        crash_point!("schedule::after_due");
        pending.sort_by_key(|one| one.message.id);
        let mut finishes = Vec::with_capacity(pending.len());
        for one in pending {
            let id = one.message.id;
            let appends = self.begin_appends(one).await;
            finishes.push(self.finish_appends(id, appends, Gone::Told));
        }
        join_all(finishes).await;
        Ok(())
    }

    /// Members are counted when a message is appended.
    fn spread_again(&self, one: &mut ScheduledMessage) -> Result<(), Error> {
        let Some(rate) = one.max_rate_per_s else { return Ok(()) };
        let mut members = 0;
        for queue in &one.record.queues {
            members += self.members(&queue.id())?;
        }
        let due_ms = one.message.id.unix_ms();
        let lives_ms = one.message.expires_ms.map_or(u64::MAX, |at| at.saturating_sub(due_ms));
        // Nobody can be told any more that it is too slow.
        one.message.spread_ms = spread::over_ms(members, rate).min(lives_ms);
        Ok(())
    }
}

/// What became of a message that was due.
enum Ended {
    /// It was cancelled.
    Gone,
    /// Its day is no longer held, and so it has expired.
    TooOld(AppId),
    /// Its appends are to be done.
    Pending(AppId, PendingMessage),
}

fn end_wait(
    txn: &mut Txn<'_>,
    one: ScheduledMessage,
    oldest_day: u32,
) -> Result<Ended, store::Error> {
    let ScheduledMessage { record, message, max_rate_per_s: _ } = one;
    let (id, app) = (message.id, record.app.clone());
    if txn.get(Space::Scheduled, &message_key(&id))?.is_none() {
        return Ok(Ended::Gone);
    }
    forget(txn, &app, &id);
    if day_of(id.unix_ms()) < oldest_day {
        return Ok(Ended::TooOld(app));
    }
    let pending = PendingMessage { message, queues: record.queues.clone() };
    txn.put(messages_of(&id), id.as_bytes(), encode(&record));
    txn.put(Space::Pending, id.as_bytes(), encode(&pending));
    Ok(Ended::Pending(app, pending))
}

fn forget(txn: &mut Txn<'_>, app: &AppId, id: &MessageId) {
    txn.remove(Space::Scheduled, message_key(id));
    txn.remove(Space::Scheduled, app_key(app, id));
}

fn view(id: &MessageId, one: &ScheduledMessage) -> Waiting {
    Waiting {
        id: id.to_string(),
        due_ms: id.unix_ms(),
        accepted_ms: one.record.at_ms,
        expires_ms: one.record.expires_ms,
        queues: one.record.queues.len(),
        payload_bytes: one.message.payload.len(),
    }
}

/// Keys of messages begin with this.
const MESSAGE: u8 = b'm';
/// Keys that say which messages are an app's begin with this.
const OF_APP: u8 = b'a';

fn message_key(id: &MessageId) -> Vec<u8> {
    [&[MESSAGE], id.as_bytes()].concat()
}

/// Where the messages that are due at a time begin.
fn time_key(due_ms: u64) -> Vec<u8> {
    // Ids begin with the lower six bytes of their time.
    [&[MESSAGE], &due_ms.to_be_bytes()[2..]].concat()
}

fn app_prefix(app: &AppId) -> Vec<u8> {
    // No app's name has a byte 0.
    [&[OF_APP], app.as_str().as_bytes(), &[0]].concat()
}

fn app_key(app: &AppId, id: &MessageId) -> Vec<u8> {
    [&app_prefix(app)[..], id.as_bytes()].concat()
}
