//! Queues against a naive model, with random operations and crashes.
//!
//! Each seed runs owners, writer and reader over the memory store on paused
//! time. `CARILLON_SEED=n` repeats one, `CARILLON_SEEDS=n` runs more.

#![allow(clippy::disallowed_methods, reason = "tests start tasks and read their settings")]

mod dice;
#[path = "simulation/stage.rs"]
mod stage;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use carillon::{
    base::{
        clock::{Clock, DAY_MS},
        ids::{AppId, MessageId, QueueId, QueueName, Shard, Topic},
        metrics::Metrics,
        tasks::Alarm,
    },
    queue::{
        entry::{Body, Message},
        epochs::Epochs,
        position::{Epoch, Position, Seq},
        reader::{Reader, Take},
        retention::Retention,
        shard::{self, Parts},
        store::{Store, memory::MemoryStore},
        view::Views,
        writer::Writer,
    },
};
use dice::{Dice, seeds};

/// Queues that every life of the node uses, and one that each life begins.
const OLD: usize = 4;
const LIVES: usize = 6;
/// What happens in a life before its end, and then to each old queue.
const STEPS: usize = 40;
const QUEUES: usize = OLD + LIVES;
const DAYS_KEPT: u32 = 3;

/// What is known of one queue: what was answered, and all that was ever tried.
#[derive(Default)]
struct Model {
    /// Answered appends.
    acked: HashMap<Position, u64>,
    /// What any reader ever saw at a position.
    seen: HashMap<Position, u64>,
    violations: Vec<String>,
}

struct Node {
    owner: shard::Handle,
    reader: Reader,
    views: Arc<Views>,
    retention: Retention,
}

async fn start(store: &Arc<MemoryStore>, unix_ms: u64, tail_bytes: u64) -> Node {
    let metrics = Arc::new(Metrics::new());
    let (alarm, _) = Alarm::new();
    let clock = Clock::starting_at(unix_ms);
    let (epochs, recovered) = Epochs::open(store.as_ref(), None).unwrap();
    let (epochs, views) = (Arc::new(epochs), Arc::new(Views::default()));
    let writer = Writer {
        store: store.clone(),
        mark: None,
        epoch: Box::new(|| 0),
        fsync: true,
        metrics: metrics.clone(),
        stamp: recovered.stamp,
        alarm: alarm.clone(),
    };
    let writer = writer.start_paced(|| Duration::from_millis(1));
    let retention = Retention {
        store: store.clone(),
        writer: writer.clone(),
        views: views.clone(),
        clock,
        days: DAYS_KEPT,
        metrics: metrics.clone(),
    };
    retention.sweep().await.unwrap();
    let parts = Parts {
        store: store.clone(),
        views: views.clone(),
        epochs: epochs.clone(),
        clock,
        tail_bytes,
        grown: Arc::new(|_, _| {}),
        changed: Arc::new(|_, _| {}),
        backlog: Arc::default(),
        metrics,
        alarm,
    };
    let reader = Reader::new(store.clone(), views.clone(), epochs);
    Node { owner: shard::start(parts, writer), reader, views, retention }
}

fn queue(n: usize) -> QueueId {
    let app: AppId = "app".parse().unwrap();
    let topic: Topic = format!("t{n}").parse().unwrap();
    QueueName::Topic(app, topic).id()
}

fn message(value: u64) -> Body {
    let payload = Bytes::copy_from_slice(&value.to_be_bytes());
    Body::Message(Message::new(MessageId([0; 15]), payload))
}

fn value(body: &Body) -> u64 {
    let Body::Message(message) = body else { panic!("only messages were appended") };
    u64::from_be_bytes(message.payload.as_ref().try_into().unwrap())
}

type Models = Arc<Mutex<Vec<Model>>>;

/// Appends 1 to 3 entries to a queue in one change; the model learns what was answered.
fn append(node: &Node, models: &Models, n: usize, first: u64, count: u64) {
    let (owner, models) = (node.owner.clone(), models.clone());
    let (reader, views) = (node.reader.clone(), node.views.clone());
    tokio::task::spawn(async move {
        let change = move |txn: &mut carillon::queue::txn::Txn<'_>| {
            let append = |i| Ok((txn.append(queue(n), message(first + i))?, first + i));
            (0..count).map(append).collect::<Result<Vec<_>, shard::Error>>()
        };
        if let Ok(places) = owner.run(change).await {
            let floor = reader.log(&queue(n)).unwrap().floor(views.oldest_day());
            let mut models = models.lock().unwrap();
            for (position, value) in places {
                let twice = models[n].acked.insert(position, value);
                assert_eq!(twice, None, "a place was given twice: {position}");
                if position.seq <= floor {
                    models[n].violations.push(format!("{position} was never held"));
                }
            }
        }
    });
}

