//! Where a message is, told from positions: no write per delivery.

use serde::Serialize;

use super::{
    Error, Service,
    accept::AcceptView,
    bind::By,
    deliver::{Following, Take},
    judge::Verdict,
    receipts::Row,
    records::{MessageRecord, Registration, place_key},
    send::messages_of,
};
use crate::{
    base::{
        ids::{AppId, MessageId, QueueName, RegId},
        metrics::Skip,
    },
    queue::{
        filter::Attributes,
        position::{Position, Seq},
        store::{Range, decode},
    },
};

/// Followers whose pointers one answer looks at.
const FOLLOWERS_MAX: usize = 1_000;
/// Receipts that one answer counts.
const RECEIPTS_MAX: usize = 10_000;
const NO_MESSAGE: Error = Error::NotFound { what: "message" };

/// A message's state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MessageState {
    /// Its id.
    pub id: String,
    /// `scheduled` before its time or `cancelled`; `accepted` while appends are pending, then
    /// `queued`, at its time `expired`; `recalled`.
    pub state: &'static str,
    /// When it was accepted, in milliseconds since 1970.
    pub accepted_ms: u64,
    /// When it is or was due, if its sender scheduled it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_ms: Option<u64>,
    /// From when on it is not delivered.
    pub expires_ms: Option<u64>,
    /// How far it is.
    pub counts: Counts,
}

/// How far a message is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Queues that it was sent to.
    pub queues: usize,
    /// Of these, where it has its place.
    pub appended: usize,
    /// Registrations that follow these queues now and were looked at.
    pub followers: usize,
    /// Of these, whose pointer is at or past the message.
    pub passed: usize,
    /// More follow than were looked at.
    pub is_partial: bool,
    /// Of a message that asks: what its receipts say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipts: Option<ReceiptCounts>,
}

/// What the receipts of a message say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReceiptCounts {
    /// Registrations that acknowledged it.
    pub acked: usize,
    /// Registrations where somebody opened it.
    pub clicked: usize,
    /// There are more than were counted.
    pub is_partial: bool,
}

/// What happened to a message on its way to one registration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trace {
    /// The message.
    pub id: String,
    /// The registration.
    pub regid: String,
    /// In time order.
    pub milestones: Vec<Milestone>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Milestone {
    /// What.
    pub name: Step,
    /// When, in milliseconds since 1970, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// The queue, as `own`, `alias/NAME`, `topic/NAME`, `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// The place in it, `epoch:seq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

/// What can happen to a message on its way to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The gateway took it.
    Accepted,
    /// It waits for its time.
    Scheduled,
    /// Its time came.
    Due,
    /// Its sender took it back before its time.
    Cancelled,
    /// It has its place in a queue; durable within one commit.
    Durable,
    /// It waits: for its place, or for the device.
    Pending,
    /// It went out on a connection. Of messages that ask for receipts.
    Pushed,
    /// The device has handled it. Of messages that ask for receipts.
    Acked,
    /// Somebody opened it. Of messages that ask for receipts.
    Clicked,
    /// The registration's pointer is at or past it.
    Passed,
    /// Its time was over before the registration came to it.
    Expired,
    /// A newer message in its queue has its collapse key.
    Collapsed,
    /// Its filter does not match the registration's attributes, as they are now.
    Filtered,
    /// Its condition does not hold for what the registration follows now.
    Condition,
    /// Its sender took it back.
    Recalled,
    /// The registration ended before it had it.
    Invalid,
    /// The registration does not follow a queue that it was sent to, or did not then.
    NotFollowed,
}

/// A registration as its app sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RegistrationView {
    /// Its name.
    pub regid: String,
    /// Whether its device is connected.
    pub online: bool,
    /// Bound aliases.
    pub aliases: Vec<String>,
    /// Topics that it subscribes to.
    pub topics: Vec<String>,
    /// When it takes messages, if not always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept: Option<AcceptView>,
    /// What its device says of itself.
    pub attributes: AttributesView,
    /// How far it is in each queue that it follows.
    pub pointers: Vec<PointerView>,
}

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttributesView {
    #[serde(skip_serializing_if = "Option::is_none")]
    app_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locale: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
}

