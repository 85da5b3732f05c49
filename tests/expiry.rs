//! Registrations whose devices stay away end; the devices learn of it and come back; and app
//! servers are told of every regID that is no more, once.

mod edge_support;

use std::{
    future::Future,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use carillon::{
    base::{
        clock::{Clock, DAY_MS},
        ids::MessageId,
    },
    config::Config,
    service::{
        Error,
        bind::By,
        feedback::{Cursor, Invalid, Why},
        send::{Asks, Send, Target},
        trace::Step,
    },
};
use carillon_sdk::{
    BoxStream, Credentials, Device, MemoryStore, QueueName, Received, RegId as Name,
};
use carillon_wire::{
    idl,
    mqtt::{Connect, Version},
};
use edge_support::{Account, Client, Node, up};
use tokio::{sync::mpsc, time::timeout};

const BEGIN_MS: u64 = 1_700_000_000_000;
const WITHIN: Duration = Duration::from_secs(60);

fn on_day(day: u64) -> Clock {
    Clock::starting_at(BEGIN_MS + day * DAY_MS)
}

async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(WITHIN, looking).await.expect("it never came")
}

fn listed(node: &Node) -> Vec<(String, Why)> {
    let page = node.service.invalid_since(&node.app, Cursor::default(), 1_000).unwrap();
    page.invalid.iter().map(|one| (one.regid.to_string(), one.reason)).collect()
}

/// The last thing that happened to a message on its way to a registration.
fn last_step(node: &Node, message: &MessageId, account: &Account) -> Step {
    let trace = node.service.trace(&node.app, &message.to_string(), &regid(account)).unwrap();
    trace.milestones.last().unwrap().name
}

fn regid(account: &Account) -> String {
    account.regid.clone().expect("registered")
}

fn to_topic(topic: &str) -> Send {
    Send::new(Target::Topic(topic.into()), "1")
}

/// A device that has its registration's first deltas and is online.
async fn come(node: &Node, account: &Account) -> Client {
    let connect = Connect { version: Version::V5, ..Connect::default() };
    let mut client = node.connect(account, connect).await;
    client.resume(0).await;
    assert!(client.down().await.ask_positions.is_some());
    let nothing = idl::Positions { registrations: Vec::new(), more: None };
    client.up(idl::Up { positions: Some(nothing), ..up(0) }).await;
    assert!(client.down().await.resumed.is_some());
    client.settle_new(&regid(account)).await;
    client
}

#[tokio::test]
async fn x14_registrations_of_devices_that_stay_away_end_and_others_stay() {
    let node = Node::start_at(Config::default(), on_day(0)).await;
    let (away, here) = (node.device().await, node.device().await);
    for account in [&away, &here] {
        let by = By::App(&node.app);
        node.service.subscribe(&regid(account), &["news".to_owned()], by).await.unwrap();
    }
    drop(come(&node, &away).await);
    node.quiet().await;

    let node = node.again_at(Config::default(), on_day(60)).await;
    let mut client =
        node.connect(&here, Connect { version: Version::V5, ..Connect::default() }).await;
    client.ping().await;
    drop(client);
    node.quiet().await;
    node.service.write_seen().await.unwrap();
    assert_eq!(node.service.expire_registrations().await.unwrap(), 0, "not yet");

    let node = node.again_at(Config::default(), on_day(91)).await;
    let unread = node.service.send(&node.app, to_topic("news")).await.unwrap();
    node.service.expire_registrations().await.unwrap();
    let ended = eventually(|| Some(listed(&node)).filter(|list| !list.is_empty())).await;
    assert_eq!(ended, [(regid(&away), Why::Expired)]);
    let gone = node.service.registration(&node.app, &regid(&away));
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
    assert_eq!(last_step(&node, &unread.id, &away), Step::Invalid);
    let sent = node.service.send(&node.app, to_topic("news")).await.unwrap();
    assert_eq!(sent.matched, 1, "only the one that stays is a member");

    // It is told why, before it is told what it has.
    let mut client =
        node.connect(&away, Connect { version: Version::V5, ..Connect::default() }).await;
    client.resume(1).await;
    assert!(client.down().await.ask_positions.is_some());
    let stated =
        idl::RegistrationPositions { gathered: None, regid: regid(&away), positions: Vec::new() };
    let positions = idl::Positions { registrations: vec![stated], more: None };
    client.up(idl::Up { positions: Some(positions), ..up(0) }).await;
    let reason = Some(idl::EndReason::EXPIRED);
    assert_eq!(client.down().await.ended, Some(idl::Ended { regid: regid(&away), reason }));
    assert_eq!(client.down().await.resumed.and_then(|resumed| resumed.regids), Some(Vec::new()));

    // Two days later neither ends; long after, the list has forgotten.
    let node = node.again_at(Config::default(), on_day(130)).await;
    node.service.sweep_feedback().await.unwrap();
    assert_eq!(listed(&node), []);
}

