//! What a registration follows: aliases and topics.
//!
//! Every change is an entry of the registration's own queue, written in the same
//! batch as the device's record, so that the device learns of it in order.

use super::{
    Error, Service,
    apps::is_alias_token,
    records::{AliasPolicy, Follow, Registration, member_key},
    register::{NO_REGISTRATION, load},
};
use crate::{
    base::{
        ids::{Alias, AppId, DeviceId, QueueName, RegId, Topic},
        metrics::engine::CacheKind,
    },
    queue::{
        entry::Body,
        position::Position,
        store::{Space, encode},
        txn::Txn,
    },
};

const SERVER_ONLY: Error = Error::Forbidden("only the app server binds aliases of this app");

/// Who asks for a change.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// The device itself, over its connection, with a token where it has one.
    Device {
        /// The device.
        device: &'a DeviceId,
        /// From the app server, for `signed` aliases.
        token: Option<&'a str>,
    },
    /// The app server.
    App(&'a AppId),
}

impl Service {
    /// Binds an alias: the registration follows it from its head on. One that is bound stays
    /// as it is; unbound and bound again, it begins anew.
    ///
    /// # Errors
    /// [`Error::NotFound`] (no such registration of the asker's), [`Error::Invalid`],
    /// [`Error::Forbidden`] (policy or token), [`Error::Limit`], [`Error::Unavailable`].
    pub async fn bind(&self, regid: &str, alias: &str, by: By<'_>) -> Result<(), Error> {
        let alias: Alias = alias.parse()?;
        let (device, registration) = self.registration_of(regid, by)?;
        self.may_bind(&registration, &alias, by)?;
        let queue = QueueName::Alias(registration.app.clone(), alias);
        self.may_follow(&registration, &queue)?;
        let max = self.limits.load().aliases_per_registration;
        let since = self.router.head(&queue.id())?;
        let changes = vec![Change::Follow { queue, since, max }];
        self.change_follows(device, registration.regid, changes).await
    }

    /// Unbinds an alias; one that is not bound is no error.
    ///
    /// # Errors
    /// As [`Service::bind`].
    pub async fn unbind(&self, regid: &str, alias: &str, by: By<'_>) -> Result<(), Error> {
        let alias: Alias = alias.parse()?;
        let (device, registration) = self.registration_of(regid, by)?;
        self.may_unbind(&registration, by)?;
        let queue = QueueName::Alias(registration.app, alias);
        self.change_follows(device, registration.regid, vec![Change::Unfollow { queue }]).await
    }

    /// Subscribes to topics: all of them or none. A topic that is followed already stays as it is.
    ///
    /// # Errors
    /// As [`Service::bind`].
    pub async fn subscribe(&self, regid: &str, topics: &[String], by: By<'_>) -> Result<(), Error> {
        let (device, registration) = self.registration_of(regid, by)?;
        let max = self.limits.load().topics_per_registration;
        let mut changes = Vec::new();
        for queue in self.topics(&registration.app, topics)? {
            let since = self.router.head(&queue.id())?;
            changes.push(Change::Follow { queue, since, max });
        }
        self.change_follows(device, registration.regid, changes).await
    }

    /// Unsubscribes from topics; one that is not followed is no error.
    ///
    /// # Errors
    /// As [`Service::bind`].
    pub async fn unsubscribe(
        &self,
        regid: &str,
        topics: &[String],
        by: By<'_>,
    ) -> Result<(), Error> {
        let (device, registration) = self.registration_of(regid, by)?;
        let topics = self.topics(&registration.app, topics)?;
        let changes = topics.into_iter().map(|queue| Change::Unfollow { queue }).collect();
        self.change_follows(device, registration.regid, changes).await
    }

    fn topics(&self, app: &AppId, topics: &[String]) -> Result<Vec<QueueName>, Error> {
        let max = self.limits.load().topics_per_registration;
        if topics.len() > max {
            return Err(Error::Limit { what: "topics of a registration", max });
        }
        let queue = |topic: &String| Ok(QueueName::Topic(app.clone(), topic.parse::<Topic>()?));
        topics.iter().map(queue).collect()
    }

    fn may_bind(
        &self,
        registration: &Registration,
        alias: &Alias,
        by: By<'_>,
    ) -> Result<(), Error> {
        let By::Device { token, .. } = by else {
            return Ok(());
        };
        let app = self.app_record(&registration.app)?.ok_or(NO_REGISTRATION)?;
        let regid = registration.regid.to_string();
        match (app.alias_policy, token) {
            (AliasPolicy::Open, _) => Ok(()),
            (AliasPolicy::Server, _) => Err(SERVER_ONLY),
            (AliasPolicy::Signed, Some(token))
                if is_alias_token(&app, &regid, alias.as_str(), token, self.now_ms()) =>
            {
                Ok(())
            }
            (AliasPolicy::Signed, _) => {
                Err(Error::Forbidden("this app's aliases need a valid token of its app server"))
            }
        }
    }