/// Reads a queue from `after` on and checks all that the model knows.
fn check(node: &Node, models: &Models, n: usize, after: Seq, entries: usize) {
    let (id, mut models) = (queue(n), models.lock().unwrap());
    let log = node.reader.log(&id).unwrap();
    let floor = log.floor(node.views.oldest_day());
    let read = node.reader.read(&id, after, Take { entries, bytes: usize::MAX }).unwrap();
    let mut expected = after.max(floor).next();
    for entry in &read {
        let place = entry.position;
        // From memory a reader may get what retention hides by now.
        if place.seq < expected && place.seq <= floor {
            continue;
        }
        assert_eq!(place.seq, expected, "a hole in queue {n}");
        assert_eq!(log.epoch_at(place.seq), Some(place.epoch));
        expected = expected.next();
        let model = &mut models[n];
        let now = value(&entry.body);
        let before = *model.seen.entry(place).or_insert(now);
        assert_eq!(before, now, "{place} of queue {n} means two things");
        if let Some(acked) = model.acked.get(&place) {
            assert_eq!(*acked, now, "{place} of queue {n} is not what was answered");
        }
    }
    assert!(!read.is_empty() || after.max(floor) >= log.head(), "nothing came of {after:?}");
}

/// Every answered append above the floor is still there.
fn check_nothing_lost(node: &Node, models: &Models) {
    for n in 0..QUEUES {
        let log = node.reader.log(&queue(n)).unwrap();
        let floor = log.floor(node.views.oldest_day());
        for (place, _) in models.lock().unwrap()[n].acked.iter() {
            assert!(
                place.seq <= log.head(),
                "queue {n} lost {place}, its head is {:?}",
                log.head()
            );
            let epoch = log.epoch_at(place.seq);
            assert!(place.seq <= floor || epoch == Some(place.epoch), "queue {n} replaced {place}");
        }
        check(node, models, n, floor, 10_000);
    }
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn life(
    random: &mut Dice,
    store: &Arc<MemoryStore>,
    models: &Models,
    now_ms: &mut u64,
    fresh: usize,
) {
    let tail_bytes = [0, 2_000, 1 << 20][random.below(3) as usize];
    let node = start(store, *now_ms, tail_bytes).await;
    check_nothing_lost(&node, models);
    let began = tokio::time::Instant::now();
    for _ in 0..STEPS {
        let n = if random.below(8) == 0 { fresh } else { random.below(OLD as u64) as usize };
        match random.below(12) {
            0..=5 => append(&node, models, n, random.below(1 << 40), 1 + random.below(3)),
            6..=8 => check(&node, models, n, Seq(random.below(60)), 1 + random.below(20) as usize),
            9 => {
                // The world moves: a commit may be anywhere on its way now.
                let steps = Duration::from_micros(random.below(3_000));
                tokio::time::sleep(steps).await;
            }
            10 => {
                tokio::time::sleep(Duration::from_millis(random.below(DAY_MS))).await;
                node.retention.sweep().await.unwrap();
            }
            _ => {
                let shard = queue(n).shard();
                let raise = move |txn: &mut carillon::queue::txn::Txn<'_>| {
                    Ok::<Epoch, shard::Error>(txn.advance_epoch(Shard(shard.0)))
                };
                node.owner.run(raise).await.unwrap();
            }
        }
    }
    if random.below(2) == 0 {
        settle().await;
        check_nothing_lost(&node, models);
    }
    // The crash comes between a write and its sync: nobody may have seen it.
    (0..OLD).for_each(|n| append(&node, models, n, random.below(1 << 40), 1));
    tokio::time::sleep(Duration::from_micros(random.below(1_500))).await;
    for n in 0..QUEUES {
        let head = node.reader.log(&queue(n)).unwrap().head();
        check(&node, models, n, head.prev(), 10);
    }
    *now_ms += began.elapsed().as_millis() as u64;
}

fn run(seed: u64) {
    let mut random = Dice::new(seed);
    let store = Arc::new(MemoryStore::default());
    let models: Models = Arc::new(Mutex::new((0..QUEUES).map(|_| Model::default()).collect()));
    let mut now_ms = 20_000 * DAY_MS;
    for fresh in OLD..QUEUES {
        // Dropping the runtime is the crash: every task stops where it is.
        let runtime = stage::paused();
        runtime.block_on(life(&mut random, &store, &models, &mut now_ms, fresh));
        drop(runtime);
        let unsynced = store.unsynced() as u64;
        store.crash(random.below(unsynced + 1) as usize);
        // Somebody sets the clock, by more than what is kept.
        match random.below(6) {
            0 => now_ms -= random.below(2 * DAY_MS),
            1 => now_ms -= random.below(10 * DAY_MS),
            2 => now_ms += random.below(10 * DAY_MS),
            _ => {}
        }
    }
    assert!(!store.days().is_empty());
    let violations: Vec<String> =
        models.lock().unwrap().iter().flat_map(|model| model.violations.clone()).collect();
    assert!(violations.is_empty(), "{violations:?}");
}

#[test]
fn s1_queues_behave_as_the_model_over_crashes() {
    let seeds = seeds(150);
    for seed in seeds.clone() {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(outcome.is_ok(), "failed: repeat with CARILLON_SEED={seed}");
    }
    let steps = seeds.count() * LIVES * (STEPS + OLD);
    println!("{steps} appends, reads, waits, nights and epochs over crashes");
}
