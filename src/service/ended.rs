//! The end of registrations: what is written with it, and what is told of it afterwards.
//!
//! With the end its app's list gets the regID, and endpoints that want it hear of each message in
//! the queues that it followed that did not arrive. Kept beside the list is how far the registration was, so
//! that traces can still say whether it had a message.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Error, Service,
    deliver::{Following, Take},
    feedback::Why,
    judge::Verdict,
    receipts::{
        Event, EventKind,
        log::{Appended, Claim, Endpoint},
    },
    records::{MessageRecord, Registration},
    trace::{Milestone, Step, Trace, receipts},
};
use crate::{
    base::ids::{AppId, MessageId, QueueId, QueueName, RegId},
    queue::{
        entry::Body,
        position::Seq,
        store::{Batch, Space, decode},
    },
};

/// Entries of one look into a queue, and how many looks there are for all queues of a registration:
/// what is further away is not told of.
const TAKE: Take = Take { entries: 256, bytes: usize::MAX };
const PAGES: usize = 64;

/// What is kept of a registration that has ended, for as long as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    /// Why it ended; or it never was.
    pub(super) why: Why,
    /// When, in milliseconds since 1970.
    pub(super) at_ms: u64,
    /// What it followed.
    followed: Vec<Followed>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Followed {
    queue: QueueId,
    since: Seq,
    acked: Seq,
}

impl Ended {
    /// Of a regID of which nothing is known.
    pub(super) fn unknown(at_ms: u64) -> Self {
        Self { why: Why::Unknown, at_ms, followed: Vec::new() }
    }
}

/// What must live until the end of registrations is durable.
pub(super) struct Held {
    claim: Claim,
    events: Vec<Appended>,
    looked: Vec<Looked>,
}

/// What a registration followed, its own queue first, and up to where each was looked at.
struct Looked {
    app: AppId,
    all: Vec<Following>,
    to: Vec<Seq>,
}

type Events = Vec<(Arc<Endpoint>, Vec<Event>)>;