    /// An alias is an account with some devices; more than these follow a topic. Who binds at
    /// the same moment is not counted.
    fn may_follow(&self, registration: &Registration, queue: &QueueName) -> Result<(), Error> {
        let max = self.limits.load().registrations_per_alias;
        let is_bound = registration.follows.iter().any(|one| one.queue == *queue);
        if is_bound || self.members_after(&queue.id(), None, max)?.len() < max {
            return Ok(());
        }
        Err(Error::Limit { what: "registrations of an alias", max })
    }

    /// Who may not bind by itself may not unbind either, but needs no token.
    fn may_unbind(&self, registration: &Registration, by: By<'_>) -> Result<(), Error> {
        let By::Device { .. } = by else { return Ok(()) };
        let app = self.app_record(&registration.app)?.ok_or(NO_REGISTRATION)?;
        match app.alias_policy {
            AliasPolicy::Open | AliasPolicy::Signed => Ok(()),
            AliasPolicy::Server => Err(SERVER_ONLY),
        }
    }

    async fn change_follows(
        &self,
        device: DeviceId,
        regid: RegId,
        changes: Vec<Change>,
    ) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let asked = changes.len();
        // Asked of the owner even where nothing may change: what is so already may not be durable.
        let done = self
            .router
            .run(device.shard(), move |txn| {
                let mut record = load(txn, &device)?;
                let registration = record.registrations.iter_mut().find(|one| one.regid == regid);
                let registration = registration.ok_or(NO_REGISTRATION)?;
                let mut done = Vec::new();
                for change in changes {
                    done.extend(change.perform(txn, registration)?);
                }
                if !done.is_empty() {
                    txn.put(Space::Devices, device.as_bytes(), encode(&record));
                }
                Ok::<_, Error>(done)
            })
            .await?;
        self.note_settings(asked, done.len());
        done.into_iter().for_each(|outcome| self.settled(&regid, outcome));
        Ok(())
    }

    /// Counts settings that were stated, and how many of them were changes.
    pub(super) fn note_settings(&self, stated: usize, changed: usize) {
        let engine = &self.metrics.engine;
        let same = stated.saturating_sub(changed);
        engine.cache_hits.of(CacheKind::Settings).increment(same as u64);
        engine.cache_misses.of(CacheKind::Settings).increment(changed as u64);
    }

    /// A change is durable: what is kept beside the records follows.
    pub(super) fn settled(&self, regid: &RegId, outcome: Outcome) {
        match outcome {
            Outcome::Followed(queue) => self.member_added(&queue.id()),
            Outcome::Unfollowed(Follow { queue, since, .. }) => {
                let queue = queue.id();
                self.member_removed(&queue);
                match self.positions(regid) {
                    Ok(all) => all.of(&queue).into_iter().for_each(|to| {
                        self.left(regid, queue, since, to);
                    }),
                    Err(error) => tracing::warn!(%error, "cannot read pointers"),
                }
                self.forget_position(regid, &queue);
            }
        }
    }
}

/// One change of what a registration follows.
#[derive(Clone)]
pub(super) enum Change {
    Follow { queue: QueueName, since: Position, max: usize },
    Unfollow { queue: QueueName },
}

/// What changed for the member count.
pub(super) enum Outcome {
    Followed(QueueName),
    Unfollowed(Follow),
}

impl Change {
    pub(super) fn perform(
        self,
        txn: &mut Txn<'_>,
        registration: &mut Registration,
    ) -> Result<Option<Outcome>, Error> {
        let regid = registration.regid;
        let own = QueueName::Own(regid).id();
        match self {
            Self::Follow { queue, since, max } => {
                if registration.follows.iter().any(|one| one.queue == queue) {
                    return Ok(None);
                }
                let of_kind = |one: &&Follow| one.queue.kind() == queue.kind();
                if registration.follows.iter().filter(of_kind).count() >= max {
                    let what = match queue {
                        QueueName::Topic(..) => "topics of a registration",
                        _ => "aliases of a registration",
                    };
                    return Err(Error::Limit { what, max });
                }
                let body = Body::Follow { queue: queue.clone(), since };
                let control = txn.append(own, body)?.seq;
                txn.put(Space::Members, member_key(&queue.id(), &regid), Vec::new());
                registration.control = control;
                registration.follows.push(Follow { queue: queue.clone(), since, control });
                Ok(Some(Outcome::Followed(queue)))
            }
            Self::Unfollow { queue } => {
                let known = registration.follows.iter().position(|one| one.queue == queue);
                let Some(at) = known else { return Ok(None) };
                let follow = registration.follows.remove(at);
                txn.remove(Space::Members, member_key(&queue.id(), &regid));
                registration.control = txn.append(own, Body::Unfollow { queue })?.seq;
                Ok(Some(Outcome::Unfollowed(follow)))
            }
        }
    }
}
