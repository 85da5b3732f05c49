//! What became of messages that ask: receipts for traces, events for app servers.
//!
//! A device's acknowledgement of such a message leaves a note. The notes are written before
//! the pointers that cover them, a row for each message and registration, and with each row
//! the events that its sender wants, in the log of the endpoint (`log`), whose consumer
//! (`sender`) posts them. `sweep` tells of followers that a message did not reach in time.
//! Messages that do not ask cost nothing here.

pub mod log;
mod numbers;
mod rows;
mod sender;
pub mod signature;
mod sweep;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::log::{CallbackOf, Endpoint, Log};
use super::{
    Error, Service,
    deliver::{Following, Start, Take},
    judge::Verdict,
    records::{CallRecord, MessageRecord, Positions, call_prefix},
    send::{Send, messages_of},
};
use crate::{
    base::{
        clock::day_of,
        ids::{AppId, MessageId, RegId},
        webhook::{self, Reach},
    },
    config,
    queue::{
        entry::Body,
        store::{Batch, Range, decode},
    },
};

/// Notes that may wait to be written; those over it are dropped and counted.
const NOTES_MAX: usize = 1 << 20;
/// So many are written without waiting for the flush's period.
const NOTES_SOON: usize = 4_096;
/// Entries of one look for receipts that a crash took, and how many looks there are: what a
/// device can handle in the second that a crash takes.
const LATE: Take = Take { entries: 256, bytes: usize::MAX };
const LATE_PAGES: usize = 64;
/// Records of one commit.
const COMMIT_NOTES: usize = 1_024;
/// Owners that there can be, each with a record of its part of a call.
const OWNERS_MAX: usize = 64;
/// The longest stated regID that an event repeats, in bytes.
const STATED_BYTES_MAX: usize = 64;

/// Which events a sender wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events(u8);

/// What can be told to a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum EventKind {
    /// The device has handled the message.
    Acked = 1,
    /// Somebody opened it.
    Clicked = 2,
    /// It was not handled in time.
    Expired = 4,
    /// The send named a regID that is not registered, or is not any more when it would arrive.
    Invalid = 8,
}

impl EventKind {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Acked, Self::Clicked, Self::Expired, Self::Invalid];

    /// Its name in requests and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Clicked => "clicked",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
        }
    }
}

impl Events {
    /// With one more.
    #[must_use]
    pub fn with(self, kind: EventKind) -> Self {
        Self(self.0 | kind as u8)
    }

    /// Whether this one is wanted.
    pub fn has(self, kind: EventKind) -> bool {
        self.0 & kind as u8 != 0
    }

    /// Whether none is.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// One event as it waits in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// To which message.
    pub message: MessageId,
    /// For which registration; as stated if it is not registered.
    pub regid: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// What a message asks for, as its record keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Receipts for its trace.
    pub receipts: bool,
    /// Events for its sender.
    pub callback: Option<CallbackOf>,
}

impl Asked {
    /// Whether an acknowledgement leaves a row.
    pub fn wants_rows(&self) -> bool {
        const OF_ROWS: [EventKind; 3] = [EventKind::Acked, EventKind::Clicked, EventKind::Expired];
        let wants = |of: CallbackOf| OF_ROWS.into_iter().any(|kind| of.events.has(kind));
        self.receipts || self.callback.is_some_and(wants)
    }

    fn wants(&self, kind: EventKind) -> Option<log::EndpointId> {
        self.callback.filter(|of| of.events.has(kind)).map(|of| of.endpoint)
    }
}

/// The milestones of one message on its way to one registration, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// It went out on a connection.
    pub pushed_ms: Option<u64>,
    /// The device had handled it.
    pub acked_ms: Option<u64>,
    /// Somebody opened it.
    pub clicked_ms: Option<u64>,
}

/// Something to be written into a row.
#[derive(Clone, Copy, Debug)]
struct Note {
    message: MessageId,
    regid: RegId,
    at_ms: u64,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Acked { pushed_ms: Option<u64> },
    Clicked,
}

/// What waits to be written, and the log of events.
pub struct Receipts {
    notes: Mutex<Notes>,
    /// The newest take whose notes are durable.
    flushed: watch::Sender<u64>,
    /// Some message asked, so that a resuming device may owe a receipt.
    is_used: AtomicBool,
    pub(super) log: Log,
    reach: Reach,
}

impl Receipts {
    pub(super) fn new(config: &config::Callbacks) -> Self {
        let reach = if config.allow_private { Reach::Private } else { Reach::Public };
        Self {
            notes: Mutex::default(),
            flushed: watch::channel(0).0,
            is_used: AtomicBool::new(false),
            log: Log::new(config.clone()),
            reach,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().list.is_empty()
    }

    fn take(&self) -> Taken<'_> {
        let mut notes = self.lock();
        notes.takes += 1;
        let (list, take) = (std::mem::take(&mut notes.list), notes.takes);
        Taken { receipts: self, notes: list, take, done: 0 }
    }
}

