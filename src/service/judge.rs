//! What of a queue a registration is given: everything that is still due and meant for it.
//!
//! Judged when it is delivered, by what the registration follows and what its device says of
//! itself then. What is not given is skipped for good: the range that is delivered covers it.

use std::sync::Arc;

use super::{
    Error, Service,
    deliver::{Following, Take},
    records::{MessageRecord, place_key},
    send::messages_of,
};
use crate::{
    base::{
        ids::{AppId, MessageId, QueueName, RegId},
        metrics::Skip,
    },
    queue::{
        entry::{Audience, Body, Entry, Message, Recall},
        position::Position,
        store::decode,
    },
};

/// Entries of one look for what collapsed another.
const LOOK: Take = Take { entries: 256, bytes: usize::MAX };

/// What becomes of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is given.
    Deliver,
    /// Another queue that the registration follows brings it.
    Elsewhere,
    /// It is not given.
    Skip(Skip),
}

/// A message or its recall that may be in several queues.
#[derive(Clone, Copy)]
struct Shared<'a> {
    id: &'a MessageId,
    is_shared: bool,
    audience: Option<&'a Audience>,
    /// Who follows, if it may have had it in a queue that it left.
    left_by: Option<&'a RegId>,
}

impl Service {
    /// Judges an entry of `all[at]` for who follows `all`, its own queue first.
    pub(super) fn judge(
        &self,
        entry: &Entry,
        all: &[Following],
        at: usize,
        now_ms: u64,
    ) -> Result<Verdict, Error> {
        match &entry.body {
            Body::Message(message) if message.expires_ms.is_some_and(|at_ms| at_ms <= now_ms) => {
                Ok(Verdict::Skip(Skip::Expired))
            }
            Body::Message(message) if self.recalls.has(&message.id) => {
                Ok(Verdict::Skip(Skip::Recalled))
            }
            Body::Message(message) => {
                let meant = self.is_meant(self.as_shared(message, all), all, at)?;
                match meant {
                    Verdict::Deliver => self.not_collapsed(entry, &all[at], Skip::Collapsed),
                    Verdict::Elsewhere | Verdict::Skip(_) => Ok(meant),
                }
            }
            // Who could have got the message is told that it is taken back.
            Body::Recall(recall) if recall.seq.is_some_and(|seq| seq <= all[at].since.seq) => {
                Ok(Verdict::Elsewhere)
            }
            Body::Recall(recall) => {
                let Recall { id, is_shared, audience, .. } = recall;
                // Who had it and left is told by the next one.
                let audience = audience.as_deref();
                let recall = Shared { id, is_shared: *is_shared, audience, left_by: None };
                let meant = self.is_meant(recall, all, at)?;
                Ok(if meant == Verdict::Deliver { meant } else { Verdict::Elsewhere })
            }
            Body::Change(_) => self.not_collapsed(entry, &all[at], Skip::Coalesced),
            Body::Follow { .. } | Body::Unfollow { .. } => Ok(Verdict::Deliver),
        }
    }

    /// What becomes of the entry at `place` of `all[at]` for who follows `all` now, whatever the
    /// time. `None` if it is no longer held.
    pub(super) fn verdict_of(
        &self,
        all: &[Following],
        at: usize,
        place: Position,
    ) -> Result<Option<Verdict>, Error> {
        let entry = self.entry_at(&all[at], place)?;
        entry.map(|entry| self.judge(&entry, all, at, 0)).transpose()
    }

    /// Whether the message at `place` of `all[at]` was due to who follows `all` now until its time
    /// was over: what was taken back or collapsed after that had expired before.
    pub(super) fn was_due(
        &self,
        all: &[Following],
        at: usize,
        place: Position,
        over_ms: u64,
    ) -> Result<bool, Error> {
        let Some(entry) = self.entry_at(&all[at], place)? else { return Ok(true) };
        let Body::Message(message) = &entry.body else { return Ok(false) };
        if self.recalls.at_ms(&message.id).is_some_and(|at_ms| at_ms < over_ms) {
            return Ok(false);
        }
        let meant = self.is_meant(self.as_shared(message, all), all, at)?;
        Ok(meant == Verdict::Deliver && !self.was_collapsed(&entry, &all[at], over_ms)?)
    }

    fn entry_at(&self, of: &Following, place: Position) -> Result<Option<Arc<Entry>>, Error> {
        let take = Take { entries: 1, bytes: 0 };
        let read = self.router.read(&of.queue.id(), place.seq.prev(), take)?;
        Ok(read.into_iter().next().filter(|entry| entry.position == place))
    }

