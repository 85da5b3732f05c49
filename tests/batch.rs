//! A batch over the whole service: each message fares by itself, keeps its place among those to
//! its queue, and is durable when it is answered.

use std::{sync::Arc, time::Duration};

use carillon::{
    base::{
        clock::Clock,
        ids::{AppId, MessageId, QueueName, RegId},
        keys::NodeKeys,
        metrics::Metrics,
    },
    config::Config,
    node::core::{Core, Foundation, Pace},
    queue::{
        entry::Body,
        position::{Epoch, Position, Seq},
        store::memory::MemoryStore,
    },
    service::{
        Error, Service,
        deliver::{Following, Take},
        records::AliasPolicy,
        schedule::Cancelled,
        send::{Asks, Send, Target},
        trace::Step,
    },
};

async fn service(store: &Arc<MemoryStore>) -> Arc<Service> {
    service_of(store, &Config::default()).await
}

async fn service_of(store: &Arc<MemoryStore>, config: &Config) -> Arc<Service> {
    let foundation = Foundation {
        store: store.clone(),
        mark: None,
        keys: Arc::new(NodeKeys::ephemeral()),
        clock: Clock::starting_at(1_700_000_000_000),
        metrics: Arc::new(Metrics::new()),
        pace: Pace::Paced(Box::new(|| Duration::from_millis(3))),
        longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
    };
    Core::build(config, foundation).await.unwrap().service
}

fn send(target: Target, payload: usize) -> Send {
    Send::new(target, payload.to_string())
}

fn to(regid: &RegId) -> Target {
    Target::Regids(vec![regid.to_string()])
}

/// What the registration's own queue holds, oldest first.
fn held(service: &Service, regid: &RegId) -> Vec<usize> {
    let start = Position { epoch: Epoch(1), seq: Seq(0) };
    let queue = QueueName::Own(*regid).into();
    let own = [Following { queue, since: start, control: Seq(0) }];
    let take = Take { entries: 10_000, bytes: usize::MAX };
    let pulled = service.pull(&own, 0, Seq(0), take).unwrap();
    let entries = pulled.map(|pulled| pulled.entries).unwrap_or_default();
    entries
        .iter()
        .map(|entry| match &entry.body {
            Body::Message(message) => {
                std::str::from_utf8(&message.payload).unwrap().parse().unwrap()
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

async fn app_with(service: &Arc<Service>, devices: usize) -> (AppId, Vec<RegId>) {
    let app = service.create_app("app", AliasPolicy::Open).await.unwrap().app_id;
    let made = service.create_devices(&app, devices).await.unwrap();
    (app, made.into_iter().map(|one| one.regid.unwrap()).collect())
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_durable_and_in_order_in_each_queue() {
    let store = Arc::new(MemoryStore::default());
    let service = service(&store).await;
    let (app, regids) = app_with(&service, 7).await;
    let sends = (0..500).map(|n| send(to(&regids[n * n % 7]), n)).collect();
    let results = service.send_all(&app, sends).await;
    assert!(results.len() == 500 && results.iter().all(Result::is_ok));
    store.crash(0);
    let fresh = crate::service(&store).await;
    for (at, regid) in regids.iter().enumerate() {
        let wanted: Vec<usize> = (0..500).filter(|n| n * n % 7 == at).collect();
        assert_eq!(held(&fresh, regid), wanted);
    }
}

#[tokio::test(start_paused = true)]
async fn each_message_of_a_batch_is_found_by_its_id() {
    let store = Arc::new(MemoryStore::default());
    let mut config = Config::default();
    // Each owner keeps what it appends of the call.
    config.store.shard_tasks = 4;
    let service = service_of(&store, &config).await;
    let (app, regids) = app_with(&service, 20).await;
    let other = service.create_app("other", AliasPolicy::Open).await.unwrap().app_id;
    let asking = |n| Send {
        asks: Asks { receipts: n % 7 == 0, callback: None },
        ttl_s: Some(60 + n as u64),
        ..send(to(&regids[n % 20]), n)
    };
    let both = Target::Regids(regids[..2].iter().map(RegId::to_string).collect());
    let sends = (0..100).map(asking).chain([send(both, 100)]).collect();
    let mut results = service.send_all(&app, sends).await;
    let several = results.pop().unwrap().unwrap().id.to_string();
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.crash(0);
    let fresh = service_of(&store, &config).await;
    for (n, sent) in results.into_iter().enumerate() {
        let id = sent.unwrap().id.to_string();
        let state = fresh.message(&app, &id).unwrap();
        assert_eq!((state.state, state.counts.queues, state.counts.appended), ("queued", 1, 1));
        assert_eq!(state.expires_ms.unwrap() - state.accepted_ms, 1_000 * (60 + n as u64));
        let trace = fresh.trace(&app, &id, &regids[n % 20].to_string()).unwrap();
        let durable = trace.milestones.iter().find(|one| one.name == Step::Durable).unwrap();
        assert_eq!(durable.position, Some(format!("1:{}", n / 20 + 1)));
        assert_eq!(fresh.cancel(&app, &id).await.unwrap(), Cancelled::TooLate);
        assert!(matches!(fresh.message(&other, &id), Err(Error::NotFound { .. })));
        assert!(matches!(fresh.cancel(&other, &id).await, Err(Error::NotFound { .. })));
    }
    assert_eq!(fresh.message(&app, &several).unwrap().counts.queues, 2);
    let last: MessageId = several.parse().unwrap();
    let next = MessageId(std::array::from_fn(|at| last.0[at] + u8::from(at == 14)));
    assert!(matches!(fresh.message(&app, &next.to_string()), Err(Error::NotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_refused_costs_the_others_nothing() {
    let store = Arc::new(MemoryStore::default());
    let service = service(&store).await;
    let (app, regids) = app_with(&service, 2).await;
    let nobody = RegId([9; 20]);
    let both = Target::Regids(regids.iter().map(RegId::to_string).collect());
    let sends = vec![
        send(to(&regids[0]), 1),
        send(to(&nobody), 2),
        Send { ttl_s: Some(0), ..send(to(&regids[0]), 3) },
        send(both, 4),
        send(Target::Topic("#".into()), 5),
        send(to(&regids[1]), 6),
    ];
    let results = service.send_all(&app, sends).await;
    assert!(matches!(
        results.as_slice(),
        [
            Ok(_),
            Err(Error::NotFound { .. }),
            Err(Error::Invalid { .. }),
            Ok(_),
            Err(Error::Invalid { .. }),
            Ok(_)
        ]
    ));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(held(&service, &regids[0]), [1, 4]);
    let mut other = held(&service, &regids[1]);
    other.sort_unstable();
    assert_eq!(other, [4, 6]);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_refuses_the_whole_batch() {
    let store = Arc::new(MemoryStore::default());
    let service = service(&store).await;
    let (app, regids) = app_with(&service, 3).await;
    store.fail();
    let sends = (0..30).map(|n| send(to(&regids[n % 3]), n)).collect();
    let results = service.send_all(&app, sends).await;
    assert!(results.iter().all(|result| matches!(result, Err(Error::Unavailable(_)))));
    store.crash(0);
    let fresh = crate::service(&store).await;
    assert!(regids.iter().all(|regid| held(&fresh, regid).is_empty()));
}
