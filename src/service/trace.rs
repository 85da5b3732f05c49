//! Where a message is, told from positions: no write per delivery.

use serde::Serialize;

use super::{
    Error, Service,
    bind::By,
    deliver::Following,
    records::{MessageRecord, Registration, place_key},
    send::messages_of,
};
use crate::{
    base::ids::{AppId, MessageId, QueueName, RegId},
    queue::{position::Position, store::decode},
};

/// Followers whose pointers one answer looks at.
const FOLLOWERS_MAX: usize = 1_000;
const NO_MESSAGE: Error = Error::NotFound { what: "message" };

/// A message's state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MessageState {
    /// Its id.
    pub id: String,
    /// `accepted` while appends are pending, then `queued`, at its time `expired`.
    pub state: &'static str,
    /// When it was accepted, in milliseconds since 1970.
    pub accepted_ms: u64,
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
    /// `accepted`, `durable`; then one of `passed` (the pointer is at or past it),
    /// `pending`, `expired`, `not_followed`.
    pub name: &'static str,
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
    /// How far it is in each queue that it follows.
    pub pointers: Vec<PointerView>,
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
        let (id, record) = self.message_record(app, id)?;
        let mut counts = Counts { queues: record.queues.len(), ..Counts::default() };
        for queue in &record.queues {
            let Some(place) = self.place(&id, &record, queue)? else {
                continue;
            };
            counts.appended += 1;
            let left = FOLLOWERS_MAX.saturating_sub(counts.followers);
            let mut followers = self.followers(queue, left + 1)?;
            counts.is_partial |= followers.len() > left;
            followers.truncate(left);
            for regid in followers {
                counts.followers += 1;
                let passed = self.positions(&regid)?.of(&queue.id());
                counts.passed += usize::from(passed.is_some_and(|at| at.seq >= place.seq));
            }
        }
        let is_expired = record.expires_ms.is_some_and(|at| at <= self.now_ms());
        let state = match (is_expired, counts.appended == counts.queues) {
            (true, _) => "expired",
            (false, true) => "queued",
            (false, false) => "accepted",
        };
        Ok(MessageState {
            id: id.to_string(),
            state,
            accepted_ms: record.at_ms,
            expires_ms: record.expires_ms,
            counts,
        })
    }

    /// What happened to a message on its way to one registration.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub fn trace(&self, app: &AppId, id: &str, regid: &str) -> Result<Trace, Error> {
        let (id, record) = self.message_record(app, id)?;
        let (_, registration) = self.registration_of(regid, By::App(app))?;
        let mut milestones = vec![Milestone {
            name: "accepted",
            at_ms: Some(record.at_ms),
            queue: None,
            position: None,
        }];
        let follows = self.followings(&registration);
        let concerned = follows.iter().filter(|follow| record.queues.contains(follow.queue.name()));
        let mut is_followed = false;
        for follow in concerned {
            is_followed = true;
            let milestone = |name, position: Option<Position>| Milestone {
                name,
                at_ms: None,
                queue: Some(follow.queue.name().to_string()),
                position: position.map(|at| at.to_string()),
            };
            let Some(place) = self.place(&id, &record, follow.queue.name())? else {
                milestones.push(milestone("pending", None));
                continue;
            };
            milestones.push(milestone("durable", Some(place)));
            let pointer = self.stored_position(&registration.regid, follow)?;
            let outcome = if place.seq <= follow.since.seq {
                "not_followed"
            } else if pointer.seq >= place.seq {
                "passed"
            } else if record.expires_ms.is_some_and(|at| at <= self.now_ms()) {
                "expired"
            } else {
                "pending"
            };
            milestones.push(milestone(outcome, Some(pointer)));
        }
        if !is_followed {
            let name = "not_followed";
            milestones.push(Milestone { name, at_ms: None, queue: None, position: None });
        }
        Ok(Trace { id: id.to_string(), regid: regid.to_owned(), milestones })
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
            pointers: pointers?,
        })
    }

    fn message_record(&self, app: &AppId, id: &str) -> Result<(MessageId, MessageRecord), Error> {
        let id: MessageId = id.parse().map_err(|_| NO_MESSAGE)?;
        let bytes = self.router.get(messages_of(&id), id.as_bytes())?.ok_or(NO_MESSAGE)?;
        let record: MessageRecord = decode(&bytes)?;
        if record.app != *app {
            return Err(NO_MESSAGE);
        }
        Ok((id, record))
    }

    fn place(
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

    fn followers(&self, queue: &QueueName, limit: usize) -> Result<Vec<RegId>, Error> {
        match queue {
            QueueName::Own(regid) => match self.device_of(regid)? {
                Some(_) => Ok(vec![*regid]),
                None => Ok(Vec::new()),
            },
            QueueName::Alias(..) | QueueName::Topic(..) | QueueName::All(_) => {
                self.members_after(&queue.id(), None, limit)
            }
        }
    }
}

fn names(registration: &Registration, of_kind: fn(&QueueName) -> bool) -> Vec<String> {
    let queues = registration.follows.iter().map(|follow| &follow.queue);
    queues.filter(|queue| of_kind(queue)).map(|queue| queue.wire_name().to_owned()).collect()
}
