//! The storage writer: what it folds is what the queues say, whatever fails between them, and
//! nobody waits for anybody.

mod longterm;
#[path = "storage_writer/lost.rs"]
mod lost;
mod support;
#[path = "uploads/behind.rs"]
mod uploads;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use carillon::{
    base::{
        clock::{Clock, DAY_MS},
        ids::{Alias, AppId, QueueId, QueueName, RegId, Shard},
        keys::NodeKeys,
        metrics::Metrics,
    },
    config::Config,
    longterm::{
        Answer, Commit, Error, Fold, Item, Keys, LongTerm, Name, Past, Step, embedded::Embedded,
    },
    node::core::{Core, Foundation, Pace},
    queue::{
        collection::{change::Value, rule::Rule},
        position::{Epoch, Position, Seq},
        reader::Take,
        store::{Range, Space, Store, memory::MemoryStore},
    },
    service::{
        self, Service, collections,
        deliver::{self, Following},
        items,
        records::AliasPolicy,
        send::{Send, Target},
    },
};
use longterm::reached;

const START_MS: u64 = 1_700_000_000_000;

/// How a long-term store fares.
#[derive(Clone, Copy, PartialEq)]
enum Luck {
    Good,
    /// It refuses.
    Refuses,
    /// It folds and never says so.
    FoldsInSilence,
    /// It never answers.
    Hangs,
}

/// A long-term store whose luck may change.
struct Moody {
    inner: Embedded,
    luck: std::sync::Mutex<Luck>,
    folds: AtomicUsize,
    entries: AtomicUsize,
    is_silent: AtomicBool,
}

impl Moody {
    fn new() -> Arc<Self> {
        let (luck, is_silent) = (std::sync::Mutex::new(Luck::Good), AtomicBool::new(false));
        let (folds, entries) = Default::default();
        Arc::new(Self { inner: Embedded::in_memory(), luck, folds, entries, is_silent })
    }

    fn has(&self, luck: Luck) {
        *self.luck.lock().unwrap() = luck;
    }
}

impl LongTerm for Moody {
    fn fold(&self, folds: Vec<Fold>) -> Answer<'_, ()> {
        Box::pin(async move {
            let luck = *self.luck.lock().unwrap();
            let steps = folds.iter().flat_map(|fold| &fold.queues).map(|queue| queue.steps.len());
            let steps = steps.sum();
            match luck {
                Luck::Refuses => {
                    return Err(Error::Unreachable { step: "fold", cause: "planted".into() });
                }
                Luck::Hangs => std::future::pending().await,
                Luck::Good | Luck::FoldsInSilence => self.inner.fold(folds).await?,
            }
            self.folds.fetch_add(1, Ordering::Relaxed);
            self.entries.fetch_add(steps, Ordering::Relaxed);
            if luck == Luck::FoldsInSilence {
                self.is_silent.store(true, Ordering::Relaxed);
                std::future::pending().await
            }
            Ok(())
        })
    }

    fn pointer(&self, shard: Shard) -> Answer<'_, Commit> {
        self.inner.pointer(shard)
    }

    fn position(&self, queue: QueueId) -> Answer<'_, Option<Position>> {
        self.inner.position(queue)
    }

    fn item(&self, queue: QueueId, name: Name) -> Answer<'_, Option<Item>> {
        self.inner.item(queue, name)
    }

    fn by_key(&self, queue: QueueId, keys: Keys, take: Take) -> Answer<'_, Vec<Item>> {
        self.inner.by_key(queue, keys, take)
    }

    fn newest(&self, queue: QueueId, before: Option<Seq>, take: Take) -> Answer<'_, Vec<Item>> {
        self.inner.newest(queue, before, take)
    }

    fn history(&self, queue: QueueId, after: Seq, take: Take) -> Answer<'_, Vec<Past>> {
        self.inner.history(queue, after, take)
    }

    fn rewind(&self, queue: QueueId, to: Position, restored: Vec<Step>) -> Answer<'_, ()> {
        self.inner.rewind(queue, to, restored)
    }

    fn trim_history(&self, oldest: u32) -> Answer<'_, ()> {
        self.inner.trim_history(oldest)
    }
}

/// A node below its doors, with an app that has collections.
struct Scene {
    store: Arc<MemoryStore>,
    longterm: Arc<dyn LongTerm>,
    keys: Arc<NodeKeys>,
    clock: Clock,
    config: Config,
    core: Option<Core>,
    app: AppId,
}