#[tokio::test]
async fn who_stays_connected_over_days_does_not_end() {
    let mut config = Config::default();
    config.limits.registration_expires_days = 2;
    let node = Node::start_at(config.clone(), on_day(0)).await;
    let device = node.device().await;
    // Its record is of a day that is long over, and it is connected all the time.
    let node = node.again_at(config, on_day(10)).await;
    let mut client =
        node.connect(&device, Connect { version: Version::V5, ..Connect::default() }).await;
    node.service.expire_registrations().await.unwrap();
    node.service.write_seen().await.unwrap();
    node.service.expire_registrations().await.unwrap();
    client.ping().await;
    drop(client);
    node.quiet().await;
    node.service.expire_registrations().await.unwrap();
    assert!(node.service.registration(&node.app, &regid(&device)).is_ok());
    assert_eq!(listed(&node), []);
}

#[tokio::test]
async fn x9_regids_that_are_no_more_are_listed_once_in_pages() {
    let node = Node::start_at(Config::default(), on_day(0)).await;
    let mut ended = Vec::new();
    for _ in 0..5 {
        let device = node.device().await;
        node.service.unregister(&regid(&device), By::App(&node.app)).await.unwrap();
        ended.push((regid(&device), Why::Unregistered));
    }
    let stranger = "a".repeat(32);
    let stated = vec![ended[0].0.clone(), stranger.clone(), "no regid".to_owned()];
    for _ in 0..3 {
        let send = Send { target: Target::Regids(stated.clone()), ..to_topic("x") };
        let refused = node.service.send(&node.app, send).await;
        assert!(matches!(refused, Err(Error::NotFound { .. })), "{refused:?}");
    }
    ended.push((stranger, Why::Unknown));
    eventually(|| (listed(&node).len() >= ended.len()).then_some(())).await;
    assert_eq!(listed(&node), ended, "what ended is not listed again, nor what is no regID");

    let (mut since, mut seen) = (Cursor::default(), Vec::new());
    loop {
        let page = node.service.invalid_since(&node.app, since, 2).unwrap();
        assert!(page.invalid.len() <= 2);
        seen.extend(page.invalid);
        since = page.next;
        if !page.is_more {
            break;
        }
    }
    let seen = seen.iter().map(|Invalid { regid, reason, .. }| (regid.to_string(), *reason));
    assert_eq!(seen.collect::<Vec<_>>(), ended);
    assert_eq!(Cursor::parse(&since.to_string()), Some(since));
    let rest = node.service.invalid_since(&node.app, since, 2).unwrap();
    assert_eq!((rest.invalid.len(), rest.next, rest.is_more), (0, since, false));
    let other = node.service.create_app("other", Default::default()).await.unwrap();
    let others = node.service.invalid_since(&other.app_id, Cursor::default(), 9).unwrap();
    assert_eq!(others.invalid, []);
}

type Shared = Arc<Mutex<Option<Arc<Node>>>>;

/// Reaches the node that is there now.
fn connector(
    shared: &Shared,
) -> impl Fn() -> std::future::Ready<io::Result<BoxStream>> + std::marker::Send + Sync + use<> {
    let shared = shared.clone();
    move || {
        let node = shared.lock().unwrap().clone();
        let stream = node.map(|node| Box::new(node.stream(None)) as BoxStream);
        std::future::ready(stream.ok_or_else(|| io::ErrorKind::ConnectionRefused.into()))
    }
}