#[derive(Default)]
struct Notes {
    list: Vec<Note>,
    /// How often the list was taken.
    takes: u64,
}

/// Notes in hand. Those that are not written when this is dropped wait again.
struct Taken<'a> {
    receipts: &'a Receipts,
    notes: Vec<Note>,
    take: u64,
    done: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.done < self.notes.len() {
            let mut left = self.notes.split_off(self.done);
            let mut notes = self.receipts.lock();
            left.append(&mut notes.list);
            notes.list = left;
        }
    }
}

/// What waits until a message that has a callback is durable. Dropped before, the message is
/// refused.
pub struct Along {
    // First: they hold the endpoint.
    events: Option<log::Appended>,
    used: log::Used,
}

impl Along {
    /// It is durable.
    pub(super) fn became_durable(self, service: &Service) {
        self.used.became_durable();
        if let Some(events) = self.events {
            service.receipts.log.became_durable(events, &service.metrics);
        }
    }
}

/// Key of a row, beside the message's places, which are a byte shorter.
pub fn row_key(message: &MessageId, regid: &RegId) -> Vec<u8> {
    [message.as_bytes(), b"r", regid.as_bytes()].concat()
}

impl Service {
    /// What a message asks for, and what is written along with it.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Limit`].
    pub(super) fn ask(
        &self,
        app: &AppId,
        send: &Send,
        (id, expires_ms): (MessageId, Option<u64>),
        invalid: &[String],
    ) -> Result<(Asked, Batch, Option<Along>), Error> {
        let asks = &send.asks;
        let mut asked = Asked { receipts: asks.receipts, callback: None };
        let (mut with, mut along) = (Batch::default(), None);
        if let Some(callback) = &asks.callback {
            let invalid_field = |field, rule: &str| Error::Invalid { field, rule: rule.to_owned() };
            webhook::check(&callback.url, self.receipts.reach)
                .map_err(|rule| invalid_field("callback.url", rule))?;
            if callback.events.is_empty() {
                return Err(invalid_field("callback.events", "at least one of them"));
            }
            if send.is_dry_run {
                return Ok((asked, with, along));
            }
            let now_ms = self.now_ms();
            let used = self.receipts.log.endpoint(app, &callback.url, id.unix_ms())?;
            asked.callback = Some(CallbackOf { endpoint: used.id(), events: callback.events });
            used.put(&mut with);
            let mut told = None;
            if callback.events.has(EventKind::Invalid) && !invalid.is_empty() {
                let event = |stated: &String| Event {
                    kind: EventKind::Invalid,
                    message: id,
                    regid: shortened(stated).to_owned(),
                    at_ms: now_ms,
                };
                let events = invalid.iter().map(event).collect();
                told = used.append(&self.receipts.log, events, &mut with, &self.metrics);
            }
            along = Some(Along { events: told, used });
        }
        if asked.wants_rows() && !send.is_dry_run {
            self.receipts.is_used.store(true, Ordering::Relaxed);
            sweep::put(&mut with, expires_ms.unwrap_or(u64::MAX), &id);
        }
        Ok((asked, with, along))
    }

    /// A device acknowledged a message that asks. Before the pointer moves over it.
    pub fn receipt(&self, message: MessageId, regid: RegId, pushed_ms: u64) {
        let what = What::Acked { pushed_ms: Some(pushed_ms) };
        self.note(Note { message, regid, at_ms: self.now_ms(), what });
    }

    /// Whether there may be receipts at all.
    fn has_receipts(&self) -> bool {
        self.receipts.is_used.load(Ordering::Relaxed)
    }

    /// A device stands further than its stored pointer: a crash took the pointer, or it
    /// acknowledges by stating where it is. What it has handled is counted now, and receipted.
    pub(super) fn make_up(
        &self,
        regid: &RegId,
        positions: &Positions,
        (all, at): (&[Following], usize),
        start: &Start,
    ) -> Result<(), Error> {
        let (of, queue) = (&all[at], all[at].queue.id());
        let stored = positions.of(&queue).map_or(of.since.seq, |at| at.seq.max(of.since.seq));
        if start.jump.is_some() || start.is_stored || start.after.seq <= stored {
            return Ok(());
        }
        let (now_ms, mut after, mut messages) = (self.now_ms(), stored, 0);
        for _ in 0..LATE_PAGES {
            let entries = self.router.read(&queue, after, LATE)?;
            let Some(last) = entries.last() else { break };
            after = last.position.seq;
            let handled = entries.iter().take_while(|entry| entry.position.seq <= start.after.seq);
            for entry in handled {
                let Body::Message(message) = &entry.body else { continue };
                if self.judge(entry, all, at, now_ms)? != Verdict::Deliver {
                    continue;
                }
                messages += 1;
                if message.wants_receipt {
                    let (message, what) = (message.id, What::Acked { pushed_ms: None });
                    self.note(Note { message, regid: *regid, at_ms: now_ms, what });
                }
            }
            if after >= start.after.seq {
                break;
            }
        }
        self.delivered(regid, all, at, messages);
        Ok(())
    }

