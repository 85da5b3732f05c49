//! Sending: from a request that cannot be wrong to a message that may be appended.
//!
//! When a send is answered, its message is durable: see `append`.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;

use super::{
    Error, Service,
    receipts::{Along, Events},
    records::MessageRecord,
    resolve::Resolved,
    spread,
};
use crate::{
    base::{
        clock::{DAY_MS, day_of},
        ids::{AppId, MessageId, random_bytes},
        metrics::TargetKind,
    },
    queue::{
        entry::{Audience, Message, Notification, Priority},
        filter::Filter,
        store::{self, Batch, Space},
    },
};

/// All texts of a notification; with the largest payload it still fits one frame.
const NOTIFICATION_BYTES_MAX: usize = 4 << 10;
/// Bytes of a collapse key.
const COLLAPSE_KEY_BYTES_MAX: usize = 64;

/// What an app server sends.
#[derive(Clone, Debug)]
pub struct Send {
    /// To whom.
    pub target: Target,
    /// As sent: compact JSON, or bytes.
    pub payload: Bytes,
    /// What the device may show by itself.
    pub notification: Option<Notification>,
    /// How long it lives; `None` takes the default.
    pub ttl_s: Option<u64>,
    /// How urgent it is; `None` takes what is usual for its target.
    pub priority: Option<Priority>,
    /// What the sender wants to be told.
    pub asks: Asks,
    /// When and how fast it goes out.
    pub timing: Timing,
    /// Whom of those that the target names it is for.
    pub filter: Option<Filter>,
    /// A newer message with the same key to the same queue takes its place.
    pub collapse_key: Option<String>,
    /// It is only checked: nothing is stored, counted or delivered.
    pub is_dry_run: bool,
}

impl Send {
    /// A message without any option.
    pub fn new(target: Target, payload: impl Into<Bytes>) -> Self {
        Self {
            target,
            payload: payload.into(),
            notification: None,
            ttl_s: None,
            priority: None,
            asks: Asks::default(),
            timing: Timing::default(),
            filter: None,
            collapse_key: None,
            is_dry_run: false,
        }
    }
}

/// What the sender of a message wants to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asks {
    /// Its traces show when it was pushed, acknowledged and opened.
    pub receipts: bool,
    /// Events are posted to the app server.
    pub callback: Option<Callback>,
}

/// Where events are posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// As stated.
    pub url: String,
    /// Which ones.
    pub events: Events,
}

/// When and how fast a message goes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Not before this, in milliseconds since 1970; `None` is now.
    pub send_at_ms: Option<u64>,
    /// To so many followers a second; topics and everybody only.
    pub max_rate_per_s: Option<u32>,
}

/// To whom a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Registrations, as stated.
    Regids(Vec<String>),
    /// Aliases, as stated.
    Aliases(Vec<String>),
    /// Everybody who follows a topic.
    Topic(String),
    /// Everybody who follows topics as a condition says.
    Condition(String),
    /// Every registration of the app.
    All,
}

impl Target {
    /// Its kind.
    pub fn kind(&self) -> TargetKind {
        match self {
            Self::Regids(_) => TargetKind::Regids,
            Self::Aliases(_) => TargetKind::Aliases,
            Self::Topic(_) => TargetKind::Topic,
            Self::Condition(_) => TargetKind::Condition,
            Self::All => TargetKind::All,
        }
    }
}

/// An accepted, durable message.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its id.
    pub id: MessageId,
    /// The kind of its target.
    pub kind: TargetKind,
    /// regIDs: how many are valid. Others: how many registrations follow now.
    pub matched: usize,
    /// regIDs of the request that are not registrations of this app, as stated.
    pub invalid: Vec<String>,
    /// It waits for its time.
    pub is_scheduled: bool,
    /// It was only checked: its id means nothing.
    pub is_dry_run: bool,
}

/// A message that may be appended.
pub(super) struct Prepared {
    pub(super) record: MessageRecord,
    pub(super) message: Message,
    /// What becomes durable with it, if it asks.
    pub(super) with: store::Batch,
    /// To be told when that is durable.
    pub(super) along: Option<Along>,
    pub(super) max_rate_per_s: Option<u32>,
    /// What is answered once it is durable.
    pub(super) sent: Sent,
}

/// What the messages of one call have in common.
pub(super) struct Call<'a> {
    app: &'a AppId,
    now_ms: u64,
    /// The oldest time that an id may name: its day must be one that is held.
    oldest_ms: u64,
    random: [u8; 7],
}

impl<'a> Call<'a> {
    pub(super) fn new(service: &Service, app: &'a AppId) -> Self {
        let oldest_ms = u64::from(service.router.oldest_day()) * DAY_MS;
        Self { app, now_ms: service.now_ms(), oldest_ms, random: random_bytes() }
    }

    /// The id of the message with this place in the call.
    fn id(&self, at_ms: u64, place: u16) -> MessageId {
        MessageId::of_call(at_ms.max(self.oldest_ms), &self.random, place)
    }
}

impl Service {
    /// Sends a message. When this returns it is durable.
    ///
    /// # Errors
    /// [`Error::Invalid`] (payload, ttl, names, no target), [`Error::NotFound`] if none of the
    /// regIDs is the app's, [`Error::Limit`], [`Error::Unavailable`].
    pub async fn send(self: &Arc<Self>, app: &AppId, send: Send) -> Result<Sent, Error> {
        self.send_with(app, send, |_| Batch::default()).await
    }

