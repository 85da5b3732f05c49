//! Devices of the SDK, a whole gateway and a NAT between them, with the true intervals in paused time.

mod edge_support;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use carillon::{base::tasks, config::Config};
use carillon_sdk::{BoxStream, Credentials, Device, MemoryStore, Received};
use edge_support::{Account, Node};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    time::{Instant, sleep},
};

/// What a NAT lets through, and what it forgets.
struct Nat {
    timeout_s: AtomicU64,
    flows: AtomicU64,
    /// Flows of which a packet came too late.
    drops: AtomicU64,
    /// Packets of two bytes from devices: heartbeats.
    pings: AtomicU64,
}

impl Nat {
    fn new(timeout_s: u64) -> Arc<Self> {
        Arc::new(Self {
            timeout_s: AtomicU64::new(timeout_s),
            flows: AtomicU64::new(0),
            drops: AtomicU64::new(0),
            pings: AtomicU64::new(0),
        })
    }

    fn drops(&self) -> u64 {
        self.drops.load(Ordering::SeqCst)
    }

    fn pings(&self) -> u64 {
        self.pings.load(Ordering::SeqCst)
    }

    /// One flow, until either side ends it.
    async fn pass(self: Arc<Self>, mut device: DuplexStream, mut gateway: DuplexStream) {
        self.flows.fetch_add(1, Ordering::SeqCst);
        let (mut up, mut down) = ([0; 4096], [0; 4096]);
        let mut passed_at = Instant::now();
        loop {
            let (count, is_up) = tokio::select! {
                count = device.read(&mut up) => (count.unwrap_or(0), true),
                count = gateway.read(&mut down) => (count.unwrap_or(0), false),
            };
            self.pings.fetch_add(u64::from(is_up && count == 2), Ordering::SeqCst);
            let timeout = Duration::from_secs(self.timeout_s.load(Ordering::SeqCst));
            if count > 0 && passed_at.elapsed() >= timeout {
                self.drops.fetch_add(1, Ordering::SeqCst);
                return Self::forget(device, gateway).await;
            }
            passed_at = Instant::now();
            let passed = match (count, is_up) {
                (0, _) => return,
                (_, true) => gateway.write_all(&up[..count]).await,
                (_, false) => device.write_all(&down[..count]).await,
            };
            if passed.is_err() {
                return;
            }
        }
    }

    /// Neither side hears of the other again, not even its end.
    async fn forget(device: DuplexStream, gateway: DuplexStream) {
        let swallow = |mut stream: DuplexStream| async move {
            let mut buffer = [0; 4096];
            while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        };
        tokio::join!(swallow(device), swallow(gateway));
    }
}

/// A device on a gateway behind a NAT; what it receives goes to `received`.
async fn device(
    node: &Arc<Node>,
    nat: &Arc<Nat>,
    account: &Account,
    received: &mpsc::Sender<Received>,
) -> Device {
    let (node, nat) = (node.clone(), nat.clone());
    let connector = move || {
        let (ours, theirs) = tokio::io::duplex(16 << 10);
        tasks::spawn("nat", nat.clone().pass(theirs, node.stream(None)));
        std::future::ready(io::Result::Ok(Box::new(ours) as BoxStream))
    };
    let credentials = Credentials { device_id: account.id.clone(), secret: account.secret.clone() };
    Device::builder_with_store(connector, credentials, MemoryStore::default())
        .network("wifi:home".parse().unwrap())
        .seed(7)
        .connect_with({
            let received = received.clone();
            move |one| {
                let received = received.clone();
                // Nobody may want to know.
                async move { drop(received.send(one).await) }
            }
        })
        .await
        .unwrap()
}

async fn hours(hours: u64) {
    sleep(Duration::from_secs(hours * 3_600)).await;
}

#[tokio::test(start_paused = true)]
async fn the_second_device_does_not_pay_what_the_first_one_paid() {
    let mut config = Config::default();
    config.edge.heartbeat_voices_min = 1;
    let node = Arc::new(Node::start_with(config).await);
    let account = node.device().await;
    let nat = Nat::new(300);
    let (received, _) = mpsc::channel(16);
    let first = device(&node, &nat, &account, &received).await;
    hours(2).await;
    let (drops, pings) = (nat.drops(), nat.pings());
    assert_eq!(drops, 2, "it has learned what does not survive");
    hours(10).await;
    let beats = nat.pings() - pings;
    println!("first: {drops} drops, then {beats} heartbeats in 10 h without one");
    assert_eq!(nat.drops(), drops, "and keeps to it");
    assert!((140..=145).contains(&beats), "every 250 s: {beats}");

    let second_nat = Nat::new(300);
    let account = node.device().await;
    let second = device(&node, &second_nat, &account, &received).await;
    hours(1).await;
    let pings = second_nat.pings();
    assert!(pings <= 15, "longer intervals from the fourth heartbeat on: {pings}");
    hours(11).await;
    println!("second: {} drops, {} heartbeats in 12 h", second_nat.drops(), second_nat.pings());
    assert_eq!(second_nat.drops(), 0, "advised in time");
    drop((first, second));
}

/// Eight devices come one after the other, each by a flow of its own through the NAT of the network
/// that all name. The first two find out by drops; what both have survived is what the fleet
/// knows. With the eighth it is large enough to explore, which may cost a drop.
#[tokio::test(start_paused = true)]
async fn later_devices_of_a_network_are_advised_and_lose_fewer_connections() {
    let node = Arc::new(Node::start().await);
    let (received, _) = mpsc::channel(16);
    let (mut drops, mut devices) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let (account, nat) = (node.device().await, Nat::new(300));
        devices.push(device(&node, &nat, &account, &received).await);
        hours(3).await;
        drops.push(nat.drops());
    }
    println!("drops of each in its first three hours: {drops:?}");
    let (first, later) = drops.split_at(2);
    assert_eq!(first, [2, 2], "they learn alone");
    assert!(later.iter().sum::<u64>() <= 2, "{later:?}: they are advised");
}

#[tokio::test(start_paused = true)]
async fn messages_reach_a_device_whose_connection_the_nat_has_killed() {
    let node = Arc::new(Node::start().await);
    let account = node.device().await;
    let nat = Nat::new(100);
    let (received, mut inbox) = mpsc::channel(16);
    let device = device(&node, &nat, &account, &received).await;
    device.online().await.unwrap();
    sleep(Duration::from_secs(150)).await;
    // The flow is forgotten: neither the push nor its nudge arrive.
    node.send(&account, "into the void").await;
    let text = loop {
        if let Some(Received::Message(message)) = inbox.recv().await {
            break message.payload;
        }
    };
    assert_eq!(&text[..], b"into the void", "the next connection brought it");
    assert!(nat.drops() >= 1);
}
