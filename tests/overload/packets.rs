//! Packets that come too fast.

use bytes::Bytes;
use carillon_wire::{
    frame, idl,
    mqtt::{Ack, Packet, Publish, Qos, Unsubscribe, Version},
};

use crate::{
    flood::{
        Scene,
        client::{Client, Ended, subscribe},
        crowd, size, tell,
    },
    support::Device,
    wirelab::lab::devices,
};

const GATE: &str =
    "packets_per_s = 1\npackets_burst = 100\nrequests_per_s = 1\nrequests_burst = 40\n";

/// Floods with this packet until it is closed, on `devices` connections at once.
async fn flood_with(
    scene: &mut Scene,
    what: &str,
    packet: fn(usize) -> Packet,
) -> Vec<(Vec<Packet>, Ended)> {
    let accounts: Vec<Device> = devices(&scene.node, FLOODERS).await;
    let to = scene.mqtt();
    let quiet = scene.quiet().await;
    let flood = crowd(FLOODERS, FLOODERS, move |number| {
        let account = accounts[number].clone();
        async move {
            let version = if number % 2 == 0 { Version::V5 } else { Version::V311 };
            let mut all = Vec::new();
            // It comes again when it was closed.
            for _ in 0..rounds() {
                let mut client = Client::open_as(to, Some(1), version).await.expect("a socket");
                assert_eq!(client.connect(&account).await, Ok(()));
                client.say(&vec![packet(number); 1_000]).await;
                let (heard, ended) = client.hear_out().await;
                all.push((version, heard, ended));
            }
            all
        }
    });
    let (during, all) = scene.served_while(20, flood).await;
    let all: Vec<_> = all.into_iter().flatten().collect();
    tell(&format!("{what} flood, 1,000 each on {} connections", all.len()), &quiet, &during);
    for (version, _, ended) in &all {
        // A reset may overtake the last word: what was sent behind it was not read.
        let is_told = *version == Version::V5 && *ended == Ended::Disconnected(0x96);
        assert!(is_told || *ended == Ended::Closed, "{version:?}: {ended:?}");
    }
    assert!(all.iter().any(|one| one.2 != Ended::Closed), "nobody was told");
    all.into_iter().map(|(_, heard, ended)| (heard, ended)).collect()
}

#[tokio::test]
async fn a_flood_of_pings_ends_its_connection() {
    let mut scene = Scene::with("", GATE).await;
    let all = flood_with(&mut scene, "ping", |_| Packet::PingReq).await;
    for (heard, _) in &all {
        assert!(heard.len() <= 101, "{} answers", heard.len());
    }
    assert_eq!(scene.ended("packet_rate").await, all.len());
    scene.end_well().await;
}

#[tokio::test]
async fn a_flood_of_acknowledgements_for_nothing_ends_its_connection() {
    let mut scene = Scene::with("", GATE).await;
    let ack = |_| Packet::PubAck(Ack { packet_id: 7, reason: 0 });
    let all = flood_with(&mut scene, "acknowledgement", ack).await;
    assert_eq!(scene.ended("packet_rate").await, all.len());
    assert_eq!(scene.metric("carillon_edge_ignored_total{kind=\"unknown_ack\"}").await, {
        all.len() * 101
    });
    scene.end_well().await;
}

#[tokio::test]
async fn a_flood_of_subscriptions_ends_its_connection() {
    let mut scene = Scene::with("", GATE).await;
    let one = |number| {
        let filters = [format!("topic/{number}"), "topic/b".into(), "push".into()];
        if number % 3 > 0 {
            return subscribe(&filters.each_ref().map(String::as_str));
        }
        Packet::Unsubscribe(Unsubscribe { packet_id: 1, filters: filters.to_vec() })
    };
    let all = flood_with(&mut scene, "subscribe", one).await;
    assert_eq!(scene.ended("request_rate").await, all.len());
    let answers: usize = all.iter().map(|(heard, _)| heard.len()).sum();
    assert!(answers <= all.len() * (13 + 1), "{answers} answers to three filters each");
    scene.end_well().await;
}

#[tokio::test]
async fn a_flood_of_frames_ends_its_connection() {
    let mut scene = Scene::with("", GATE).await;
    let bind = |_| {
        let bind = idl::Bind { regid: "x".into(), alias_name: "a".into(), token: None };
        let up = idl::Up { bind: Some(bind), ..idl::Up::default() };
        let mut payload = Vec::new();
        frame::encode_up(&up, &mut payload).expect("a frame of ours");
        Packet::Publish(Publish {
            topic: "up".into(),
            qos: Qos::AtMostOnce,
            payload: Bytes::from(payload),
            ..Publish::default()
        })
    };
    let all = flood_with(&mut scene, "frame", bind).await;
    let ended = scene.ended("request_rate").await;
    assert_eq!((ended, all.len()), (FLOODERS * rounds(), FLOODERS * rounds()));
    scene.end_well().await;
}

#[tokio::test]
async fn a_device_that_is_busy_within_its_bounds_is_served() {
    let scene = Scene::with("", GATE).await;
    let account = scene.node.create_device().await;
    let mut client = Client::open(scene.mqtt(), Some(1)).await.expect("a socket");
    assert_eq!(client.connect(&account).await, Ok(()));
    client.say(&vec![Packet::PingReq; 90]).await;
    for _ in 0..90 {
        assert_eq!(client.hear().await, Ok(Packet::PingResp));
    }
    client.say(&[subscribe(&["push"; 40])]).await;
    assert!(matches!(client.hear().await, Ok(Packet::SubAck(_))));
    scene.end_well().await;
}

/// How often each floods.
fn rounds() -> usize {
    size(1, 100)
}

const FLOODERS: usize = 10;