    /// Whether an entry was collapsed before a time. Only where it is now, others are read.
    fn was_collapsed(&self, entry: &Entry, of: &Following, over_ms: u64) -> Result<bool, Error> {
        let Some(key) = entry.body.collapse_key() else { return Ok(false) };
        let queue = of.queue.id();
        if !self.router.is_collapsed(&queue, &key, entry.position.seq)? {
            return Ok(false);
        }
        let mut after = entry.position.seq;
        loop {
            let newer = self.router.read(&queue, after, LOOK)?;
            let Some(last) = newer.last() else { return Ok(true) };
            after = last.position.seq;
            for one in newer {
                if one.at_ms >= over_ms {
                    return Ok(false);
                }
                if one.body.collapse_key().as_deref() == Some(&key[..]) {
                    return Ok(true);
                }
            }
        }
    }

    fn as_shared<'a>(&self, message: &'a Message, all: &'a [Following]) -> Shared<'a> {
        let left_by = match all[0].queue.name() {
            QueueName::Own(regid) if message.is_shared && self.has_left(regid) => Some(regid),
            QueueName::Own(_) | QueueName::Alias(..) | QueueName::Topic(..) | QueueName::All(_) => {
                None
            }
        };
        let (id, audience) = (&message.id, message.audience.as_deref());
        Shared { id, is_shared: message.is_shared, audience, left_by }
    }

    fn is_meant(&self, shared: Shared<'_>, all: &[Following], at: usize) -> Result<Verdict, Error> {
        let Shared { is_shared, audience, .. } = shared;
        let condition = audience.and_then(|audience| audience.condition.as_ref());
        if is_shared {
            let is_earlier = match (condition, all[at].queue.name()) {
                (Some(condition), QueueName::Topic(app, topic)) => {
                    let before = condition.unnegated().take_while(|one| *one != topic);
                    let queues = before.map(|one| QueueName::Topic(app.clone(), one.clone()));
                    self.is_brought_by(shared, queues, all)?
                }
                (Some(_) | None, _) => self.is_brought_earlier(shared, all, at)?,
            };
            if is_earlier {
                return Ok(Verdict::Elsewhere);
            }
        }
        if let Some(condition) = condition
            && let Some(app) = app_of(all[at].queue.name())
        {
            let follows = |topic: &_| {
                all.iter().any(|following| match following.queue.name() {
                    QueueName::Topic(of, name) => of == app && name == topic,
                    QueueName::Own(_) | QueueName::Alias(..) | QueueName::All(_) => false,
                })
            };
            if !condition.holds(follows) {
                return Ok(Verdict::Skip(Skip::Condition));
            }
        }
        if let Some(filter) = audience.and_then(|audience| audience.filter.as_ref())
            && let QueueName::Own(regid) = all[0].queue.name()
            && !self.is_matched(filter, regid)?
        {
            return Ok(Verdict::Skip(Skip::Filtered));
        }
        Ok(Verdict::Deliver)
    }

    fn not_collapsed(
        &self,
        entry: &Entry,
        of: &Following,
        otherwise: Skip,
    ) -> Result<Verdict, Error> {
        let Some(key) = entry.body.collapse_key() else {
            return Ok(Verdict::Deliver);
        };
        let is_collapsed = self.router.is_collapsed(&of.queue.id(), &key, entry.position.seq)?;
        Ok(if is_collapsed { Verdict::Skip(otherwise) } else { Verdict::Deliver })
    }

    /// Whether an earlier one of a message's queues brings it.
    fn is_brought_earlier(
        &self,
        shared: Shared<'_>,
        all: &[Following],
        at: usize,
    ) -> Result<bool, Error> {
        let id = shared.id;
        let Some(record) = self.router.get(messages_of(id), id.as_bytes())? else {
            return Ok(false);
        };
        let record: MessageRecord = decode(&record)?;
        let here = all[at].queue.name();
        let queues = record.queues.into_iter().take_while(|queue| queue != here);
        self.is_brought_by(shared, queues, all)
    }

    /// Whether one of these queues brings a message to who follows `all`, or has before it left.
    fn is_brought_by(
        &self,
        Shared { id, left_by, .. }: Shared<'_>,
        queues: impl Iterator<Item = QueueName>,
        all: &[Following],
    ) -> Result<bool, Error> {
        for queue in queues {
            let earlier = all.iter().find(|following| *following.queue.name() == queue);
            if earlier.is_none() && left_by.is_none() {
                continue;
            }
            let queue = earlier.map_or_else(|| queue.id(), |earlier| earlier.queue.id());
            let place = self.router.get(messages_of(id), &place_key(id, &queue))?;
            let place: Option<Position> = place.map(|bytes| decode(&bytes)).transpose()?;
            // Without a place the append is still to come, behind any `since`.
            let comes = |earlier: &Following| place.is_none_or(|at| at.seq > earlier.since.seq);
            let came = |regid: &RegId| place.is_some_and(|at| self.had(regid, &queue, at));
            if earlier.is_some_and(comes) || left_by.is_some_and(came) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn app_of(queue: &QueueName) -> Option<&AppId> {
    match queue {
        QueueName::Alias(app, _) | QueueName::Topic(app, _) | QueueName::All(app) => Some(app),
        QueueName::Own(_) => None,
    }
}