impl From<Attributes> for AttributesView {
    fn from(Attributes { app_version, locale, model, network }: Attributes) -> Self {
        Self { app_version, locale, model, network }
    }
}

/// How far a registration is in one queue.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PointerView {
    /// `own`, `alias/NAME`, `topic/NAME`, `all`.
    pub queue: String,
    /// Acknowledged up to, `epoch:seq`.
    pub acked: String,
    /// The queue's head, `epoch:seq`.
    pub head: String,
}

impl Service {
    /// A message's state and counts.
    ///
    /// # Errors
    /// [`Error::NotFound`] (also for another app's), [`Error::Unavailable`].
    pub fn message(&self, app: &AppId, id: &str) -> Result<MessageState, Error> {
        let (id, record, is_waiting) = self.message_record(app, id)?;
        let mut counts = Counts { queues: record.queues.len(), ..Counts::default() };
        for queue in &record.queues {
            let Some(place) = self.place(&id, &record, queue)? else {
                continue;
            };
            // The store shows an append before it is durable.
            if self.router.head(&queue.id())?.seq < place.seq {
                continue;
            }
            counts.appended += 1;
            let left = FOLLOWERS_MAX.saturating_sub(counts.followers);
            let mut followers = self.followers_after(queue, None, left + 1)?;
            counts.is_partial |= followers.len() > left;
            followers.truncate(left);
            for regid in followers {
                counts.followers += 1;
                let passed = self.positions(&regid)?.of(&queue.id());
                counts.passed += usize::from(passed.is_some_and(|at| at.seq >= place.seq));
            }
        }
        if record.asked.wants_rows() {
            counts.receipts = Some(self.receipt_counts(&id)?);
        }
        let is_expired = record.expires_ms.is_some_and(|at| at <= self.now_ms());
        let state = match (is_expired, counts.appended == counts.queues) {
            _ if record.cancelled_ms.is_some() => "cancelled",
            _ if self.recalls.has(&id) => "recalled",
            _ if is_waiting => "scheduled",
            (true, _) => "expired",
            (false, true) => "queued",
            (false, false) => "accepted",
        };
        Ok(MessageState {
            id: id.to_string(),
            state,
            accepted_ms: record.at_ms,
            due_ms: record.due_ms,
            expires_ms: record.expires_ms,
            counts,
        })
    }