impl Service {
    /// What is to be written with the end of registrations.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) fn ending(&self, ended: &[Registration], why: Why) -> Result<(Batch, Held), Error> {
        let at_ms = self.now_ms();
        let (mut batch, mut listed) = (Batch::default(), Vec::with_capacity(ended.len()));
        let (mut events, mut looked) = (Vec::new(), Vec::with_capacity(ended.len()));
        for registration in ended {
            let followings = self.followings(registration);
            let mut followed = Vec::with_capacity(followings.len());
            for of in &followings {
                let (queue, since) = (of.queue.id(), of.since.seq);
                let acked = self.stored_position(&registration.regid, of)?.seq;
                followed.push(Followed { queue, since, acked });
            }
            let app = registration.app.clone();
            let acked = followed.iter().map(|of| of.acked).collect();
            let mut look = Looked { app, all: followings, to: acked };
            for (endpoint, told) in self.missed(&mut look)? {
                let log = &self.receipts.log;
                events.extend(log.append(&endpoint, told, &mut batch, &self.metrics));
            }
            looked.push(look);
            let ended = Ended { why, at_ms, followed };
            listed.push((registration.app.clone(), registration.regid, ended));
        }
        let claim = self.list_invalid(&listed, &mut batch);
        Ok((batch, Held { claim, events, looked }))
    }

    /// The end is durable. What came into the queues since they were looked at is told of too.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) async fn told_of(&self, held: Held) -> Result<(), Error> {
        let Held { claim, events, looked } = held;
        drop(claim);
        for one in events {
            self.receipts.log.became_durable(one, &self.metrics);
        }
        for mut look in looked {
            let missed = self.missed(&mut look)?;
            self.commit_events(Batch::default(), missed).await?;
        }
        Ok(())
    }

    /// Events for those who want to hear that messages of these queues do not arrive, behind where
    /// they were looked at before.
    fn missed(&self, look: &mut Looked) -> Result<Events, Error> {
        let mut events: HashMap<_, (_, Vec<_>)> = HashMap::new();
        let QueueName::Own(regid) = look.all[0].queue.name() else { return Ok(Vec::new()) };
        if !self.receipts.log.is_used_by(&look.app) {
            return Ok(Vec::new());
        }
        let (at_ms, regid, mut pages) = (self.now_ms(), regid.to_string(), PAGES);
        for (at, following) in look.all.iter().enumerate() {
            while pages > 0 {
                let entries = self.router.read(&following.queue.id(), look.to[at], TAKE)?;
                let Some(last) = entries.last() else { break };
                (look.to[at], pages) = (last.position.seq, pages - 1);
                for entry in &entries {
                    let Body::Message(message) = &entry.body else { continue };
                    let endpoint = self.endpoint_of(&message.id, EventKind::Invalid)?;
                    let Some(endpoint) = endpoint else { continue };
                    if self.judge(entry, &look.all, at, at_ms)? == Verdict::Deliver {
                        let of =
                            events.entry(endpoint.id).or_insert_with(|| (endpoint, Vec::new()));
                        let (message, regid) = (message.id, regid.clone());
                        of.1.push(Event { kind: EventKind::Invalid, message, regid, at_ms });
                    }
                }
            }
        }
        Ok(events.into_values().collect())
    }

    /// A message is in all its queues. Registrations that it names and that ended before are told of: at its due
    /// time, or in the moment of its appends.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) async fn tell_of_gone(&self, id: &MessageId) -> Result<(), Error> {
        let Some(endpoint) = self.endpoint_of(id, EventKind::Invalid)? else { return Ok(()) };
        let (mut events, at_ms, kind) = (Vec::new(), self.now_ms(), EventKind::Invalid);
        for queue in self.record_of(id)?.into_iter().flat_map(|record| record.queues) {
            if let QueueName::Own(regid) = queue
                && self.registered(&regid)?.is_none()
            {
                events.push(Event { kind, message: *id, regid: regid.to_string(), at_ms });
            }
        }
        self.commit_events(Batch::default(), vec![(endpoint, events)]).await
    }

    /// What happened to a message on its way to a registration that has ended since.
    pub(super) fn trace_of_ended(
        &self,
        app: &AppId,
        (id, record): (MessageId, MessageRecord),
        regid: &str,
        mut milestones: Vec<Milestone>,
    ) -> Result<Trace, Error> {
        let none = Error::NotFound { what: "registration" };
        let name: RegId = regid.parse().map_err(|_| none.clone())?;
        let ended = self.ended(app, &name)?.filter(|ended| ended.why != Why::Unknown);
        let ended = ended.ok_or(none)?;
        let row = self.row(&id, &name)?.unwrap_or_default();
        let mut is_followed = false;
        for queue in &record.queues {
            let of = ended.followed.iter().find(|followed| followed.queue == queue.id());
            let Some(of) = of else { continue };
            is_followed = true;
            let milestone = |name, at_ms| Milestone {
                name,
                at_ms,
                queue: Some(queue.to_string()),
                position: None,
            };
            let place = self.place(&id, &record, queue)?;
            if let Some(place) = place {
                let position = Some(place.to_string());
                milestones.push(Milestone { position, ..milestone(Step::Durable, None) });
            }
            milestones.extend(receipts(row).map(|(step, at)| milestone(step, Some(at))));
            let expired_ms = record.expires_ms.filter(|at| *at <= ended.at_ms);
            milestones.push(match (place, expired_ms) {
                _ if row.acked_ms.is_some() => milestone(Step::Passed, row.acked_ms),
                (Some(place), _) if place.seq <= of.since => milestone(Step::NotFollowed, None),
                (Some(place), _) if place.seq <= of.acked => milestone(Step::Passed, None),
                (_, Some(at_ms)) => milestone(Step::Expired, Some(at_ms)),
                (_, None) => milestone(Step::Invalid, Some(ended.at_ms)),
            });
        }
        let alone = |name, at_ms| Milestone { name, at_ms, queue: None, position: None };
        milestones.extend(self.recalls.at_ms(&id).map(|at| alone(Step::Recalled, Some(at))));
        if !is_followed {
            milestones.push(alone(Step::NotFollowed, None));
        }
        Ok(Trace { id: id.to_string(), regid: regid.to_owned(), milestones })
    }

    /// What is kept of a registration of this app that has ended.
    fn ended(&self, app: &AppId, regid: &RegId) -> Result<Option<Ended>, Error> {
        let mark = self.router.get(Space::Feedback, &super::feedback::mark_key(app, regid))?;
        mark.map(|bytes| Ok(decode(&bytes)?)).transpose()
    }
}
