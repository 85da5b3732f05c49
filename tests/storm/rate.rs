//! A configured accept rate: those who are refused come back when they are told, and get in at it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use carillon_sdk::{Credentials, Device, Endpoint, MemoryStore};

use crate::{
    flood::{
        Scene,
        client::{Client, Ended},
        crowd, size,
    },
    support::Device as Account,
    wirelab::lab::devices,
};

/// How a device came in.
struct Entry {
    /// How often it was told when to come back.
    told: usize,
    /// How often it was closed without a word.
    silent: usize,
    /// It was let in between these two moments.
    began: Instant,
    ended: Instant,
}

/// Connects until it is let in.
async fn obey(to: SocketAddr, account: Account) -> Entry {
    let (mut told, mut silent) = (0, 0);
    loop {
        let began = Instant::now();
        let mut client = Client::open(to, None).await.expect("a socket");
        match client.connect(&account).await {
            Ok(()) => {
                let ended = Instant::now();
                client.leave().await;
                return Entry { told, silent, began, ended };
            }
            Err(Ended::Refused { code: 0x9F, retry: true }) => told += 1,
            Err(Ended::Closed) => silent += 1,
            Err(other) => panic!("{other:?}"),
        }
        tokio::time::sleep(client.retry_after.unwrap_or(Duration::from_secs(1))).await;
    }
}

/// Between whatever two moments one looks, no more were let in than the rate and its burst allow.
/// Only those count who surely were let in between them, so that a slow machine breaks nothing.
fn assert_rate(entries: &[Entry], per_s: usize, burst: usize) {
    let mut by_end: Vec<&Entry> = entries.iter().collect();
    by_end.sort_unstable_by_key(|entry| entry.ended);
    for from in entries.iter().map(|entry| entry.began) {
        let inside = by_end.iter().filter(|entry| entry.began >= from);
        for (count, entry) in (1..).zip(inside) {
            let window = entry.ended - from;
            let most = (burst + 1) as f64 + per_s as f64 * window.as_secs_f64();
            assert!(f64::from(count) <= most, "{count} were let in in {window:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_comes_back_at_the_accept_rate_and_nobody_is_refused_for_long() {
    const BURST: usize = 50;
    let (storm, rate) = (size(200, 10_000), size(200, 1_000));
    let gate = format!("accepts_per_s = {rate}\naccepts_burst = {BURST}\n");
    let mut scene = Scene::with("", &gate).await;
    let (to, accounts) = (scene.mqtt(), devices(&scene.node, storm).await);
    let at = Instant::now();
    // Everybody is back when this ends.
    let entries = crowd(storm, storm, |number| obey(to, accounts[number].clone())).await;
    let took = at.elapsed();
    let told: usize = entries.iter().map(|entry| entry.told).sum();
    let silent: usize = entries.iter().map(|entry| entry.silent).sum();
    let worst = entries.iter().map(|entry| entry.told + entry.silent).max().expect("some");
    println!(
        "a storm of {storm} at {rate}/s: all in after {took:?}, {told} times told to come back, \
         {silent} times closed, {worst} for one"
    );
    assert_rate(&entries, rate, BURST);
    assert_eq!(scene.refused("accept_rate").await, told + silent);
    assert!(silent <= storm / 10, "{silent} were not told when to come back");
    // Nobody spirals: a time that was given is kept, or nearly, and no handshake grows old.
    assert!(told > 0 && told + silent <= 2 * storm, "{told} refusals of {storm} devices");
    assert!(worst <= 20, "{worst} refusals of one device");
    assert_eq!(scene.handshakes("timeout").await + scene.handshakes("evicted").await, 0);
    scene.is_open = false;
    scene.end_well().await;
}

#[tokio::test]
async fn the_sdk_comes_back_when_it_is_told() {
    let scene = Scene::with("", "accepts_per_s = 20\naccepts_burst = 10\n").await;
    let accounts = devices(&scene.node, 20).await;
    let endpoint: Endpoint = format!("tcp://{}", scene.mqtt()).parse().expect("an endpoint");
    let online = crowd(accounts.len(), accounts.len(), |number| {
        let Account { device_id, secret, .. } = accounts[number].clone();
        let credentials = Credentials { device_id, secret };
        let builder =
            Device::builder_with_store(endpoint.clone(), credentials, MemoryStore::default());
        async move {
            let device = builder.connect_with(|_| std::future::ready(())).await.expect("a state");
            let is_online = device.online().await.is_ok();
            device.shutdown().await;
            is_online
        }
    });
    assert!(online.await.into_iter().all(|is_online| is_online));
    let refused = scene.refused("accept_rate").await;
    assert!(refused > 0 && refused <= 3 * accounts.len(), "{refused} refusals");
}
