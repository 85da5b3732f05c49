//! Sockets that say nothing, or little.

use std::time::Duration;

use carillon_wire::mqtt::Version;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{interval, timeout},
};

use crate::flood::{DEADLINE, Scene, client::Client, crowd, scale, size, tell};

/// The first bytes of a TLS ClientHello, which never goes on.
pub const HALF_HELLO: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3];

/// Waits until the node closes a socket that says no more.
async fn until_closed(mut client: Client) -> bool {
    let mut all = Vec::new();
    matches!(timeout(DEADLINE, client.stream.read_to_end(&mut all)).await, Ok(Ok(_) | Err(_)))
}

#[tokio::test]
async fn silent_sockets_of_one_address_hold_its_share_only() {
    let sockets = 300 * scale();
    let edge = "handshakes_max = 64\nhandshake_timeout_ms = 1500\n";
    let mut scene = Scene::with(edge, "handshakes_per_address_max = 16\n").await;
    let (mqtt, mqtts) = (scene.mqtt(), scene.node.listen().mqtts);
    let quiet = scene.quiet().await;
    let flood = crowd(sockets, 100, move |number| async move {
        let to = if number % 2 == 0 { mqtt } else { mqtts };
        let mut client = Client::open(to, Some(1)).await.expect("a socket");
        if number % 2 == 1 {
            client.say_bytes(&HALF_HELLO).await;
        }
        until_closed(client).await
    });
    let (during, all) = scene.served_while(20, flood).await;
    tell(&format!("{sockets} half-open sockets of one address"), &quiet, &during);
    assert!(all.into_iter().all(|is_closed| is_closed), "a silent one stays");
    let (refused, late) =
        (scene.refused("address_handshakes").await, scene.handshakes("timeout").await);
    assert_eq!((refused + late, scene.handshakes("evicted").await), (sockets, 0));
    assert!(late >= 16 && refused > 0, "{refused} refused, {late} too late");
    assert_eq!(scene.metric("carillon_handshakes_in_flight").await, 0);
    scene.end_well().await;
}

#[tokio::test]
async fn silent_sockets_of_many_addresses_give_their_places_to_others() {
    let sockets = 160;
    // By the deadline they would hold all places for a minute.
    let edge = "handshakes_max = 64\nhandshake_timeout_ms = 60000\n";
    let mut scene = Scene::with(edge, "handshakes_per_address_max = 16\n").await;
    let mqtt = scene.mqtt();
    let quiet = scene.quiet().await;
    let mut silent = Vec::new();
    for number in 0..sockets {
        let from = 1 + (number / 16) as u8;
        silent.push(Client::open(mqtt, Some(from)).await.expect("a socket"));
    }
    let (during, ()) = scene.served_while(size(30, 1_000), async {}).await;
    tell(&format!("{sockets} half-open sockets of ten addresses in 64 places"), &quiet, &during);
    let evicted = scene.handshakes("evicted").await;
    assert!(evicted >= sockets - 64, "{evicted} gave way");
    assert_eq!(scene.handshakes("timeout").await, 0);
    drop(silent);
    scene.end_well().await;
}

/// O6: a byte now and then. In the slow set all 5,000, each with ten bytes within the deadline
/// instead of one: more work for the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_connects_are_closed_by_the_deadline_and_cost_little() {
    let (sockets, timeout_ms) = (size(150, 5_000), size(1_200, 10_000));
    let places = sockets + 64;
    let edge = format!(
        "handshakes_max = {places}\ntls_handshakes_max = {places}\n\
         handshake_timeout_ms = {timeout_ms}\n"
    );
    let gate = "handshakes_per_address_max = 0\nconnects_per_address_per_s = 0\n";
    let mut scene = Scene::with(&edge, gate).await;
    let (mqtt, mqtts) = (scene.mqtt(), scene.node.listen().mqtts);
    let quiet = scene.quiet().await;
    let before = scene.memory_kib();
    let pace = Duration::from_millis(timeout_ms as u64 / 10);
    let flood = crowd(sockets, sockets, move |number| async move {
        let to = if number % 3 == 2 { mqtts } else { mqtt };
        let mut client = Client::open_as(to, Some(1), Version::V5).await.expect("a socket");
        let bytes: &[u8] =
            if number % 3 == 2 { &HALF_HELLO } else { b"\x10\xff\x3e\0\x04MQTT\x05\x02\0\x3c\0" };
        let mut pace = interval(pace);
        for byte in bytes.iter().chain(std::iter::repeat_n(&0, 5_000)) {
            pace.tick().await;
            if client.stream.write_all(&[*byte]).await.is_err() {
                return true;
            }
        }
        false
    });
    let (during, all) = scene.served_while(20, flood).await;
    let grown = during.memory_kib.saturating_sub(before);
    tell(&format!("{sockets} slow CONNECTs and ClientHellos"), &quiet, &during);
    println!("{sockets} slow sockets held {grown} KiB at once");
    assert!(all.into_iter().all(|is_closed| is_closed), "a slow one stays");
    let ended = scene.handshakes("timeout").await
        + scene.handshakes("malformed").await
        + scene.handshakes("transport").await;
    assert_eq!(ended, sockets);
    assert!(grown < 16 * sockets + 4_096, "{grown} KiB for {sockets} sockets");
    scene.end_well().await;
}
