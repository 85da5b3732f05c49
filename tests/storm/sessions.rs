//! Many connections for few devices: aborted ones, and takeovers.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use carillon_wire::mqtt::{Ack, Packet, Publish, Qos, Version};
use serde_json::json;

use crate::{
    flood::{
        Scene,
        client::{Client, Ended},
        crowd, size, tell,
    },
    support::{DEADLINE, poll_until},
    wirelab::lab::devices,
};

/// P4: a million in the slow set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_connects_and_subscribes_leave_nothing_behind() {
    let aborts = size(3_000, 1_000_000);
    let mut scene = Scene::with("parked_sessions_max = 50\n", "").await;
    let accounts = devices(&scene.node, 200).await;
    let to = scene.mqtt();
    let storm = |rounds: usize| {
        let accounts = accounts.clone();
        crowd(rounds, 40, move |number| {
            let account = accounts[number % accounts.len()].clone();
            async move {
                let mut client = Client::open(to, None).await.expect("a socket");
                let _ = client.connect(&account).await;
                client.subscribe().await;
                if number % 3 == 0 {
                    let _ = client.hear().await;
                }
                // A reset, not an end in good order.
                client.stream.set_zero_linger().expect("a TCP socket");
            }
        })
    };
    let quiet = scene.quiet().await;
    let (during, _) = scene.served_while(20, storm(aborts / 4)).await;
    tell(&format!("{} connects and subscribes, aborted", aborts / 4), &quiet, &during);
    let before = scene.memory_kib();
    // Nobody is sent anything meanwhile: what is kept of messages is none of theirs.
    storm(aborts).await;
    let grown = scene.memory_kib().saturating_sub(before);
    println!("{aborts} aborted connects: {grown} KiB");
    assert!(grown < 10 << 10, "{grown} KiB");
    let left = async || (scene.metric("carillon_connections").await == 8).then_some(());
    assert!(poll_until(DEADLINE, left).await.is_some(), "connections are left");
    scene.end_well().await;
}

/// P4: 100,000 in the slow set. Only 3.1.1 may send them.
#[tokio::test]
async fn publishes_of_quality_2_with_one_id_that_are_never_released_take_no_room() {
    let publishes = size(5_000, 100_000);
    let gate = "packets_per_s = 0\nrequests_per_s = 0\n";
    let scene = Scene::with("", gate).await;
    let account = devices(&scene.node, 1).await.remove(0);
    let mut client = Client::open_as(scene.mqtt(), None, Version::V311).await.expect("a socket");
    assert_eq!(client.connect(&account).await, Ok(()));
    let publish = Publish {
        topic: "up".into(),
        qos: Qos::ExactlyOnce,
        packet_id: 7,
        payload: Bytes::from_static(b"no frame"),
        ..Publish::default()
    };
    let some = vec![Packet::Publish(publish); 500];
    let mut before = 0;
    for round in 0..publishes / some.len() {
        client.say(&some).await;
        let mut answers = 0;
        while answers < some.len() {
            match client.hear().await {
                Ok(Packet::PubRec(Ack { packet_id: 7, .. })) => answers += 1,
                // The first one is answered besides, once.
                Ok(Packet::Publish(_)) if round == 0 => {}
                other => panic!("{other:?}"),
            }
        }
        if round == 1 {
            before = scene.memory_kib();
        }
    }
    let grown = scene.memory_kib().saturating_sub(before);
    println!("{publishes} publishes with one id: {grown} KiB");
    assert!(grown < 10 << 10, "{grown} KiB");
    scene.end_well().await;
}

/// P5: 100 clients as it says. In the slow set for ten minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeovers_tell_each_loser_and_lose_nothing() {
    const CLIENTS: usize = 100;
    const MESSAGES_MIN: usize = 150;
    let lasts = Duration::from_secs(size(1, 600) as u64);
    let scene = Scene::with("", "packets_per_s = 0\n").await;
    let account = devices(&scene.node, 1).await.remove(0);
    let to = scene.mqtt();
    let (taken, connects) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicUsize::new(0)));
    let (losses, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let fight = {
        let (account, taken, connects) = (account.clone(), taken.clone(), connects.clone());
        let (losses, is_over) = (losses.clone(), is_over.clone());
        tokio::spawn(crowd(CLIENTS, CLIENTS, move |_| {
            let (account, taken, connects) = (account.clone(), taken.clone(), connects.clone());
            let (losses, is_over) = (losses.clone(), is_over.clone());
            async move {
                while !is_over.load(Ordering::Relaxed) {
                    let mut client = Client::open(to, None).await.expect("a socket");
                    let greeted = client.connect(&account).await;
                    assert_eq!(greeted, Ok(()), "a takeover is welcome");
                    connects.fetch_add(1, Ordering::Relaxed);
                    client.subscribe().await;
                    let ended = take(&mut client, &taken).await;
                    assert_eq!(ended, Ended::Disconnected(0x8E), "a loser is told");
                    losses.fetch_add(1, Ordering::Relaxed);
                }
            }
        }))
    };
    let (start, mut messages) = (Instant::now(), 0);
    while messages < MESSAGES_MIN || start.elapsed() < lasts {
        scene.node.send(json!({"regids": [account.regid]}), json!(messages)).await;
        messages += 1;
    }
    is_over.store(true, Ordering::Relaxed);
    // The last owner wins over all who still fight, and takes what they left.
    let mut last = Client::open(to, None).await.expect("a socket");
    while !fight.is_finished() {
        last = Client::open(to, None).await.expect("a socket");
        assert_eq!(last.connect(&account).await, Ok(()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fight.await.expect("no panic");
    assert_eq!(losses.load(Ordering::Relaxed), connects.load(Ordering::Relaxed));
    last.subscribe().await;
    let own = taken.clone();
    let rest = tokio::spawn(async move { take(&mut last, &own).await });
    scene.node.wait_until_acknowledged(&account.regid).await;
    assert_eq!(scene.metric("carillon_connections").await, 8 + 1, "one owner");
    rest.abort();
    let taken = taken.lock().expect("no panic");
    println!("{} takeovers for {messages} messages", losses.load(Ordering::Relaxed));
    assert_eq!(taken.len(), messages, "each message arrived");
    assert_eq!(taken.last(), Some(&(messages as u64 - 1)));
}

/// Takes pushes, in their order, until the connection ends.
async fn take(client: &mut Client, taken: &Mutex<BTreeSet<u64>>) -> Ended {
    let mut before = None;
    loop {
        match client.hear().await {
            Err(ended) => return ended,
            Ok(Packet::Publish(publish)) => {
                let text = std::str::from_utf8(&publish.payload).expect("a number");
                let number: u64 = text.parse().expect("a number of ours");
                assert!(before.is_none_or(|before| before < number), "{number} after {before:?}");
                before = Some(number);
                taken.lock().expect("no panic").insert(number);
                let ack = Ack { packet_id: publish.packet_id, reason: 0 };
                client.say(&[Packet::PubAck(ack)]).await;
            }
            Ok(_) => {}
        }
    }
}
