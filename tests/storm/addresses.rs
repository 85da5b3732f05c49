//! What one address may do, and no other notices.

use std::time::Instant;

use carillon_wire::mqtt::Version;
use tokio::io::AsyncReadExt;

use crate::{
    flood::{
        Scene,
        client::{Client, Ended},
        count, crowd, scale, size, tell,
    },
    support::{DEADLINE, poll_until},
};

const TOO_FAST: Result<(), Ended> = Err(Ended::Refused { code: 0x9F, retry: true });

#[tokio::test]
async fn a_flood_of_connects_from_one_address_is_told_to_come_back() {
    let connects = 400 * scale();
    let gate = "connects_per_address_per_s = 1\nconnects_per_address_burst = 20\n";
    let mut scene = Scene::with("", gate).await;
    let (mqtt, mqtts) = (scene.mqtt(), scene.node.listen().mqtts);
    let device = scene.node.create_device().await;
    let quiet = scene.quiet().await;
    let flood = crowd(connects, 50, move |number| {
        let device = device.clone();
        async move {
            let version = if number % 4 == 3 { Version::V311 } else { Version::V5 };
            let mut client = Client::open_as(mqtt, Some(1), version).await.expect("a socket");
            let ended = client.connect(&device).await;
            if ended.is_ok() {
                client.leave().await;
            }
            ended
        }
    });
    let (during, all) = scene.served_while(20, flood).await;
    tell(&format!("{connects} connects of one address"), &quiet, &during);
    let welcome = count(&all, Ok(()));
    assert!((20..connects / 2).contains(&welcome), "{welcome} of {connects} were let in");
    let told = count(&all, TOO_FAST);
    let told_311 = count(&all, Err(Ended::Refused { code: 0x88, retry: false }));
    let closed = count(&all, Err(Ended::Closed));
    assert!(told > 0 && told_311 > 0, "{told} and {told_311} were told why");
    assert_eq!(welcome + told + told_311 + closed, connects);
    assert_eq!(scene.refused("address_rate").await, connects - welcome);

    // Before TLS nothing is said; and another address is welcome.
    let mut raw = Client::open(mqtts, Some(1)).await.expect("a socket");
    assert!(matches!(raw.stream.read(&mut [0]).await, Ok(0) | Err(_)));
    let other = scene.node.create_device().await;
    let mut neighbour = Client::open(mqtt, Some(2)).await.expect("a socket");
    assert_eq!(neighbour.connect(&other).await, Ok(()));
    scene.end_well().await;
}

#[tokio::test]
async fn an_address_holds_no_more_connections_than_its_share() {
    let scene = Scene::with("", "connections_per_address_max = 10\n").await;
    let mut held = Vec::new();
    for number in 0..15 {
        let device = scene.node.create_device().await;
        let mut client = Client::open(scene.mqtt(), Some(1)).await.expect("a socket");
        let ended = client.connect(&device).await;
        let wanted =
            if number < 10 { Ok(()) } else { Err(Ended::Refused { code: 0x97, retry: true }) };
        assert_eq!(ended, wanted, "{number}");
        held.push(client);
    }
    assert_eq!(scene.refused("address_connections").await, 5);
    let device = scene.node.create_device().await;
    let mut neighbour = Client::open(scene.mqtt(), Some(2)).await.expect("a socket");
    assert_eq!(neighbour.connect(&device).await, Ok(()));
    // What is given back can be taken again.
    held.truncate(10);
    held.pop().expect("one of them").leave().await;
    // The device is gone a moment before its share is back.
    let next = async || {
        let mut next = Client::open(scene.mqtt(), Some(1)).await.expect("a socket");
        next.connect(&device).await.is_ok().then_some(next)
    };
    assert!(poll_until(DEADLINE, next).await.is_some());
    scene.end_well().await;
}

/// O7: as fast as one process guesses, which is told, instead of 2,000 a second.
#[tokio::test]
async fn an_address_that_guesses_is_no_longer_listened_to() {
    let guesses = size(300, 20_000);
    let mut scene = Scene::with("", "auth_failures_per_address_per_minute = 25\n").await;
    let mqtt = scene.mqtt();
    let device = scene.node.create_device().await;
    let quiet = scene.quiet().await;
    let id = device.device_id.clone();
    let flood = crowd(guesses, 20, move |_| {
        let id = id.clone();
        async move {
            let mut client = Client::open(mqtt, Some(1)).await.expect("a socket");
            client.connect_with(&id, "guessed").await
        }
    });
    let at = Instant::now();
    let (during, all) = scene.served_while(20, flood).await;
    let per_s = guesses as f64 / at.elapsed().as_secs_f64();
    tell(&format!("{guesses} wrong secrets of one address, {per_s:.0}/s"), &quiet, &during);
    let judged = count(&all, Err(Ended::Refused { code: 0x86, retry: false }));
    // What was on its way when the bound was reached is judged, too.
    assert!((25..guesses / 2).contains(&judged), "{judged} of {guesses} were judged");
    assert_eq!(scene.handshakes("bad_credentials").await, judged);
    assert_eq!(scene.refused("address_auth").await, guesses - judged);
    assert_eq!(count(&all, Ok(())), 0);
    // The right secret is not looked at either, and elsewhere it is.
    let mut right = Client::open(mqtt, Some(1)).await.expect("a socket");
    assert_eq!(right.connect(&device).await, TOO_FAST);
    let mut elsewhere = Client::open(mqtt, Some(2)).await.expect("a socket");
    assert_eq!(elsewhere.connect(&device).await, Ok(()));
    scene.end_well().await;
}