    /// Gives the number of the take that will have the note.
    fn note(&self, note: Note) -> u64 {
        let mut notes = self.receipts.lock();
        let take = notes.takes + 1;
        if notes.list.len() >= NOTES_MAX {
            self.metrics.receipts.dropped.increment(1);
            return take;
        }
        notes.list.push(note);
        let is_many = notes.list.len() == NOTES_SOON;
        drop(notes);
        if is_many {
            self.flush_soon();
        }
        take
    }

    /// Somebody opened a message on a device. Durable when this returns. What does not
    /// ask for it, or is no longer held, is no error.
    ///
    /// # Errors
    /// [`Error::NotFound`] (no such registration on the device), [`Error::Invalid`] (no message
    /// id), [`Error::Unavailable`].
    pub async fn clicked(
        &self,
        regid: &str,
        message: &[u8],
        by: super::bind::By<'_>,
    ) -> Result<(), Error> {
        let (_, registration) = self.registration_of(regid, by)?;
        let message = MessageId::from_slice(message).ok_or_else(|| Error::Invalid {
            field: "event.message",
            rule: "the id of a message".to_owned(),
        })?;
        let asked = self.record_of(&message)?.filter(|record| record.app == registration.app);
        if !asked.is_some_and(|record| record.asked.wants_rows()) {
            return Ok(());
        }
        let mut flushes = self.receipts.flushed.subscribe();
        let (at_ms, what) = (self.now_ms(), What::Clicked);
        let take = self.note(Note { message, regid: registration.regid, at_ms, what });
        self.flush_soon();
        let stopped = |_| Error::Unavailable(crate::queue::shard::Error::Stopped);
        flushes.wait_for(|done| *done >= take).await.map_err(stopped)?;
        Ok(())
    }

    /// A message's own record, or what the record of its call says of it.
    pub(super) fn record_of(&self, id: &MessageId) -> Result<Option<MessageRecord>, Error> {
        if let Some(bytes) = self.router.get(messages_of(id), id.as_bytes())? {
            return Ok(Some(decode(&bytes)?));
        }
        let calls = Range::prefix(&call_prefix(id));
        for (_, bytes) in self.router.scan(messages_of(id), &calls, OWNERS_MAX)? {
            let call: CallRecord = decode(&bytes)?;
            if let Some(record) = call.record_of(id) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Who wants to hear of this kind of events of a message.
    pub(super) fn endpoint_of(
        &self,
        message: &MessageId,
        kind: EventKind,
    ) -> Result<Option<Arc<Endpoint>>, Error> {
        let asked = self.record_of(message)?.map(|record| record.asked).unwrap_or_default();
        Ok(asked.wants(kind).and_then(|endpoint| self.receipts.log.known(&endpoint)))
    }

    /// The milestones of a message for one registration.
    pub(super) fn row(&self, message: &MessageId, regid: &RegId) -> Result<Option<Row>, Error> {
        let bytes = self.router.get(messages_of(message), &row_key(message, regid))?;
        bytes.map(|bytes| Ok(decode(&bytes)?)).transpose()
    }

    /// Makes records and events durable, and wakes who waits for the events.
    pub(super) async fn commit_events(
        &self,
        mut batch: Batch,
        events: Vec<(Arc<Endpoint>, Vec<Event>)>,
    ) -> Result<(), Error> {
        let log = &self.receipts.log;
        let mut appended = Vec::new();
        for (endpoint, events) in events {
            appended.extend(log.append(&endpoint, events, &mut batch, &self.metrics));
        }
        if !batch.is_empty() {
            self.router.commit(batch).await?;
        }
        appended.into_iter().for_each(|one| log.became_durable(one, &self.metrics));
        Ok(())
    }

    /// Forgets endpoints that are out of use. For once in a while.
    pub(super) fn sweep_endpoints(&self) {
        self.receipts.log.sweep(day_of(self.now_ms()), self.retention_days + 1);
    }

    /// Reads what an earlier run left. Before the doors open, and before appends are completed: events may come of them.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn open_receipts(&self) -> Result<(), Error> {
        let today = day_of(self.now_ms());
        let pending = self.receipts.log.open(&self.router, today, self.retention_days + 1).await?;
        self.metrics.receipts.callbacks_pending.set(pending as f64);
        let is_used = sweep::is_any(&self.router)?;
        self.receipts.is_used.store(is_used, Ordering::Relaxed);
        Ok(())
    }
}

/// The beginning of a text, cut between characters.
fn shortened(text: &str) -> &str {
    let end = text.floor_char_boundary(STATED_BYTES_MAX);
    &text[..end]
}
