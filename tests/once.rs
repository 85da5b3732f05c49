//! `Idempotency-Key`: a call that is repeated sends nothing twice, whatever cuts in between.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use carillon::{
    base::{
        clock::Clock,
        ids::{AppId, QueueName, RegId},
        keys::NodeKeys,
        metrics::Metrics,
    },
    config::Config,
    node::core::{Core, Foundation, Pace},
    queue::{
        entry::Body,
        position::{Epoch, Position, Seq},
        store::{self, Batch, Range, Record, Space, Store, memory::MemoryStore},
    },
    service::{
        Error, Service,
        deliver::{Following, Take},
        once::{Answer, Once},
        records::AliasPolicy,
        send::{Send, Sent, Target},
    },
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use support::Node;

const START_MS: u64 = 1_700_000_000_000;

/// One process's way to the disk: none once it is dead.
struct Alive {
    store: Arc<MemoryStore>,
    is_dead: Arc<AtomicBool>,
}

impl Alive {
    fn check(&self) -> Result<(), store::Error> {
        match self.is_dead.load(Ordering::Relaxed) {
            true => Err(store::Error::Closed),
            false => Ok(()),
        }
    }
}

impl Store for Alive {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, store::Error> {
        self.store.get(space, key)
    }

    fn scan(&self, space: Space, range: &Range, limit: usize) -> Result<Vec<Record>, store::Error> {
        self.store.scan(space, range, limit)
    }

    fn write(&self, batch: &Batch) -> Result<(), store::Error> {
        self.check()?;
        self.store.write(batch)
    }

    fn sync(&self) -> Result<(), store::Error> {
        self.check()?;
        self.store.sync()
    }

    fn days(&self) -> Vec<u32> {
        self.store.days()
    }

    fn drop_day(&self, day: u32) -> Result<(), store::Error> {
        self.store.drop_day(day)
    }

    fn drop_space(&self, space: Space) -> Result<(), store::Error> {
        self.store.drop_space(space)
    }

    fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }
}

async fn core(store: &Arc<MemoryStore>, keys: &Arc<NodeKeys>, is_dead: &Arc<AtomicBool>) -> Core {
    let foundation = Foundation {
        store: Arc::new(Alive { store: store.clone(), is_dead: is_dead.clone() }),
        mark: None,
        keys: keys.clone(),
        clock: Clock::starting_at(START_MS),
        metrics: Arc::new(Metrics::new()),
        pace: Pace::Paced(Box::new(|| Duration::from_millis(3))),
        longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
    };
    let mut config = Config::default();
    config.store.shard_tasks = 4;
    Core::build(&config, foundation).await.unwrap()
}

/// A service with an app of some devices, each with a shard of its own.
struct Scene {
    store: Arc<MemoryStore>,
    keys: Arc<NodeKeys>,
    service: Arc<Service>,
    is_dead: Arc<AtomicBool>,
    app: AppId,
    regids: Vec<RegId>,
}

impl Scene {
    async fn new(devices: usize) -> Self {
        let (store, keys) = (Arc::default(), Arc::new(NodeKeys::ephemeral()));
        let is_dead = Arc::default();
        let service = core(&store, &keys, &is_dead).await.service;
        let app = service.create_app("app", AliasPolicy::Open).await.unwrap().app_id;
        let made = service.create_devices(&app, devices).await.unwrap();
        let regids = made.into_iter().map(|one| one.regid.unwrap()).collect();
        Self { store, keys, service, is_dead, app, regids }
    }

    /// A power cut that leaves so many of the batches that were not synced.
    async fn crash(&mut self, kept: usize) {
        self.is_dead.store(true, Ordering::Relaxed);
        self.is_dead = Arc::default();
        self.store.crash(kept);
        self.service = core(&self.store, &self.keys, &self.is_dead).await.service;
    }

    fn send(&self, targets: &[usize], payload: usize) -> Send {
        let regids = targets.iter().map(|at| self.regids[*at].to_string()).collect();
        Send::new(Target::Regids(regids), payload.to_string())
    }

    async fn once(&self, targets: &[usize], key: &str, asked: &str) -> Result<Answer, Error> {
        let once = Once::new(&self.app, key, &[asked.as_bytes()]);
        self.service.send_once(&self.app, self.send(targets, 1), &once, answer).await
    }

    /// How often each payload is in the registration's own queue.
    fn held(&self, at: usize) -> BTreeMap<usize, usize> {
        let queue = QueueName::Own(self.regids[at]).into();
        let since = Position { epoch: Epoch(1), seq: Seq(0) };
        let own = [Following { queue, since, control: Seq(0) }];
        let take = Take { entries: 10_000, bytes: usize::MAX };
        let pulled = self.service.pull(&own, 0, Seq(0), take).unwrap();
        let mut held = BTreeMap::new();
        for entry in pulled.map(|pulled| pulled.entries).unwrap_or_default() {
            let Body::Message(message) = &entry.body else { panic!("{entry:?}") };
            let payload = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
            *held.entry(payload).or_default() += 1;
        }
        held
    }
}

