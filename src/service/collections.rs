//! Collections of aliases: who may change them, and the changes themselves.
//!
//! A change is decided by its collection's rule where the queue is owned. Values that a rule
//! needs are read before; where they moved meanwhile, all is read and decided again.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::Semaphore;

use super::{
    Error, Service, Storage,
    apps::{APPS_SHARD, load_app},
    records::{AliasPolicy, App},
};
use crate::{
    base::{
        ids::{Alias, AppId, CollectionName, ItemKey, QueueId, QueueName},
        metrics::ChangeOutcome,
    },
    longterm::{self, writer::Again},
    queue::{
        collection::{
            append::{self, Ask, Changing, Done, Known, changing},
            change::{Format, Hlc, Origin, Stamp, VALUE_BYTES_MAX, Value},
            item::{Item, item_key},
            rule::{self, Outcome, Rule},
        },
        position::Position,
        shard,
        store::{self, Batch, Space, decode, encode},
        txn::Txn,
    },
};

/// Collections that one app may declare.
pub const COLLECTIONS_MAX: usize = 64;
/// How often a transaction is tried whose values moved.
const TRIES_MAX: usize = 8;
/// Queues whose changes wait for each other because their rules read values.
const TURNS: usize = 64;

/// A collection as it was declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Declared {
    /// Its name.
    pub name: CollectionName,
    /// How it settles conflicts.
    pub rule: Rule,
}

/// A change as its maker states it.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// The item's collection.
    pub collection: &'a str,
    /// The item's key.
    pub key: &'a str,
    /// The new value; `None` deletes.
    pub value: Option<Value>,
    /// Where its maker stood in the queue; `None`: it means whatever is there.
    pub base: Option<Position>,
    /// When and by whom.
    pub stamp: Stamp,
}

/// The collections of an app whose aliases are safe enough for them.
pub struct Collections(Arc<App>);

/// What became of a change: `Err` if its rule cannot read it, and then nothing did.
pub type Changed = Result<Done, rule::Error>;

/// Who changes a queue by rules that read values: one after the other, so that they do not void
/// each other's transactions.
pub struct Turns([Semaphore; TURNS]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Semaphore::new(1)))
    }
}

/// Why a try came to nothing.
pub(super) enum Failed {
    /// A value moved: again.
    Moved,
    /// It is refused, or cannot be done.
    Refused(Error),
}

