//! A batch over the whole service: each message fares by itself, keeps its place among those to
//! its queue, and is durable when it is answered.

use std::{sync::Arc, time::Duration};

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
        store::memory::MemoryStore,
    },
    service::{
        Error, Service,
        deliver::{Following, Take},
        records::AliasPolicy,
        send::{Send, Target},
    },
};

async fn service(store: &Arc<MemoryStore>) -> Arc<Service> {
    let foundation = Foundation {
        store: store.clone(),
        mark: None,
        keys: Arc::new(NodeKeys::ephemeral()),
        clock: Clock::starting_at(1_700_000_000_000),
        metrics: Arc::new(Metrics::new()),
        pace: Pace::Paced(Box::new(|| Duration::from_millis(3))),
    };
    Core::build(&Config::default(), foundation).await.unwrap().service
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
