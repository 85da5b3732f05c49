//! Pointers are written lazily: none is forgotten on the way, and the newest is what stays.

use std::{sync::Arc, time::Duration};

use carillon::{
    base::{
        clock::Clock,
        ids::{AppId, QueueId, RegId},
        keys::NodeKeys,
        metrics::Metrics,
    },
    config::Config,
    node::core::{Core, Foundation, Pace},
    queue::{
        position::{Epoch, Position, Seq},
        store::{Space, Store, decode, memory::MemoryStore},
    },
    service::{
        allowance::{Delivered, Kind},
        records::Positions,
    },
};
use tokio::time::{sleep, timeout};

const QUEUE: QueueId = QueueId([7; 20]);
/// A commit takes so long.
const COMMIT: Duration = Duration::from_millis(50);

async fn core(store: &Arc<MemoryStore>) -> Core {
    let foundation = Foundation {
        store: store.clone(),
        mark: None,
        keys: Arc::new(NodeKeys::ephemeral()),
        clock: Clock::starting_at(1_700_000_000_000),
        metrics: Arc::new(Metrics::new()),
        pace: Pace::Paced(Box::new(|| COMMIT)),
        longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
    };
    Core::build(&Config::default(), foundation).await.unwrap()
}

fn at(seq: u64) -> Position {
    Position { epoch: Epoch(1), seq: Seq(seq) }
}

fn stored(store: &MemoryStore, regid: &RegId) -> Option<Position> {
    let bytes = store.get(Space::Pointers, regid.as_bytes()).unwrap()?;
    decode::<Positions>(&bytes).unwrap().of(&QUEUE)
}

#[tokio::test(start_paused = true)]
async fn all_that_is_acknowledged_is_written_within_a_second() {
    let store = Arc::new(MemoryStore::default());
    let core = core(&store).await;
    let regids: Vec<RegId> = (0..5_000u16)
        .map(|n| {
            let mut id = [0; 20];
            id[..2].copy_from_slice(&n.to_be_bytes());
            RegId(id)
        })
        .collect();
    for seq in 1..=3 {
        for regid in &regids {
            core.service.acknowledge(regid, QUEUE, at(seq), None);
        }
        sleep(Duration::from_secs(1)).await;
        assert!(regids.iter().all(|regid| stored(&store, regid) == Some(at(seq))), "{seq}");
    }
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_it_is_written_is_written_again() {
    let store = Arc::new(MemoryStore::default());
    let core = core(&store).await;
    // The periodic flush sleeps: this test flushes.
    sleep(Duration::from_millis(10)).await;
    for n in 0..20 {
        let regid = RegId([n; 20]);
        core.service.acknowledge(&regid, QUEUE, at(1), None);
        let change = async {
            sleep(COMMIT / 20 * u32::from(n)).await;
            core.service.acknowledge(&regid, QUEUE, at(2), None);
        };
        let (flushed, ()) = tokio::join!(core.service.flush_pointers(), change);
        flushed.unwrap();
        core.service.flush_pointers().await.unwrap();
        assert_eq!(stored(&store, &regid), Some(at(2)), "{n}");
    }
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_is_dropped_leaves_its_work_to_the_next() {
    let store = Arc::new(MemoryStore::default());
    let core = core(&store).await;
    // The periodic flush sleeps: this test flushes.
    sleep(Duration::from_millis(10)).await;
    for n in 0..20 {
        let regid = RegId([n; 20]);
        core.service.acknowledge(&regid, QUEUE, at(9), None);
        let cut = timeout(COMMIT / 20 * u32::from(n), core.service.flush_pointers()).await;
        assert!(cut.is_err(), "it was cut");
        core.service.flush_pointers().await.unwrap();
        assert_eq!(stored(&store, &regid), Some(at(9)));
    }
    core.stop().await;
}

fn deliveries_left(core: &Core, app: &AppId) -> Option<u64> {
    let all = core.service.allowance(app).unwrap();
    all.iter().find(|one| one.name == "deliveries-day").map(|one| one.left)
}

#[tokio::test(start_paused = true)]
async fn a_delivery_is_counted_once_by_the_flush_of_its_pointer() {
    let store = Arc::new(MemoryStore::default());
    let app: AppId = "demo".parse().unwrap();
    let quota = Config::default().limits.allowance.deliveries_per_day;
    let mut sum = 0;
    for round in 0..20 {
        let core = core(&store).await;
        assert_eq!(deliveries_left(&core, &app), Some(quota - sum), "as the last run left it");
        // The periodic flush sleeps: this test flushes.
        sleep(Duration::from_millis(10)).await;
        for turn in 1..=2 {
            for n in 0..5 {
                let (app, kind) = (app.clone(), Kind::Targets);
                let delivered = Some(Delivered { app, kind, messages: u32::from(n) });
                core.service.acknowledge(&RegId([n; 20]), QUEUE, at(2 * round + turn), delivered);
                sum += u64::from(n);
            }
            let cut = COMMIT / 20 * u32::try_from(round).unwrap();
            assert!(timeout(cut, core.service.flush_pointers()).await.is_err(), "it was cut");
            core.service.flush_pointers().await.unwrap();
            assert_eq!(deliveries_left(&core, &app), Some(quota - sum));
        }
        core.stop().await;
        store.crash(0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_writes_them_all() {
    for ms in 0..100 {
        let store = Arc::new(MemoryStore::default());
        let core = core(&store).await;
        for n in 0..10 {
            core.service.acknowledge(&RegId([n; 20]), QUEUE, at(u64::from(n) + 1), None);
            sleep(Duration::from_millis(ms)).await;
        }
        core.stop().await;
        store.crash(0);
        for n in 0..10 {
            assert_eq!(stored(&store, &RegId([n; 20])), Some(at(u64::from(n) + 1)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_those_who_rest_is_given_back_and_nothing_with_it() {
    let store = Arc::new(MemoryStore::default());
    let core = core(&store).await;
    let (resting, busy) = (RegId([1; 20]), RegId([2; 20]));
    core.service.acknowledge(&resting, QUEUE, at(5), None);
    sleep(Duration::from_secs(1)).await;
    for round in 1..=4 {
        core.service.acknowledge(&busy, QUEUE, at(round), None);
        core.service.shrink();
    }
    core.service.acknowledge(&resting, QueueId([8; 20]), at(3), None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(stored(&store, &busy), Some(at(4)));
    assert_eq!(stored(&store, &resting), Some(at(5)), "what it had in other queues stays");
    core.stop().await;
}
