//! A configured accept rate: those who are refused come back when they are told, and get in.

use std::time::{Duration, Instant};

use carillon_sdk::{Credentials, Device, Endpoint, MemoryStore};

use crate::{
    flood::{
        Scene,
        client::{Client, Ended},
        crowd, scale,
    },
    support::Device as Account,
    wirelab::lab::devices,
};

/// Connects until it is let in: how often it was refused, and how often without a word.
async fn obey(to: std::net::SocketAddr, account: Account) -> (usize, usize) {
    let (mut refusals, mut silent) = (0, 0);
    loop {
        let mut client = Client::open(to, None).await.expect("a socket");
        match client.connect(&account).await {
            Ok(()) => {
                client.leave().await;
                return (refusals, silent);
            }
            Err(Ended::Refused { code: 0x9F, retry: true }) => refusals += 1,
            Err(Ended::Closed) => silent += 1,
            Err(other) => panic!("{other:?}"),
        }
        tokio::time::sleep(client.retry_after.unwrap_or(Duration::from_secs(1))).await;
    }
}

#[tokio::test]
async fn a_storm_comes_back_at_the_accept_rate_and_nobody_is_refused_for_long() {
    let storm = 200 * scale();
    let rate = 200 * scale().min(5);
    let gate = format!("accepts_per_s = {rate}\naccepts_burst = 50\n");
    let scene = Scene::with("", &gate).await;
    let (to, accounts) = (scene.mqtt(), devices(&scene.node, storm).await);
    let at = Instant::now();
    let refusals = crowd(storm, storm, |number| obey(to, accounts[number].clone())).await;
    let all: usize = refusals.iter().map(|(told, silent)| told + silent).sum();
    let silent: usize = refusals.iter().map(|(_, silent)| silent).sum();
    let worst = refusals.iter().map(|(told, silent)| told + silent).max().expect("some");
    println!(
        "a storm of {storm} at {rate}/s: {:?}, {all} refusals, {silent} of them silent, \
         at most {worst} for one",
        at.elapsed()
    );
    assert_eq!(scene.refused("accept_rate").await, all);
    assert!(silent <= storm / 10, "{silent} were not told when to come back");
    assert!(all > 0 && all <= 2 * storm, "{all} refusals of {storm} devices");
    drop(scene);
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
