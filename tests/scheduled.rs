//! Messages with a time: durable when accepted, sent once when due, or taken back.

use std::{sync::Arc, time::Duration};

use carillon::{
    base::{
        clock::{Clock, DAY_MS},
        ids::{AppId, QueueName, RegId},
        keys::NodeKeys,
        metrics::Metrics,
        tasks,
    },
    config::Config,
    node::core::{Core, Foundation, Pace},
    queue::{
        entry::Body,
        position::{Epoch, Position, Seq},
        store::{Batch, Range, Space, Store, memory::MemoryStore},
    },
    service::{
        Error, Service,
        bind::By,
        deliver::{Following, Take},
        records::AliasPolicy,
        schedule::Cancelled,
        send::{Send, Target, Timing},
    },
};
use tokio::time::{Instant, sleep};

const START_MS: u64 = 1_700_000_000_000;
const HOUR_MS: u64 = 3_600_000;

/// A node's service over a store, at a time.
async fn service_at(store: &Arc<MemoryStore>, unix_ms: u64, config: Config) -> Arc<Service> {
    let foundation = Foundation {
        store: store.clone(),
        mark: None,
        keys: Arc::new(NodeKeys::ephemeral()),
        clock: Clock::starting_at(unix_ms),
        metrics: Arc::new(Metrics::new()),
        pace: Pace::Paced(Box::new(|| Duration::from_millis(3))),
        longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
    };
    Core::build(&config, foundation).await.unwrap().service
}

struct Scene {
    store: Arc<MemoryStore>,
    service: Arc<Service>,
    app: AppId,
    regids: Vec<RegId>,
}

async fn scene(devices: usize) -> Scene {
    let store = Arc::new(MemoryStore::default());
    let service = service_at(&store, START_MS, Config::default()).await;
    let app = service.create_app("app", AliasPolicy::Open).await.unwrap().app_id;
    let made = service.create_devices(&app, devices).await.unwrap();
    let regids = made.into_iter().map(|one| one.regid.unwrap()).collect();
    Scene { store, service, app, regids }
}

impl Scene {
    /// A message to these registrations in so many milliseconds.
    fn later(&self, to: &[RegId], payload: usize, in_ms: u64) -> Send {
        let target = Target::Regids(to.iter().map(RegId::to_string).collect());
        let timing =
            Timing { send_at_ms: Some(self.service.now_ms() + in_ms), ..Timing::default() };
        Send { ttl_s: Some(3_600), timing, ..Send::new(target, payload.to_string()) }
    }

    async fn send(&self, send: Send) -> Result<String, Error> {
        let sent = self.service.send(&self.app, send).await?;
        assert!(sent.is_scheduled);
        Ok(sent.id.to_string())
    }

    fn state(&self, id: &str) -> &'static str {
        self.service.message(&self.app, id).unwrap().state
    }

    /// Another node over what a power cut leaves, at the same time or later.
    async fn after_a_power_cut(&self, kept: usize, later_ms: u64) -> Self {
        self.store.crash(kept);
        let store = Arc::new(copy_of(&self.store));
        let service = service_at(&store, self.service.now_ms() + later_ms, Config::default()).await;
        Self { store, service, app: self.app.clone(), regids: self.regids.clone() }
    }
}

/// What a store holds, for a node of its own: the old one still runs.
fn copy_of(store: &MemoryStore) -> MemoryStore {
    let days = store.days().into_iter().flat_map(|day| [Space::Entries(day), Space::Messages(day)]);
    let mut batch = Batch::default();
    for space in Space::FIXED.into_iter().chain(days) {
        let all = Range { from: Vec::new(), to: None };
        for (key, value) in store.scan(space, &all, usize::MAX).unwrap() {
            batch.put(space, key.to_vec(), value);
        }
    }
    let copy = MemoryStore::default();
    copy.write(&batch).unwrap();
    copy.sync().unwrap();
    copy
}

/// What a queue holds, oldest first.
fn held(service: &Service, queue: QueueName) -> Vec<usize> {
    let start = Position { epoch: Epoch(1), seq: Seq(0) };
    let own = [Following { queue: queue.into(), since: start, control: Seq(0) }];
    let take = Take { entries: 10_000, bytes: usize::MAX };
    let pulled = service.pull(&own, 0, Seq(0), take).unwrap();
    let entries = pulled.map(|pulled| pulled.entries).unwrap_or_default();
    let payload = |body: &Body| match body {
        Body::Message(message) => std::str::from_utf8(&message.payload).unwrap().parse().unwrap(),
        other => panic!("{other:?}"),
    };
    entries.iter().map(|entry| payload(&entry.body)).collect()
}

fn own(regid: &RegId) -> QueueName {
    QueueName::Own(*regid)
}