impl From<append::Error> for Failed {
    fn from(error: append::Error) -> Self {
        match error {
            append::Error::Moved => Self::Moved,
            append::Error::Store(error) => Self::Refused(error.into()),
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<shard::Error> for Failed {
    fn from(error: shard::Error) -> Self {
        Self::Refused(error.into())
    }
}

impl From<store::Error> for Failed {
    fn from(error: store::Error) -> Self {
        Self::Refused(error.into())
    }
}

impl Collections {
    /// A change that its collection's rule can decide.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field, [`Error::NotFound`] (no such collection).
    pub fn ask(&self, change: Change<'_>) -> Result<Ask, Error> {
        let Change { collection, key, value, base, stamp } = change;
        let collection: CollectionName = collection.parse()?;
        let key: ItemKey = key.parse()?;
        let rule = self.0.collections.get(&collection).ok_or(NO_COLLECTION)?;
        if let Some(value) = &value {
            check(value)?;
        }
        let key = key.as_str().into();
        Ok(Ask { collection, rule: *rule, key, value, base, stamp })
    }
}

fn check(value: &Value) -> Result<(), Error> {
    let invalid = |rule: &str| Err(Error::Invalid { field: "value", rule: rule.into() });
    if value.bytes.len() > VALUE_BYTES_MAX {
        return invalid("at most 65536 bytes");
    }
    let is_json = || serde_json::from_slice::<serde::de::IgnoredAny>(&value.bytes).is_ok();
    match value.format {
        Format::Json if !is_json() => invalid("a JSON document, as its format says"),
        Format::Json | Format::Thrift => Ok(()),
    }
}

impl Service {
    /// Declares a collection; one that is declared gets this rule for changes from now on.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NotFound`] (the app), [`Error::NeedsPolicy`],
    /// [`Error::Limit`], [`Error::Unavailable`].
    pub async fn declare(&self, app: &AppId, name: &str, rule: Rule) -> Result<Declared, Error> {
        let name: CollectionName = name.parse()?;
        let (id, declared) = (app.clone(), Declared { name: name.clone(), rule });
        let change = move |txn: &mut Txn<'_>| {
            let mut app = load_app(txn, &id)?;
            may_have(&app)?;
            let is_new = app.collections.insert(name, rule).is_none();
            if is_new && app.collections.len() > COLLECTIONS_MAX {
                return Err(Error::Limit { what: "collections of an app", max: COLLECTIONS_MAX });
            }
            txn.put(Space::Apps, id.as_str().as_bytes(), encode(&app));
            Ok(())
        };
        self.router.run(APPS_SHARD, change).await?;
        Ok(declared)
    }

    /// Ends a collection: no change of it is taken any more. What it holds stays, and is there if
    /// it is declared again.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NotFound`] (the app, the collection), [`Error::Unavailable`].
    pub async fn undeclare(&self, app: &AppId, name: &str) -> Result<(), Error> {
        let (id, name): (_, CollectionName) = (app.clone(), name.parse()?);
        let change = move |txn: &mut Txn<'_>| {
            let mut app = load_app(txn, &id)?;
            app.collections.remove(&name).ok_or(NO_COLLECTION)?;
            txn.put(Space::Apps, id.as_str().as_bytes(), encode(&app));
            Ok(())
        };
        self.router.run(APPS_SHARD, change).await
    }

    /// A collection that an app declared.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NotFound`] (the app, the collection), [`Error::NeedsPolicy`],
    /// [`Error::Unavailable`].
    pub fn declared(&self, app: &AppId, name: &str) -> Result<Declared, Error> {
        let name: CollectionName = name.parse()?;
        let Collections(app) = self.collections(app)?;
        let rule = *app.collections.get(&name).ok_or(NO_COLLECTION)?;
        Ok(Declared { name, rule })
    }

    /// The collections of an app that declared some, for changes of one of its aliases.
    ///
    /// # Errors
    /// [`Error::NotFound`] (the app), [`Error::NeedsPolicy`], [`Error::Sealed`],
    /// [`Error::Unavailable`].
    pub fn collections(&self, app: &AppId) -> Result<Collections, Error> {
        let app = self.app_record(app)?.ok_or(Error::NotFound { what: "app" })?;
        may_have(&app)?;
        Ok(Collections(app))
    }

    /// When a change of an app server is made.
    pub fn server_stamp(&self) -> Stamp {
        Stamp { clock: Hlc::at(self.now_ms()), origin: Origin::Server }
    }

    /// Changes items of an alias, all of them durable together; each has its result.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: nothing is changed.
    pub async fn change(
        &self,
        app: &AppId,
        alias: &Alias,
        asks: Vec<Ask>,
    ) -> Result<Vec<Changed>, Error> {
        self.change_with(app, alias, asks, |_| Batch::default()).await
    }

    /// The same, and what `also` makes of the results becomes durable with them.
    pub(super) async fn change_with(
        &self,
        app: &AppId,
        alias: &Alias,
        asks: Vec<Ask>,
        also: impl FnOnce(&[Changed]) -> Batch + Clone + Send + 'static,
    ) -> Result<Vec<Changed>, Error> {
        let queue = QueueName::Alias(app.clone(), alias.clone()).id();
        let asks: Arc<[Ask]> = asks.into();
        let all = asks.clone();
        let act = move |changing: &mut Changing<'_, '_>| {
            let done: Result<Vec<Changed>, append::Error> =
                all.iter().map(|ask| changing.change(ask)).collect();
            let done = done?;
            changing.txn.put_all(also(&done));
            Ok(done)
        };
        let done = self.changing(queue, &asks, act).await?;
        self.count_changes(&asks, &done);
        Ok(done)
    }

    /// Runs changes of a queue's items, tried again while what `asks` rest on moves: `act` may
    /// run more than once.
    ///
    /// # Errors
    /// What `act` refuses with, and [`Error::Unavailable`]: nothing is changed.
    pub(super) async fn changing<T: Send + 'static>(
        &self,
        queue: QueueId,
        asks: &[Ask],
        act: impl FnOnce(&mut Changing<'_, '_>) -> Result<T, Failed> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        if !asks.is_empty() {
            self.may_change()?;
        }
        let reads_values = asks.iter().any(|ask| matches!(ask.rule, Rule::Merge | Rule::KeepBoth));
        let _turn = if reads_values { Some(self.turn(&queue).await?) } else { None };
        for _ in 0..TRIES_MAX {
            let known = self.known(&queue, asks).await?;
            let act = act.clone();
            let done = self.router.run(queue.shard(), move |txn| changing(txn, queue, known, act));
            match done.await {
                Ok(done) => return Ok(done),
                Err(Failed::Refused(error)) => return Err(error),
                Err(Failed::Moved) => {}
            }
        }
        Err(shard::Error::Contended.into())
    }