impl Scene {
    async fn over(longterm: Arc<dyn LongTerm>) -> Self {
        let mut config = Config::default();
        config.longterm.behind_entries_max = 50;
        let mut scene = Self {
            store: Arc::default(),
            longterm,
            keys: Arc::new(NodeKeys::ephemeral()),
            clock: Clock::starting_at(START_MS),
            config,
            core: None,
            app: "app".parse().unwrap(),
        };
        scene.start().await;
        let service = scene.service();
        service.create_app("app", AliasPolicy::Server).await.unwrap();
        service.declare(&scene.app, "notes", Rule::Newest).await.unwrap();
        scene
    }

    async fn start(&mut self) {
        let foundation = Foundation {
            store: self.store.clone(),
            mark: None,
            keys: self.keys.clone(),
            clock: self.clock,
            metrics: Arc::new(Metrics::new()),
            pace: Pace::Paced(Box::new(|| Duration::from_millis(1))),
            longterm: self.longterm.clone(),
        };
        self.core = Some(Core::build(&self.config, foundation).await.unwrap());
    }

    async fn restart(&mut self) {
        self.core.take().unwrap().stop().await;
        self.start().await;
    }

    fn service(&self) -> &Arc<Service> {
        &self.core.as_ref().unwrap().service
    }

    fn alias(number: u8) -> Alias {
        format!("user {number}").parse().unwrap()
    }

    fn queue(&self, number: u8) -> QueueId {
        QueueName::Alias(self.app.clone(), Self::alias(number)).id()
    }

    async fn change(&self, user: u8, key: &str, value: Option<&str>) -> Result<(), service::Error> {
        self.change_in("notes", user, key, value).await
    }

    async fn change_in(
        &self,
        collection: &str,
        user: u8,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), service::Error> {
        let service = self.service();
        let change = collections::Change {
            collection,
            key,
            value: value.map(|value| Value::json(value.to_owned())),
            base: None,
            stamp: service.server_stamp(),
        };
        let ask = service.collections(&self.app)?.ask(change)?;
        service.change(&self.app, &Self::alias(user), vec![ask]).await.map(drop)
    }

    async fn message(&self, user: u8) {
        let target = Target::Aliases(vec![Self::alias(user).to_string()]);
        self.service().send(&self.app, Send::new(target, "1".to_owned())).await.unwrap();
    }

