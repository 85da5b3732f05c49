//! Topics as their app sees them: who follows, and many followers changed at once.

use std::collections::HashMap;

use futures_util::future::join_all;

use super::{
    Error, Service,
    bind::{Change, Outcome},
    register::{NO_REGISTRATION, load},
};
use crate::{
    base::ids::{AppId, DeviceId, QueueName, RegId, Topic},
    queue::{
        store::{Space, encode},
        txn::Txn,
    },
};

/// Registrations that one change of an owner takes on: their writes are about one commit.
const PER_CHANGE: usize = 256;

/// What is done with the followers of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// They follow it from now on.
    Subscribe,
    /// No longer.
    Unsubscribe,
}

/// Some followers of a topic, in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembersPage {
    /// These.
    pub members: Vec<RegId>,
    /// More come behind this one.
    pub next: Option<RegId>,
}

/// A registration by its place in the request.
type Member = (usize, DeviceId, RegId);

impl Service {
    /// Subscribes or unsubscribes registrations of an app: those that can be, with a few commits
    /// for all. Gives a result for each, with the errors of [`Service::subscribe`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is none; [`Error::Unavailable`].
    pub async fn change_topic(
        &self,
        app: &AppId,
        topic: &str,
        regids: &[String],
        verb: Verb,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let queue = QueueName::Topic(app.clone(), topic.parse::<Topic>()?);
        let change = match verb {
            Verb::Subscribe => Change::Follow {
                since: self.router.head(&queue.id())?,
                max: self.limits.load().topics_per_registration,
                queue,
            },
            Verb::Unsubscribe => Change::Unfollow { queue },
        };
        let mut results: Vec<Result<(), Error>> = Vec::with_capacity(regids.len());
        let mut known: Vec<Member> = Vec::with_capacity(regids.len());
        for (at, text) in regids.iter().enumerate() {
            let found = text.parse::<RegId>().ok();
            let found = match found {
                Some(regid) => self.device_of(&regid)?.map(|device| (at, device, regid)),
                None => None,
            };
            results.push(found.map(|_| ()).ok_or(NO_REGISTRATION));
            known.extend(found);
        }
        let groups = self.router.by_owner(known, |(_, device, _)| device.shard());
        let chunks = groups.iter().flat_map(|(shard, group)| {
            group.chunks(PER_CHANGE).map(|chunk| (*shard, chunk.to_vec()))
        });
        let changes = chunks.map(async |(shard, chunk)| {
            let places: Vec<usize> = chunk.iter().map(|(at, ..)| *at).collect();
            let (app, change) = (app.clone(), change.clone());
            let run = move |txn: &mut Txn<'_>| change_all(txn, &app, &change, &chunk);
            match self.router.run(shard, run).await {
                Ok(done) => done,
                Err(error) => places.into_iter().map(|at| (at, Err(error.clone()))).collect(),
            }
        });
        for (at, result) in join_all(changes).await.into_iter().flatten() {
            results[at] = result.map(|outcome| {
                self.note_settings(1, usize::from(outcome.is_some()));
                outcome.into_iter().for_each(|(regid, outcome)| self.settled(&regid, outcome));
            });
        }
        Ok(results)
    }

    /// How many registrations follow a topic now.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Unavailable`].
    pub fn topic_count(&self, app: &AppId, topic: &str) -> Result<usize, Error> {
        self.members(&QueueName::Topic(app.clone(), topic.parse::<Topic>()?).id())
    }

    /// The registrations that follow a topic now, at most `limit`, behind `after`. Who begins to
    /// follow it meanwhile may be left out; nobody comes twice.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Unavailable`].
    pub fn topic_members(
        &self,
        app: &AppId,
        topic: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<MembersPage, Error> {
        let queue = QueueName::Topic(app.clone(), topic.parse::<Topic>()?).id();
        let after = after.map(|text| {
            let rule = "the `next` of an answer before".to_owned();
            text.parse::<RegId>().map_err(|_| Error::Invalid { field: "after", rule })
        });
        let mut members = self.members_after(&queue, after.transpose()?, limit + 1)?;
        let has_more = members.len() > limit;
        members.truncate(limit);
        Ok(MembersPage { next: members.last().copied().filter(|_| has_more), members })
    }
}

type Changed = (usize, Result<Option<(RegId, Outcome)>, Error>);

/// One change for all of these; one that is refused costs the others nothing.
fn change_all(
    txn: &mut Txn<'_>,
    app: &AppId,
    change: &Change,
    members: &[Member],
) -> Result<Vec<Changed>, Error> {
    let mut devices = HashMap::new();
    let mut done: Vec<Changed> = Vec::with_capacity(members.len());
    for (at, device, regid) in members {
        let record = match devices.remove(device) {
            Some(record) => Ok(record),
            None => load(txn, device).map(|record| (record, false)),
        };
        let result = record.and_then(|(mut record, mut is_changed)| {
            let mine = record.registrations.iter_mut();
            let mut mine = mine.filter(|one| one.regid == *regid && one.app == *app);
            let changed = match mine.next() {
                Some(registration) => change.clone().perform(txn, registration),
                None => Err(NO_REGISTRATION),
            };
            is_changed |= matches!(changed, Ok(Some(_)));
            devices.insert(*device, (record, is_changed));
            changed
        });
        match result {
            Err(error @ Error::Unavailable(_)) if !error.is_damage() => return Err(error),
            Err(error) => done.push((*at, Err(error))),
            Ok(outcome) => done.push((*at, Ok(outcome.map(|outcome| (*regid, outcome))))),
        }
    }
    for (device, (record, _)) in devices.into_iter().filter(|(_, (_, is_changed))| *is_changed) {
        txn.put(Space::Devices, device.as_bytes(), encode(&record));
    }
    Ok::<_, Error>(done)
}