    /// As [`Service::send`], with writes that are durable with the message and not without it.
    pub(super) async fn send_with(
        self: &Arc<Self>,
        app: &AppId,
        send: Send,
        with: impl FnOnce(&Sent) -> Batch + std::marker::Send,
    ) -> Result<Sent, Error> {
        if send.is_dry_run {
            return self.prepare(&Call::new(self, app), 0, send).map(|prepared| prepared.sent);
        }
        let (since, kind) = (Instant::now(), send.target.kind());
        self.metrics.queue.sends.of(kind).increment(1);
        let sent = self.send_checked(app, send, with).await;
        self.note_send(app, &sent, since.elapsed());
        sent
    }

    async fn send_checked(
        self: &Arc<Self>,
        app: &AppId,
        send: Send,
        with: impl FnOnce(&Sent) -> Batch,
    ) -> Result<Sent, Error> {
        let mut prepared = self.prepare(&Call::new(self, app), 0, send)?;
        prepared.with.extend(with(&prepared.sent));
        let (sent, along) = (prepared.sent.clone(), prepared.along.take());
        match along {
            None => self.write(prepared).await?,
            Some(along) => self.write_along(prepared, along).await?,
        }
        Ok(sent)
    }

    pub(super) fn prepare(
        &self,
        call: &Call<'_>,
        place: u16,
        send: Send,
    ) -> Result<Prepared, Error> {
        let Call { app, now_ms, .. } = *call;
        self.allow(app, &send.target)?;
        let kind = send.target.kind();
        let ttl_s = self.check(app, &send)?;
        let due_ms = send.timing.due_ms(now_ms)?;
        let Resolved { queues, matched, invalid, condition } = self.resolve(app, &send)?;
        let from_ms = due_ms.unwrap_or(now_ms);
        let id = call.id(from_ms, place);
        let expires_ms = Some(from_ms + ttl_s * 1_000);
        let max_rate_per_s = send.timing.max_rate_per_s;
        let spread_ms = spread::checked(kind, matched, max_rate_per_s, ttl_s)?;
        let (asked, with, along) = self.ask(app, &send, (id, expires_ms), &invalid)?;
        let filter = send.filter.filter(|filter| !filter.is_empty());
        let audience = Audience { condition, filter };
        let audience = (audience != Audience::default()).then(|| Box::new(audience));
        let wants_receipt = asked.wants_rows();
        let record = MessageRecord {
            app: app.clone(),
            at_ms: now_ms,
            expires_ms,
            queues,
            place: None,
            audience: audience.clone(),
            asked,
            due_ms,
            cancelled_ms: None,
        };
        if !send.is_dry_run {
            self.count(app, &send.target)?;
        }
        let message = Message {
            notification: send.notification,
            expires_ms,
            is_shared: record.is_shared(),
            priority: send.priority.unwrap_or(usual_priority(kind)),
            wants_receipt,
            spread_ms,
            audience,
            collapse_key: send.collapse_key.map(String::into_boxed_str),
            ..Message::new(id, send.payload)
        };
        let (is_scheduled, is_dry_run) = (due_ms.is_some(), send.is_dry_run);
        let sent = Sent { id, kind, matched, invalid, is_scheduled, is_dry_run };
        Ok(Prepared { record, message, max_rate_per_s, with, along, sent })
    }

    fn check(&self, app: &AppId, send: &Send) -> Result<u64, Error> {
        let max = self.limits.load().payload_bytes_max_of(app.as_str());
        if send.payload.len() > max {
            let rule = format!("at most {max} bytes");
            return Err(Error::Invalid { field: "payload", rule });
        }
        let notification = send.notification.iter();
        let texts = notification.flat_map(|n| [&n.title, &n.body, &n.extra]).flatten();
        if texts.map(String::len).sum::<usize>() > NOTIFICATION_BYTES_MAX {
            let rule = format!("at most {NOTIFICATION_BYTES_MAX} bytes in all");
            return Err(Error::Invalid { field: "notification", rule });
        }
        check_collapse_key(send.collapse_key.as_deref())?;
        let max = u64::from(self.retention_days) * 86_400;
        match send.ttl_s {
            None => Ok(self.limits.load().ttl_default_s),
            Some(ttl_s) if (1..=max).contains(&ttl_s) => Ok(ttl_s),
            Some(_) => {
                let rule = format!("1 to {max} seconds, the retention of this gateway");
                Err(Error::Invalid { field: "ttl_s", rule })
            }
        }
    }
}

/// A message to many waits for those to few.
fn usual_priority(kind: TargetKind) -> Priority {
    match kind {
        TargetKind::Regids | TargetKind::Aliases => Priority::Normal,
        TargetKind::Topic | TargetKind::Condition | TargetKind::All => Priority::Low,
    }
}

fn check_collapse_key(key: Option<&str>) -> Result<(), Error> {
    let is_good = |key: &str| (1..=COLLAPSE_KEY_BYTES_MAX).contains(&key.len());
    if key.is_none_or(is_good) {
        return Ok(());
    }
    let rule = format!("1 to {COLLAPSE_KEY_BYTES_MAX} bytes");
    Err(Error::Invalid { field: "collapse_key", rule })
}

/// Where a message's records are: with the day of its id.
pub(super) fn messages_of(id: &MessageId) -> Space {
    Space::Messages(day_of(id.unix_ms()))
}