    /// What happened to a message on its way to one registration.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub fn trace(&self, app: &AppId, id: &str, regid: &str) -> Result<Trace, Error> {
        let (id, record, is_waiting) = self.message_record(app, id)?;
        let mut milestones = vec![Milestone {
            name: Step::Accepted,
            at_ms: Some(record.at_ms),
            queue: None,
            position: None,
        }];
        milestones.extend(milestone_of_time(&record, is_waiting));
        if is_waiting || record.cancelled_ms.is_some() {
            self.registration_of(regid, By::App(app))?;
            return Ok(Trace { id: id.to_string(), regid: regid.to_owned(), milestones });
        }
        let registration = match self.registration_of(regid, By::App(app)) {
            Ok((_, registration)) => registration,
            Err(Error::NotFound { .. }) => {
                return self.trace_of_ended(app, (id, record), regid, milestones);
            }
            Err(error) => return Err(error),
        };
        let follows = self.followings(&registration);
        let concerned =
            |(_, follow): &(usize, &Following)| record.queues.contains(follow.queue.name());
        let mut is_followed = false;
        for (at, _) in follows.iter().enumerate().filter(concerned) {
            is_followed = true;
            milestones.extend(self.steps(&id, &record, &follows, at)?);
        }
        if let Some(at_ms) = self.recalls.at_ms(&id) {
            let at_ms = Some(at_ms);
            let name = Step::Recalled;
            milestones.push(Milestone { name, at_ms, queue: None, position: None });
        }
        if !is_followed {
            let name = Step::NotFollowed;
            milestones.push(Milestone { name, at_ms: None, queue: None, position: None });
        }
        Ok(Trace { id: id.to_string(), regid: regid.to_owned(), milestones })
    }

    /// What happened to a message in one of its queues that a registration follows.
    fn steps(
        &self,
        id: &MessageId,
        record: &MessageRecord,
        follows: &[Following],
        at: usize,
    ) -> Result<Vec<Milestone>, Error> {
        let follow = &follows[at];
        let QueueName::Own(regid) = follows[0].queue.name() else { return Ok(Vec::new()) };
        let milestone = |name, position: Option<Position>| Milestone {
            name,
            at_ms: None,
            queue: Some(follow.queue.name().to_string()),
            position: position.map(|at| at.to_string()),
        };
        let Some(place) = self.place(id, record, follow.queue.name())? else {
            return Ok(vec![milestone(Step::Pending, None)]);
        };
        let at_ms = self.placed_ms(follow, place)?;
        let mut milestones = vec![Milestone { at_ms, ..milestone(Step::Durable, Some(place)) }];
        let row = self.row(id, regid)?.unwrap_or_default();
        let is_over = record.expires_ms.filter(|at| *at <= self.now_ms());
        let pointer = self.stored_position(regid, follow)?;
        let passed = |step, at_ms| Milestone { at_ms, ..milestone(step, Some(pointer)) };
        if place.seq <= follow.since.seq {
            milestones.push(passed(Step::NotFollowed, None));
            return Ok(milestones);
        }
        milestones.extend(
            receipts(row).map(|(step, at)| Milestone { at_ms: Some(at), ..milestone(step, None) }),
        );
        let is_acked = row.acked_ms.is_some();
        let is_passed = pointer.seq >= place.seq;
        // Where receipts are kept, what was passed without one was skipped.
        let is_missed = !is_passed || (record.asked.wants_rows() && !is_acked);
        let skip = match self.verdict_of(follows, at, place)? {
            Some(Verdict::Skip(why)) if !is_acked => Some(why),
            Some(_) | None => None,
        };
        // What came after its time took nothing from it.
        let skip = match (skip, is_over) {
            (Some(Skip::Collapsed | Skip::Recalled), Some(over_ms))
                if self.was_due(follows, at, place, over_ms)? =>
            {
                None
            }
            (skip, _) => skip,
        };
        milestones.extend(match (is_missed, skip, is_over) {
            // These are final whether it was passed or not.
            (_, Some(Skip::Filtered), _) => Some(passed(Step::Filtered, None)),
            (_, Some(Skip::Condition), _) => Some(passed(Step::Condition, None)),
            (true, Some(Skip::Collapsed), _) => Some(passed(Step::Collapsed, None)),
            // It is said below.
            (true, Some(Skip::Recalled), _) => None,
            (true, _, Some(at)) => Some(passed(Step::Expired, Some(at))),
            (true, _, None) if !is_passed => Some(passed(Step::Pending, None)),
            (_, _, _) => Some(passed(Step::Passed, row.acked_ms)),
        });
        Ok(milestones)
    }

    /// Bindings, presence and pointers of a registration.
    ///
    /// # Errors
    /// [`Error::NotFound`] (also for another app's), [`Error::Unavailable`].
    pub fn registration(&self, app: &AppId, regid: &str) -> Result<RegistrationView, Error> {
        let (device, registration) = self.registration_of(regid, By::App(app))?;
        let pointer = |follow: &Following| {
            let acked = self.stored_position(&registration.regid, follow)?;
            let head = self.head(&follow.queue.id())?;
            let queue = follow.queue.name().to_string();
            Ok(PointerView { queue, acked: acked.to_string(), head: head.to_string() })
        };
        let pointers: Result<_, Error> =
            self.followings(&registration).iter().map(pointer).collect();
        Ok(RegistrationView {
            regid: regid.to_owned(),
            online: self.is_online(&device),
            aliases: names(&registration, |queue| matches!(queue, QueueName::Alias(..))),
            topics: names(&registration, |queue| matches!(queue, QueueName::Topic(..))),
            accept: registration.accept.as_ref().map(|accept| accept.view(self.now_ms())),
            pointers: pointers?,
            attributes: registration.attributes.into(),
        })
    }

    /// A message's record, and whether it waits for its time.
    pub(super) fn message_record(
        &self,
        app: &AppId,
        id: &str,
    ) -> Result<(MessageId, MessageRecord, bool), Error> {
        let id: MessageId = id.parse().map_err(|_| NO_MESSAGE)?;
        // Looked for in the order in which it moves.
        let waiting = self.scheduled_record(&id)?;
        let is_waiting = waiting.is_some();
        let record = match waiting {
            Some(record) => record,
            None => self.record_of(&id)?.ok_or(NO_MESSAGE)?,
        };
        if record.app != *app {
            return Err(NO_MESSAGE);
        }
        Ok((id, record, is_waiting))
    }

    /// What the receipts of a message say.
    fn receipt_counts(&self, id: &MessageId) -> Result<ReceiptCounts, Error> {
        let prefix = [id.as_bytes(), b"r"].concat();
        let (space, range) = (messages_of(id), Range::prefix(&prefix));
        let records = self.router.scan(space, &range, RECEIPTS_MAX + 1)?;
        let is_partial = records.len() > RECEIPTS_MAX;
        let mut counts = ReceiptCounts { is_partial, ..ReceiptCounts::default() };
        // A place is a byte shorter, and may begin with the same byte.
        let length = prefix.len() + size_of::<RegId>();
        let counted = records.iter().take(RECEIPTS_MAX).filter(|(key, _)| key.len() == length);
        for (_, bytes) in counted {
            let row: Row = decode(bytes)?;
            counts.acked += usize::from(row.acked_ms.is_some());
            counts.clicked += usize::from(row.clicked_ms.is_some());
        }
        Ok(counts)
    }

    /// When the message took its place in a queue, if the entry is still held.
    fn placed_ms(&self, follow: &Following, place: Position) -> Result<Option<u64>, Error> {
        let take = Take { entries: 1, bytes: 1 };
        let after = Seq(place.seq.0.saturating_sub(1));
        let entries = self.router.read(&follow.queue.id(), after, take)?;
        let entry = entries.first().filter(|entry| entry.position == place);
        Ok(entry.map(|entry| entry.at_ms))
    }

    pub(super) fn place(
        &self,
        id: &MessageId,
        record: &MessageRecord,
        queue: &QueueName,
    ) -> Result<Option<Position>, Error> {
        if record.place.is_some() {
            return Ok(record.place);
        }
        match self.router.get(messages_of(id), &place_key(id, &queue.id()))? {
            Some(bytes) => Ok(Some(decode(&bytes)?)),
            None => Ok(None),
        }
    }

    pub(super) fn followers_after(
        &self,
        queue: &QueueName,
        after: Option<RegId>,
        limit: usize,
    ) -> Result<Vec<RegId>, Error> {
        match queue {
            QueueName::Own(_) if after.is_some() => Ok(Vec::new()),
            QueueName::Own(regid) => match self.device_of(regid)? {
                Some(_) => Ok(vec![*regid]),
                None => Ok(Vec::new()),
            },
            QueueName::Alias(..) | QueueName::Topic(..) | QueueName::All(_) => {
                self.members_after(&queue.id(), after, limit)
            }
        }
    }
}

/// The milestones of a row, in time order.
pub(super) fn receipts(row: Row) -> impl Iterator<Item = (Step, u64)> {
    let Row { pushed_ms, acked_ms, clicked_ms } = row;
    [(Step::Pushed, pushed_ms), (Step::Acked, acked_ms), (Step::Clicked, clicked_ms)]
        .into_iter()
        .filter_map(|(step, at)| at.map(|at| (step, at)))
}

/// What a trace tells of a scheduled message's time.
fn milestone_of_time(record: &MessageRecord, is_waiting: bool) -> Option<Milestone> {
    let (name, at_ms) = match (record.cancelled_ms, record.due_ms?) {
        (Some(cancelled_ms), _) => (Step::Cancelled, cancelled_ms),
        (None, due_ms) if is_waiting => (Step::Scheduled, due_ms),
        (None, due_ms) => (Step::Due, due_ms),
    };
    Some(Milestone { name, at_ms: Some(at_ms), queue: None, position: None })
}

fn names(registration: &Registration, of_kind: fn(&QueueName) -> bool) -> Vec<String> {
    let queues = registration.follows.iter().map(|follow| &follow.queue);
    queues.filter(|queue| of_kind(queue)).map(|queue| queue.wire_name().to_owned()).collect()
}