#[tokio::test(start_paused = true)]
async fn x5_a_message_goes_out_at_its_time_and_lives_from_then_on() {
    let scene = scene(1).await;
    let (service, app, regid) = (&scene.service, &scene.app, &scene.regids[0]);
    let id = scene.send(scene.later(&[*regid], 7, HOUR_MS)).await.unwrap();
    let due_ms = service.message(app, &id).unwrap().due_ms.unwrap();
    let (listed, next) = service.scheduled(app, None, 10).unwrap();
    assert_eq!((listed.len(), next), (1, None));
    assert_eq!((&listed[0].id, listed[0].due_ms), (&id, due_ms));
    sleep(Duration::from_millis(due_ms - 1 - service.now_ms())).await;
    assert_eq!((scene.state(&id), held(service, own(regid))), ("scheduled", vec![]));
    sleep(Duration::from_millis(50)).await;
    assert_eq!((scene.state(&id), held(service, own(regid))), ("queued", vec![7]));
    let names = |id: &str| {
        let trace = service.trace(app, id, &regid.to_string()).unwrap();
        trace.milestones.into_iter().map(|one| format!("{:?}", one.name)).collect::<Vec<_>>()
    };
    assert_eq!(names(&id), ["Accepted", "Due", "Durable", "Pending"]);
    assert_eq!(service.scheduled(app, None, 10).unwrap().0, []);
    assert_eq!(service.cancel(app, &id).await.unwrap(), Cancelled::TooLate);
    let state = service.message(app, &id).unwrap();
    assert_eq!(state.expires_ms, Some(due_ms + HOUR_MS));
    sleep(Duration::from_millis(HOUR_MS - 60)).await;
    assert_eq!(held(service, own(regid)), [7]);
    sleep(Duration::from_millis(60)).await;
    assert_eq!((scene.state(&id), held(service, own(regid))), ("expired", vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_message_is_queued_once_its_entry_is_durable() {
    let scene = scene(1).await;
    let regid = scene.regids[0];
    let id = scene.send(scene.later(&[regid], 7, 5_000)).await.unwrap();
    let mut states = vec![];
    while scene.state(&id) != "queued" {
        states.push(scene.state(&id));
        assert!(states.len() < 6_000, "it is never sent");
        sleep(Duration::from_millis(1)).await;
    }
    states.dedup();
    assert_eq!(states, ["scheduled", "accepted"], "the commit takes time");
    assert_eq!(held(&scene.service, own(&regid)), [7]);
}

#[tokio::test(start_paused = true)]
async fn x5_what_is_taken_back_is_never_sent() {
    let scene = scene(2).await;
    let (service, app, regids) = (&scene.service, &scene.app, &scene.regids);
    let gone = scene.send(scene.later(regids, 1, 5_000)).await.unwrap();
    scene.send(scene.later(regids, 2, 5_000)).await.unwrap();
    let other = service.create_app("other", AliasPolicy::Open).await.unwrap().app_id;
    for (app, id) in [(&other, gone.as_str()), (app, "x"), (app, &"a".repeat(24))] {
        assert!(matches!(service.cancel(app, id).await, Err(Error::NotFound { .. })), "{id}");
    }
    for _ in 0..2 {
        assert_eq!(service.cancel(app, &gone).await.unwrap(), Cancelled::Yes);
    }
    assert_eq!(
        (scene.state(&gone), service.scheduled(app, None, 10).unwrap().0.len()),
        ("cancelled", 1)
    );
    let after = scene.after_a_power_cut(0, 0).await;
    for scene in [&scene, &after] {
        sleep(Duration::from_secs(6)).await;
        assert!(regids.iter().all(|regid| held(&scene.service, own(regid)) == [2]));
        assert_eq!(scene.state(&gone), "cancelled");
        assert_eq!(service.scheduled(app, None, 10).unwrap().0, []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_that_is_past_or_too_far_is_refused_and_so_is_one_too_many() {
    let scene = scene(1).await;
    let to = &scene.regids[..1];
    for in_ms in [0, 30 * DAY_MS + 1] {
        let refused = scene.send(scene.later(to, 1, in_ms)).await;
        assert!(matches!(refused, Err(Error::Invalid { field: "send_at", .. })), "{refused:?}");
    }
    scene.send(scene.later(to, 1, 30 * DAY_MS)).await.unwrap();

    let mut limits = Config::default().limits;
    limits.scheduled_per_app = 3;
    scene.service.reconfigure(limits);
    let second = scene.send(scene.later(to, 2, HOUR_MS)).await.unwrap();
    scene.send(scene.later(to, 3, 1_000)).await.unwrap();
    let is_full =
        async || matches!(scene.send(scene.later(to, 9, 1)).await, Err(Error::Limit { .. }));
    assert!(is_full().await);
    scene.service.cancel(&scene.app, &second).await.unwrap();
    scene.send(scene.later(to, 4, HOUR_MS)).await.unwrap();
    assert!(is_full().await);
    sleep(Duration::from_secs(2)).await;
    scene.send(scene.later(to, 5, HOUR_MS)).await.unwrap();
    assert!(is_full().await, "one place is free once one is sent");
    let (page, next) = scene.service.scheduled(&scene.app, None, 2).unwrap();
    let (rest, end) =
        scene.service.scheduled(&scene.app, Some(&next.unwrap().to_string()), 2).unwrap();
    assert_eq!((page.len(), rest.len(), end), (2, 1, None));
    assert!(page[1].due_ms < rest[0].due_ms, "by their times");
}

#[tokio::test(start_paused = true)]
async fn who_is_a_member_when_it_is_due_gets_it() {
    let scene = scene(2).await;
    let topic = Target::Topic("news".into());
    let send = Send { target: topic, ..scene.later(&[], 5, 60_000) };
    let sent = scene.service.send_all(&scene.app, vec![send]).await.pop().unwrap().unwrap();
    assert!(sent.is_scheduled && sent.matched == 0);
    let regid = scene.regids[0].to_string();
    scene.service.subscribe(&regid, &["news".into()], By::App(&scene.app)).await.unwrap();
    sleep(Duration::from_secs(61)).await;
    let state = scene.service.message(&scene.app, &sent.id.to_string()).unwrap();
    assert_eq!((state.state, state.counts.followers), ("queued", 1));
    let queue = QueueName::Topic(scene.app.clone(), "news".parse().unwrap());
    assert_eq!(held(&scene.service, queue), [5]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_away_sends_what_was_due_and_drops_what_expired_long_ago() {
    let scene = scene(1).await;
    let to = &scene.regids[..1];
    let id = scene.send(scene.later(to, 1, HOUR_MS)).await.unwrap();
    let soon = scene.after_a_power_cut(0, HOUR_MS + 1_000).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!((soon.state(&id), held(&soon.service, own(&to[0]))), ("queued", vec![1]));
    let late = scene.after_a_power_cut(0, 9 * DAY_MS).await;
    sleep(Duration::from_millis(50)).await;
    assert!(matches!(late.service.message(&late.app, &id), Err(Error::NotFound { .. })));
    assert!(held(&late.service, own(&to[0])).is_empty());
    assert_eq!(late.service.scheduled(&late.app, None, 10).unwrap().0, []);
}

#[tokio::test(start_paused = true)]
async fn many_that_are_due_at_once_are_sent_once_each_in_the_order_of_their_times() {
    let scene = scene(3).await;
    let sends = (0..600).map(|n| {
        let to = if n % 2 == 0 { &scene.regids[..1] } else { &scene.regids[..] };
        scene.later(to, n, 10_000 + n as u64)
    });
    let sent = scene.service.send_all(&scene.app, sends.collect()).await;
    assert!(sent.iter().all(|one| one.as_ref().is_ok_and(|sent| sent.is_scheduled)));
    let late = scene.after_a_power_cut(0, 20_000).await;
    sleep(Duration::from_secs(15)).await;
    for scene in [&scene, &late] {
        let odd: Vec<usize> = (0..600).filter(|n| n % 2 == 1).collect();
        assert_eq!(held(&scene.service, own(&scene.regids[0])), (0..600).collect::<Vec<_>>());
        assert_eq!(held(&scene.service, own(&scene.regids[2])), odd);
    }
}

/// The power fails at each millisecond from the send to long after its time, and the disk
/// keeps nothing or something of what it was not told to keep.
#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_moment_neither_loses_nor_doubles_it() {
    for (at_ms, kept) in (0..100).flat_map(|at_ms| [(at_ms, 0), (at_ms, 1)]) {
        let scene = scene(3).await;
        let began = Instant::now();
        let (service, app) = (scene.service.clone(), scene.app.clone());
        let send = scene.later(&scene.regids, 1, 40);
        let sent = tasks::spawn("send", async move { service.send(&app, send).await.is_ok() });
        sleep(Duration::from_millis(at_ms) - began.elapsed().min(Duration::from_millis(at_ms)))
            .await;
        let is_answered = sent.is_finished();
        let after = scene.after_a_power_cut(kept, 0).await;
        sleep(Duration::from_millis(500)).await;
        let copies: Vec<usize> =
            scene.regids.iter().map(|regid| held(&after.service, own(regid)).len()).collect();
        assert!(
            copies == [1, 1, 1] || (copies == [0, 0, 0] && !is_answered),
            "{at_ms} {kept}: {copies:?}"
        );
    }
}