async fn device_of(
    shared: &Shared,
    account: &Account,
    store: &MemoryStore,
) -> (Device, mpsc::Receiver<Received>) {
    let credentials = Credentials { device_id: account.id.clone(), secret: account.secret.clone() };
    let (given, received) = mpsc::channel(64);
    let handler = move |one| {
        let given = given.clone();
        async move { given.send(one).await.unwrap() }
    };
    let device = Device::builder_with_store(connector(shared), credentials, store.clone())
        .connect_with(handler)
        .await
        .unwrap();
    timeout(WITHIN, device.online()).await.unwrap().unwrap();
    (device, received)
}

async fn next<T>(what: &str, coming: impl Future<Output = Option<T>>) -> T {
    timeout(WITHIN, coming).await.unwrap_or_else(|_| panic!("no {what}")).expect("it goes on")
}

#[tokio::test]
async fn x14_the_sdk_registers_again_with_aliases_and_topics_and_reports_clicks() {
    let node = Arc::new(Node::start_at(Config::default(), on_day(0)).await);
    let (shared, store) = (Shared::default(), MemoryStore::default());
    *shared.lock().unwrap() = Some(node.clone());
    let account = node.bare_device().await;
    let (device, received) = device_of(&shared, &account, &store).await;
    let register = node.register();
    let expired = device.register(&register.app_id, &register.app_key).await.unwrap();
    device.bind(&expired, "ann", None).await.unwrap();
    device.subscribe(&expired, &["news", "sport"]).await.unwrap();
    // It has heard that it follows them.
    loop {
        let positions = device.positions().await.unwrap();
        if positions.get(&expired).is_some_and(|queues| queues.len() == 5) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    device.shutdown().await;
    drop((device, received));
    *shared.lock().unwrap() = None;
    node.quiet().await;
    let node = Arc::into_inner(node).expect("nobody else has it");

    let node = Arc::new(node.again_at(Config::default(), on_day(91)).await);
    node.service.expire_registrations().await.unwrap();
    eventually(|| (!listed(&node).is_empty()).then_some(())).await;
    *shared.lock().unwrap() = Some(node.clone());
    let (device, mut received) = device_of(&shared, &account, &store).await;
    let renewed = next("successor", received.recv()).await;
    let Received::Renewed { expired: old, regid, left } = renewed else { panic!("{renewed:?}") };
    assert_eq!((old, left), (expired.clone(), Vec::<QueueName>::new()));
    assert_ne!(regid, expired);
    let view = node.service.registration(&node.app, regid.as_str()).unwrap();
    assert_eq!(view.aliases, ["ann"]);
    assert_eq!(view.topics, ["news", "sport"]);

    clicks(&node, &device, &regid, &mut received).await;
    device.shutdown().await;
    *shared.lock().unwrap() = None;
}

/// A click is in the trace once the device has its answer; of what does not ask it is ignored.
async fn clicks(
    node: &Node,
    device: &Device,
    regid: &Name,
    received: &mut mpsc::Receiver<Received>,
) {
    for receipts in [true, false] {
        let asks = Asks { receipts, callback: None };
        let sent = node.service.send(&node.app, Send { asks, ..to_topic("news") }).await.unwrap();
        let message = next("message", received.recv()).await;
        let Received::Message(message) = message else { panic!("{message:?}") };
        for _ in 0..2 {
            device.clicked(regid, &message.id).await.unwrap();
        }
        let trace = node.service.trace(&node.app, &sent.id.to_string(), regid.as_str()).unwrap();
        let trace = serde_json::to_value(trace).unwrap();
        let clicked = |step: &&serde_json::Value| step["name"] == "clicked";
        let count = trace["milestones"].as_array().unwrap().iter().filter(clicked).count();
        assert_eq!(count, usize::from(receipts), "{trace}");
    }
    let stranger = Name::from("a".repeat(32));
    let message = "a".repeat(24).parse().unwrap();
    assert!(device.clicked(&stranger, &message).await.is_err());
}