fn answer(sent: &Sent) -> Vec<u8> {
    sent.id.to_string().into_bytes()
}

/// The id, however it was answered.
fn id(answer: Result<Answer, Error>) -> String {
    match answer.unwrap() {
        Answer::Fresh(sent) => sent.id.to_string(),
        Answer::Kept(text) => String::from_utf8(text).unwrap(),
    }
}

#[tokio::test(start_paused = true)]
async fn x7_a_repeated_call_is_answered_as_before_and_sends_nothing() {
    let scene = Scene::new(2).await;
    let first = id(scene.once(&[0], "key", "a").await);
    let again = scene.once(&[0], "key", "a").await;
    assert!(matches!(&again, Ok(Answer::Kept(_))), "{again:?}");
    assert_eq!(id(again), first);
    assert!(matches!(scene.once(&[0], "key", "b").await, Err(Error::KeyReused)));
    let other = scene.once(&[1], "other key", "a").await;
    assert_ne!(id(other), first);
    assert_eq!((scene.held(0), scene.held(1)), ([(1, 1)].into(), [(1, 1)].into()));
    // The same key of another app is another key.
    let foreign: AppId = "foreign".parse().unwrap();
    let once = Once::new(&foreign, "key", &[b"a"]);
    let answered = scene.service.send_once(&scene.app, scene.send(&[0], 2), &once, answer).await;
    assert_ne!(id(answered), first);
}

#[tokio::test(start_paused = true)]
async fn of_a_hundred_at_once_one_is_sent_and_the_others_are_told_to_wait() {
    let scene = Scene::new(1).await;
    let all = join_all((0..100).map(|_| scene.once(&[0], "key", "a"))).await;
    let sent = all.iter().filter(|one| matches!(one, Ok(Answer::Fresh(_)))).count();
    let waiting = all.iter().filter(|one| matches!(one, Err(Error::KeyInUse))).count();
    assert_eq!((sent, waiting), (1, 99));
    assert_eq!(scene.held(0), [(1, 1)].into());
    assert!(matches!(scene.once(&[0], "key", "a").await, Ok(Answer::Kept(_))));
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_keeps_nothing() {
    let scene = Scene::new(1).await;
    let once = Once::new(&scene.app, "key", &[b"a"]);
    let wrong = Send { ttl_s: Some(0), ..scene.send(&[0], 1) };
    let refused = scene.service.send_once(&scene.app, wrong, &once, answer).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })));
    assert!(matches!(scene.once(&[0], "key", "now right").await, Ok(Answer::Fresh(_))));
}

