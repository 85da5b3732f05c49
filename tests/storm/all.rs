//! Everybody is cut at once and comes back at once; nothing limits.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use carillon_wire::mqtt::Packet;
use serde_json::json;

use crate::{
    flood::{Scene, client::Client, crowd, size},
    support::Device,
    wirelab::lab::devices,
};

/// Connects and subscribes without waiting, as a device does that resumes.
async fn resume(to: SocketAddr, device: Device) -> (Client, Duration) {
    let at = Instant::now();
    let mut client = Client::open(to, None).await.expect("the node listens");
    client.say_connect(&device.device_id, &device.secret).await;
    client.subscribe().await;
    assert!(matches!(client.hear().await, Ok(Packet::ConnAck(ack)) if ack.reason == 0));
    assert!(matches!(client.hear().await, Ok(Packet::SubAck(_))));
    (client, at.elapsed())
}

/// 10,000 in the slow set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_are_cut_at_once_are_back_and_served() {
    let storm = size(500, 10_000);
    let mut scene = Scene::with("", "").await;
    let mut accounts = Vec::new();
    while accounts.len() < storm {
        accounts.extend(devices(&scene.node, 500).await);
    }
    let to = scene.mqtt();
    let all = |accounts: &Vec<Device>| {
        let accounts = accounts.clone();
        crowd(storm, storm, move |number| resume(to, accounts[number].clone()))
    };
    let first = all(&accounts).await;
    for (client, _) in &first {
        client.stream.set_zero_linger().expect("a TCP socket");
    }
    drop(first);
    let at = Instant::now();
    let back = all(&accounts).await;
    let took = at.elapsed();
    let mut each: Vec<_> = back.iter().map(|(_, took)| *took).collect();
    each.sort_unstable();
    println!("{storm} cut at once are back in {took:?}, one in p99 {:?}", each[storm * 99 / 100]);
    assert_eq!(scene.handshakes("refused").await + scene.handshakes("evicted").await, 0);
    assert_eq!(scene.metric("carillon_connections").await, storm + 8);
    // Each is there: everybody gets the next one.
    scene.node.send(json!({"all": true}), json!(0)).await;
    let served = crowd(storm, storm, {
        let mut back = back.into_iter();
        move |_| {
            let (mut client, _) = back.next().expect("as many");
            async move { matches!(client.hear().await, Ok(Packet::Publish(_))) }
        }
    });
    assert!(served.await.into_iter().all(|is_served| is_served));
    scene.take_broadcast().await;
    scene.end_well().await;
}