    /// Until nothing waits to be folded.
    async fn all_is_folded(&self) {
        let all = Range::prefix(&[]);
        while !self.store.scan(Space::Unfolded, &all, 1).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Until changes are accepted again.
    async fn changes_again(&self) {
        while let Err(error) = self.change(0, "again", Some("1")).await {
            assert!(matches!(error, service::Error::StorageBehind), "{error:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The fold of each user's queue is what the queue's items say.
    async fn fold_equals_queue(&self, users: u8) {
        for user in 0..users {
            longterm::fold_equals_queue(
                self.store.as_ref(),
                self.longterm.as_ref(),
                self.queue(user),
            )
            .await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn changes_and_messages_of_queues_with_collections_are_folded_in_order() {
    let scene = Scene::over(Arc::new(Embedded::in_memory())).await;
    for round in 0..30 {
        let user = round % 3;
        let key = ["a", "b", "c", "d"][usize::from(round / 3 % 4)];
        let value = (round % 5 != 4).then_some("{}");
        scene.change(user, key, value).await.unwrap();
        scene.message(user).await;
    }
    // A queue that has no collection is nothing for the writer.
    scene.message(7).await;
    scene.all_is_folded().await;
    scene.fold_equals_queue(3).await;
    assert_eq!(scene.longterm.position(scene.queue(7)).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn i6_a_stuck_writer_slows_neither_messages_nor_devices_and_changes_wait_past_the_limit() {
    let moody = Moody::new();
    let scene = Scene::over(moody.clone()).await;
    scene.change(0, "a", Some("1")).await.unwrap();
    scene.all_is_folded().await;
    for luck in [Luck::Refuses, Luck::Hangs] {
        moody.has(luck);
        let mut accepted = 0;
        let refused = loop {
            let key = format!("k{accepted}");
            match scene.change(0, &key, Some("1")).await {
                Ok(()) => accepted += 1,
                Err(error) => break error,
            }
            assert!(accepted < 100, "it ends");
        };
        assert!(matches!(refused, service::Error::StorageBehind), "{refused:?}");
        assert_eq!(accepted, 51, "one more than may wait");
        let head = head_given_to_a_device(&scene);
        for _ in 0..50 {
            scene.message(0).await;
        }
        assert_eq!(head_given_to_a_device(&scene), head + 50);
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert!(scene.change(0, "a", Some("2")).await.is_err(), "still behind");
        moody.has(Luck::Good);
        if luck == Luck::Refuses {
            scene.all_is_folded().await;
            scene.fold_equals_queue(1).await;
            scene.changes_again().await;
            scene.all_is_folded().await;
        }
    }
}

/// The newest entry that a follower of user 0 is given.
fn head_given_to_a_device(scene: &Scene) -> u64 {
    let queue = QueueName::Alias(scene.app.clone(), Scene::alias(0)).into();
    let since = Position { epoch: Epoch(1), seq: Seq(0) };
    let following = [Following { queue, since, control: Seq(0) }];
    let take = deliver::Take { entries: 10_000, bytes: usize::MAX };
    let pulled = scene.service().pull(&following, 0, Seq(0), take).unwrap().unwrap();
    pulled.entries.last().unwrap().position.seq.0
}

#[tokio::test(start_paused = true)]
async fn i6_a_device_that_is_stuck_for_hours_does_not_slow_the_writer() {
    let scene = Scene::over(Moody::new()).await;
    let devices = scene.service().create_devices(&scene.app, 1).await.unwrap();
    let regid: RegId = devices[0].regid.unwrap();
    let service = scene.service();
    let by = service::bind::By::App(&scene.app);
    service.bind(&regid.to_string(), Scene::alias(0).as_str(), by).await.unwrap();
    for round in 0..200 {
        scene.change(0, &format!("k{}", round % 7), Some("1")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let waiting = scene.store.scan(Space::Unfolded, &Range::prefix(&[]), 9).unwrap();
        assert!(waiting.is_empty(), "round {round}");
    }
    scene.fold_equals_queue(1).await;
}

#[tokio::test(start_paused = true)]
async fn s15_what_is_not_folded_is_not_trimmed() {
    let moody = Moody::new();
    let mut scene = Scene::over(moody.clone()).await;
    scene.change(1, "folded", Some("1")).await.unwrap();
    scene.all_is_folded().await;
    moody.has(Luck::Refuses);
    scene.change(0, "a", Some("1")).await.unwrap();
    let oldest = |scene: &Scene| scene.store.days()[0];
    let first = oldest(&scene);
    scene.clock = Clock::starting_at(START_MS + 10 * DAY_MS);
    scene.restart().await;
    assert_eq!(oldest(&scene), first, "ten days later, three more than are kept");
    scene.message(0).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(oldest(&scene), first, "after further sweeps too");
    moody.has(Luck::Good);
    scene.all_is_folded().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(oldest(&scene), first + 10);
    scene.fold_equals_queue(2).await;
}

#[tokio::test(start_paused = true)]
async fn values_beyond_retention_come_from_long_term_storage() {
    let mut scene = Scene::over(Moody::new()).await;
    scene.service().declare(&scene.app, "merged", Rule::Merge).await.unwrap();
    scene.change_in("merged", 0, "a", Some(r#"{"x":1}"#)).await.unwrap();
    scene.change(0, "b", Some("7")).await.unwrap();
    scene.all_is_folded().await;
    let first = scene.store.days()[0];
    scene.clock = Clock::starting_at(START_MS + 10 * DAY_MS);
    scene.restart().await;
    assert!(!scene.store.days().contains(&first), "the entries are gone");
    let values = async |scene: &Scene| {
        let alias = Scene::alias(0);
        let page = scene.service().items(&scene.app, &alias, None, 9).await.unwrap();
        let text = |value: &Value| String::from_utf8(value.bytes.to_vec()).unwrap();
        page.items.iter().map(|item| text(&item.value)).collect::<Vec<_>>()
    };
    assert_eq!(values(&scene).await, [r#"{"x":1}"#, "7"]);
    scene.change_in("merged", 0, "a", Some(r#"{"y":2}"#)).await.unwrap();
    assert_eq!(values(&scene).await, [r#"{"x":1,"y":2}"#, "7"]);
    scene.all_is_folded().await;
    scene.fold_equals_queue(1).await;
}

#[tokio::test(start_paused = true)]
async fn changes_beyond_retention_come_from_history() {
    let mut scene = Scene::over(Moody::new()).await;
    for (key, value) in [("a", Some("1")), ("b", Some("2")), ("a", Some("3")), ("b", None)] {
        scene.change(0, key, value).await.unwrap();
    }
    scene.message(0).await;
    scene.all_is_folded().await;
    let first = scene.store.days()[0];
    scene.clock = Clock::starting_at(START_MS + 10 * DAY_MS);
    scene.restart().await;
    assert!(!scene.store.days().contains(&first), "the entries are gone");
    scene.change(0, "c", Some("4")).await.unwrap();
    let after = async |epoch: u32, seq: u64, limit: usize| {
        let at = Position { epoch: Epoch(epoch), seq: Seq(seq) };
        scene.service().changes_after(&scene.app, &Scene::alias(0), at, limit).await
    };
    let seqs = |page: &items::ChangesPage| {
        page.entries.iter().map(|entry| entry.position.seq.0).collect::<Vec<_>>()
    };
    let epoch =
        scene.service().items(&scene.app, &Scene::alias(0), None, 1).await.unwrap().at.epoch;
    // What came and went unseen is left out, and of an item only the newest change is there.
    let page = after(epoch.0, 1, 9).await.unwrap();
    assert_eq!((seqs(&page), page.to.seq, page.is_more), (vec![3, 6], Seq(6), false));
    let page = after(epoch.0, 2, 1).await.unwrap();
    assert_eq!((seqs(&page), page.is_more), (vec![3], true));
    let page = after(epoch.0, page.to.seq.0, 1).await.unwrap();
    assert_eq!((seqs(&page), page.is_more), (vec![4], true), "it was there at 2");
    let page = after(epoch.0, page.to.seq.0, 1).await.unwrap();
    assert_eq!((seqs(&page), page.is_more), (vec![6], false));
    let other = after(epoch.0 + 7, 2, 9).await;
    assert!(matches!(other, Err(service::Error::Gone)), "an epoch that never was");
}

#[tokio::test(start_paused = true)]
async fn what_was_folded_before_a_crash_is_not_folded_again() {
    let moody = Moody::new();
    let mut scene = Scene::over(moody.clone()).await;
    scene.change(0, "a", Some("1")).await.unwrap();
    scene.all_is_folded().await;
    moody.has(Luck::FoldsInSilence);
    scene.change(0, "a", Some("2")).await.unwrap();
    scene.message(0).await;
    while !moody.is_silent.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let entries = moody.entries.load(Ordering::Relaxed);
    scene.restart().await;
    moody.has(Luck::Good);
    scene.restart().await;
    scene.all_is_folded().await;
    scene.fold_equals_queue(1).await;
    let again = moody.entries.load(Ordering::Relaxed) - entries;
    assert!(again + entries == 3, "each entry once, but {entries} and {again}");
    scene.change(0, "b", Some("1")).await.unwrap();
    scene.all_is_folded().await;
    scene.fold_equals_queue(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_far_behind_catches_up() {
    let moody = Moody::new();
    let mut scene = Scene::over(moody.clone()).await;
    scene.config.longterm.behind_entries_max = 1_000_000;
    moody.has(Luck::Refuses);
    scene.restart().await;
    for round in 0..3_000_u32 {
        let key = (round % 97).to_string();
        scene.change((round % 40) as u8, &key, Some(&round.to_string())).await.unwrap();
    }
    scene.restart().await;
    moody.has(Luck::Good);
    scene.all_is_folded().await;
    scene.fold_equals_queue(40).await;
    assert!(moody.folds.load(Ordering::Relaxed) < 300, "many in one fold");
}

#[tokio::test]
async fn while_postgres_is_down_messages_flow_and_later_all_is_folded() {
    let mut server = support::postgres::Postgres::start();
    let mut scene = Scene::over(reached(&server)).await;
    for user in 0..5 {
        scene.change(user, "a", Some("1")).await.unwrap();
    }
    scene.all_is_folded().await;
    scene.fold_equals_queue(5).await;
    server.stop();
    let mut accepted = 0;
    while scene.change(accepted % 5, &accepted.to_string(), Some("2")).await.is_ok() {
        accepted += 1;
    }
    assert_eq!(accepted, 51);
    for user in 0..5 {
        scene.message(user).await;
    }
    // A node starts without it.
    scene.restart().await;
    assert!(scene.change(0, "x", None).await.is_err());
    scene.message(0).await;
    server.restart();
    scene.all_is_folded().await;
    scene.fold_equals_queue(5).await;
    scene.changes_again().await;
}