#[tokio::test(start_paused = true)]
async fn wherever_a_power_cut_comes_the_repeated_call_makes_it_one_message() {
    for targets in [&[0][..], &[0, 1, 2, 3]] {
        for moment_ms in 0..14 {
            for kept in 0..4 {
                let mut scene = Scene::new(4).await;
                let cut = Duration::from_millis(moment_ms);
                let first = tokio::time::timeout(cut, scene.once(targets, "key", "a")).await;
                scene.crash(kept).await;
                let again = id(scene.once(targets, "key", "a").await);
                if let Ok(first) = first {
                    assert_eq!(id(first), again, "what was answered stays answered");
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                let case = format!("{targets:?}, {moment_ms} ms, {kept} kept");
                for at in targets {
                    assert_eq!(scene.held(*at), [(1, 1)].into(), "{case}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_was_cut_is_completed_without_doubles() {
    let mut seen_partial = false;
    // More than may be on their way to several queues at once, so that they commit in turns.
    let places = || (0..300u16).filter(|at| *at != 7);
    let targets = |at: u16| [usize::from(at % 8), usize::from((at + 1) % 8)];
    for (moment_ms, kept) in [(2, 0), (2, 9), (5, 0), (8, 1), (11, 0), (11, 9), (14, 9)] {
        let mut scene = Scene::new(8).await;
        let once = Once::new(&scene.app, "key", &[b"batch"]);
        let sends = |scene: &Scene| -> Vec<(u16, Send)> {
            places().map(|at| (at, scene.send(&targets(at), at.into()))).collect()
        };
        let call = scene.service.send_all_once(&scene.app, sends(&scene), &once, answer);
        let _ = tokio::time::timeout(Duration::from_millis(moment_ms), call).await;
        scene.crash(kept).await;
        let again = scene.service.send_all_once(&scene.app, sends(&scene), &once, answer).await;
        let again = again.unwrap();
        let before = again.iter().filter(|one| matches!(one, Ok(Answer::Kept(_)))).count();
        seen_partial |= before > 0 && before < places().count();
        let third = scene.service.send_all_once(&scene.app, sends(&scene), &once, answer).await;
        let ids = |results: Vec<Result<Answer, Error>>| results.into_iter().map(id).collect();
        let (again, third): (Vec<_>, Vec<_>) = (ids(again), ids(third.unwrap()));
        assert!(again == third, "{moment_ms} ms, {kept} kept");
        tokio::time::sleep(Duration::from_secs(1)).await;
        for at in 0..8 {
            let is_here = |n: &u16| targets(*n).contains(&at);
            let wanted = places().filter(is_here).map(|n| (n.into(), 1)).collect();
            assert_eq!(scene.held(at), wanted, "{moment_ms} ms, {kept} kept");
        }
        let other = Once::new(&scene.app, "key", &[b"another batch"]);
        let reused = scene.service.send_all_once(&scene.app, Vec::new(), &other, answer).await;
        assert!(matches!(reused, Err(Error::KeyReused)));
    }
    assert!(seen_partial, "no cut left a part of the batch");
}

#[tokio::test(start_paused = true)]
async fn keys_are_kept_for_a_day_and_dropped_with_theirs() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let scene = Scene::new(1).await;
    let first = id(scene.once(&[0], "key", "a").await);
    tokio::time::sleep(HOUR * 23).await;
    assert_eq!(id(scene.once(&[0], "key", "a").await), first);
    tokio::time::sleep(HOUR).await;
    let days = |scene: &Scene| {
        let is_kept = |day: &u32| {
            let all = Range::prefix(b"");
            !scene.store.scan(Space::Once(*day), &all, 1).unwrap().is_empty()
        };
        scene.store.days().into_iter().filter(is_kept).count()
    };
    assert_eq!(days(&scene), 1);
    assert_ne!(id(scene.once(&[0], "key", "another day, another call").await), first);
    tokio::time::sleep(HOUR * 48).await;
    assert_eq!(days(&scene), 0, "the entries' retention is longer");
}

/// What an app server sees of one call: status, whether it is a replay, body.
async fn post(node: &Node, path: &str, key: &str, body: &Value) -> (u16, bool, Value) {
    let request = node.https_client().post(format!("{}{path}", node.https_url()));
    let request = request.bearer_auth(&node.app().app_secret).header("idempotency-key", key);
    let answer = request.json(body).send().await.expect("an answer");
    let (status, is_replay) = (answer.status(), answer.headers().get("idempotency-replayed"));
    let is_replay = is_replay.is_some_and(|value| value == "true");
    (status.as_u16(), is_replay, answer.json().await.expect("JSON"))
}

#[tokio::test]
async fn the_kept_answer_is_the_same_after_a_crash() {
    let mut node = Node::start().await;
    let device = node.create_device().await;
    let (send, batch) = ("/v1/apps/demo/messages", "/v1/apps/demo/messages:batch");
    let to = |payload: u32| json!({"target": {"regids": [device.regid]}, "payload": payload});
    let bodies = [(send, to(1)), (batch, json!({"messages": [to(2), {"target": {}}, to(3)]}))];
    let mut first = Vec::new();
    for (at, (path, body)) in bodies.iter().enumerate() {
        let answered = post(&node, path, &format!("key {at}").replace(' ', "-"), body).await;
        assert!(!answered.1 && answered.0 < 300, "{answered:?}");
        first.push(answered);
    }
    node.kill9();
    node.restart().await;
    for (at, (path, body)) in bodies.iter().enumerate() {
        let key = format!("key-{at}");
        let (status, is_replay, mut again) = post(&node, path, &key, body).await;
        assert!(is_replay, "{again}");
        if *path == batch {
            // A batch's own id is that of the call that answers.
            again["trace_id"] = first[at].2["trace_id"].clone();
        }
        assert_eq!((status, &again), (first[at].0, &first[at].2));
        let (status, _, problem) = post(&node, path, &key, &to(9)).await;
        let wanted = if *path == batch { 400 } else { 422 };
        assert_eq!(status, wanted, "{problem}");
        // The other call's key is another call's, also for the other path.
        let (other, other_body) = &bodies[1 - at];
        let (status, _, problem) = post(&node, other, &key, other_body).await;
        assert_eq!((status, &problem["code"]), (422, &json!("idempotency_key_reused")));
    }
    let head = node.registration(&device.regid).await;
    let own = head["pointers"].as_array().unwrap().iter().find(|one| one["queue"] == "own");
    assert_eq!(own.unwrap()["head"].as_str().unwrap().rsplit(':').next(), Some("3"), "{head}");
}

#[tokio::test]
async fn a_key_is_one_header_of_visible_ascii() {
    let node = Node::start().await;
    let ask = json!({"target": {"all": true}, "payload": 1});
    for wrong in ["", "two words", &"k".repeat(256), "tab\tin", "caf\u{e9}"] {
        let (status, _, problem) = post(&node, "/v1/apps/demo/messages", wrong, &ask).await;
        assert_eq!((status, &problem["field"]), (422, &json!("Idempotency-Key")), "{wrong:?}");
    }
    let longest = "~".repeat(255);
    assert_eq!(post(&node, "/v1/apps/demo/messages", &longest, &ask).await.0, 202);
}