    /// For the storage writer, which must not wait for itself: no back-pressure.
    pub fn changes_again(self: Arc<Self>) -> Again {
        Box::new(move |queue, asks| {
            let service = self.clone();
            Box::pin(async move {
                let change = move |txn: &mut Txn<'_>| {
                    changing(txn, queue, Known::default(), |changing| {
                        asks.iter().try_for_each(|ask| changing.change(ask).map(drop))
                    })
                    .map_err(Failed::from)
                };
                let done = service.router.run(queue.shard(), change).await;
                done.map_err(|failed| longterm::Error::Unreachable {
                    step: "get lost changes made again",
                    cause: match failed {
                        Failed::Moved => shard::Error::Contended.to_string(),
                        Failed::Refused(error) => error.to_string(),
                    },
                })
            })
        })
    }

    /// Changes wait while long-term storage is far behind.
    pub(super) fn may_change(&self) -> Result<(), Error> {
        let Storage { backlog, bounds, .. } = &self.storage;
        let age_s = backlog.age_ms(self.now_ms()) / 1_000;
        if backlog.entries() <= bounds.behind_entries_max && age_s <= bounds.behind_max_s {
            return Ok(());
        }
        self.metrics.longterm.refused.increment(1);
        Err(Error::StorageBehind)
    }

    async fn turn(&self, queue: &QueueId) -> Result<tokio::sync::SemaphorePermit<'_>, Error> {
        let [.., byte] = queue.0;
        let turn = &self.turns.0[usize::from(byte) % TURNS];
        turn.acquire().await.map_err(|_| shard::Error::Stopped.into())
    }

    /// The values that the rules of some changes look at.
    async fn known(&self, queue: &QueueId, asks: &[Ask]) -> Result<Known, Error> {
        let mut known = Known::default();
        for ask in asks.iter().filter(|ask| matches!(ask.rule, Rule::Merge | Rule::KeepBoth)) {
            let stored_key = item_key(queue, &ask.collection, &ask.key);
            let Some(item) = self.router.get(Space::Items, &stored_key)? else { continue };
            let item: Item = decode(&item)?;
            if !item.head.is_deleted
                && let Some(value) = self.value_of(queue, &ask.collection, &ask.key, &item).await?
            {
                known.insert(stored_key, item.position(), value);
            }
        }
        Ok(known)
    }

    pub(super) fn count_changes(&self, asks: &[Ask], done: &[Changed]) {
        let metrics = &self.metrics.collections;
        for (ask, done) in asks.iter().zip(done) {
            let outcome = match done {
                Ok(done) => match done.outcome {
                    Outcome::Applied => ChangeOutcome::Applied,
                    Outcome::Merged => ChangeOutcome::Merged,
                    Outcome::Copied => ChangeOutcome::Copied,
                    Outcome::Lost => ChangeOutcome::Lost,
                },
                Err(_) => ChangeOutcome::Invalid,
            };
            metrics.changes.of(outcome).increment(1);
            let bytes = ask.value.as_ref().map_or(0, |value| value.bytes.len());
            metrics.bytes.increment(bytes as u64);
        }
    }
}

/// Whether an app may have collections: who may bind an alias may read and change its items.
fn may_have(app: &App) -> Result<(), Error> {
    match app.alias_policy {
        AliasPolicy::Open => return Err(Error::NeedsPolicy),
        AliasPolicy::Signed | AliasPolicy::Server => {}
    }
    if app.seal.is_demanded() {
        let why = "this app seals its payloads, and items of collections are not sealed";
        return Err(Error::Sealed(why));
    }
    Ok(())
}

const NO_COLLECTION: Error = Error::NotFound { what: "collection" };
