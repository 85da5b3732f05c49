//! MQTT 3.1.1 and 5 byte by byte, part three: what outlives a connection, and how
//! connections end: sessions, restarts, keep-alive, takeover, drain.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::time::{Duration, Instant};

use serde_json::json;
use support::{Device, Node, Options};
use tokio::task::JoinSet;
use wirelab::{
    bytes::{Connect, VERSIONS, Version, disconnect_with, session_expiry},
    frames::{self, Framed},
    lab::{Witness, devices, send_numbers},
    seen::{Push, Seen},
    wire::{DEADLINE, Wire, device_connect},
};

use Version::{V5, V311};

/// A session that outlives its connection.
fn persistent(device: &Device, version: Version) -> Connect {
    device_connect(device, version).persistent(600)
}

/// Connects; whether a session was there.
async fn come_back(node: &Node, connect: &Connect) -> (Wire, bool) {
    let (wire, connack) = Wire::greet(node.listen().mqtt, connect).await;
    assert_eq!(connack.code, 0);
    (wire, connack.is_present)
}

fn texts(pushes: &[Push]) -> Vec<String> {
    pushes.iter().map(Push::text).collect()
}

async fn pushes(wire: &mut Wire, count: usize) -> Vec<Push> {
    let mut pushes = Vec::new();
    while pushes.len() < count {
        pushes.push(wire.push().await);
    }
    pushes
}

#[tokio::test]
async fn a_clean_start_begins_with_the_newest() {
    let node = Node::start().await;
    for version in VERSIONS {
        let device = node.create_device().await;
        node.subscribe(&device.regid, "news").await;
        send_numbers(&node, &device.regid, 0..3).await;
        node.send(json!({"topic": "news"}), json!("old")).await;
        node.send(json!({"all": true}), json!("old")).await;
        let (mut wire, is_present) = come_back(&node, &device_connect(&device, version)).await;
        assert!(!is_present);
        assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
        node.wait_until_acknowledged(&device.regid).await;
        send_numbers(&node, &device.regid, 3..5).await;
        assert_eq!(texts(&wire.take(2).await), ["3", "4"]);
        assert_eq!(wire.settle().await, []);
    }
}

#[tokio::test]
async fn a_session_brings_what_was_missed_with_or_without_state_in_memory() {
    let node = Node::start().await;
    for (version, expiry_s, is_kept) in [(V311, 0, true), (V5, 600, true), (V5, 0, false)] {
        let device = node.create_device().await;
        let connect = device_connect(&device, version).persistent(expiry_s);
        let (mut wire, is_present) = come_back(&node, &connect).await;
        assert!(!is_present, "nothing was there");
        assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
        send_numbers(&node, &device.regid, 0..2).await;
        assert_eq!(texts(&wire.take(2).await), ["0", "1"]);
        wire.disconnect().await;
        send_numbers(&node, &device.regid, 2..40).await;
        let (mut wire, is_present) = come_back(&node, &connect).await;
        assert_eq!(is_present, is_kept, "{version:?} {expiry_s}");
        if !is_kept {
            assert_eq!(wire.settle().await, [], "not subscribed");
            assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
        }
        let got = wire.take(38).await;
        assert!(got.iter().all(|push| !push.is_dup));
        let wanted: Vec<String> = (2..40).map(|number| number.to_string()).collect();
        assert_eq!(texts(&got), wanted);
        assert_eq!(wire.settle().await, []);
    }
}

#[tokio::test]
async fn what_is_unacknowledged_comes_again_with_dup_and_its_id_in_order() {
    let node = Node::start().await;
    for version in VERSIONS {
        let device = node.create_device().await;
        let connect = persistent(&device, version);
        let (mut wire, _) = come_back(&node, &connect).await;
        assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
        send_numbers(&node, &device.regid, 0..6).await;
        let first = pushes(&mut wire, 6).await;
        wire.ack(first[0].id).await;
        wire.ack(first[3].id).await;
        assert_eq!(wire.settle().await, []);
        drop(wire);
        send_numbers(&node, &device.regid, 6..8).await;
        node.wait_until_online(&device.regid, false).await;
        for _ in 0..3 {
            let (mut wire, is_present) = come_back(&node, &connect).await;
            assert!(is_present);
            let again = pushes(&mut wire, 6).await;
            assert_eq!(texts(&again), ["1", "2", "4", "5", "6", "7"]);
            let ids = |pushes: &[Push]| pushes.iter().map(|push| push.id).collect::<Vec<_>>();
            let old: Vec<u16> = [1, 2, 4, 5].map(|at: usize| first[at].id).into();
            assert_eq!(ids(&again[..4]), old);
            assert!(again[..4].iter().all(|push| push.is_dup));
            assert!(!ids(&again[4..]).iter().any(|id| old.contains(id)), "new ones have new ids");
            drop(wire);
            node.wait_until_online(&device.regid, false).await;
        }
        let (mut wire, _) = come_back(&node, &connect).await;
        wire.take(6).await;
        node.wait_until_acknowledged(&device.regid).await;
        assert_eq!(wire.settle().await, []);
    }
}

#[tokio::test]
async fn after_a_restart_there_is_no_session_and_nothing_is_lost() {
    let mut node = Node::start().await;
    for is_killed in [false, true] {
        let mut wires = Vec::new();
        for version in VERSIONS {
            let device = node.create_device().await;
            let (mut wire, _) = come_back(&node, &persistent(&device, version)).await;
            assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
            send_numbers(&node, &device.regid, 0..5).await;
            let open = pushes(&mut wire, 5).await;
            wire.ack(open[0].id).await;
            assert_eq!(wire.settle().await, []);
            wires.push((wire, device));
        }
        if is_killed {
            node.kill9();
        } else {
            node.signal("TERM");
            for (wire, _) in &mut wires {
                wire.must_end(0x8B).await;
            }
            assert!(node.wait_for_exit().await.success());
        }
        node.restart().await;
        for (_, device) in &wires {
            for version in VERSIONS {
                let (mut wire, is_present) = come_back(&node, &persistent(device, version)).await;
                assert_eq!(is_present, version == V5, "the session of the connection before");
                if !is_present {
                    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
                }
                let again = pushes(&mut wire, 4).await;
                let from = usize::from(texts(&again)[0] == "1");
                let wanted = ["0", "1", "2", "3", "4"];
                assert_eq!(texts(&again), wanted[from..from + 4]);
                let is_dup = again.iter().all(|push| push.is_dup);
                assert_eq!(is_dup, is_present, "redelivery after a restart is a first delivery");
                drop(wire);
                node.wait_until_online(&device.regid, false).await;
            }
        }
    }
}

#[tokio::test]
async fn a_session_ends_by_clean_start_by_its_expiry_and_by_disconnect() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let park = async |connect: &Connect, goodbye: Option<Vec<u8>>| {
        let (mut wire, is_present) = come_back(&node, connect).await;
        assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
        if let Some(bytes) = goodbye {
            wire.send(bytes).await;
            wire.until_closed().await;
        }
        drop(wire);
        node.wait_until_online(&device.regid, false).await;
        is_present
    };
    let kept = persistent(&device, V5);
    assert!(!park(&kept, None).await);
    assert!(park(&kept, None).await, "it was parked");
    assert!(!park(&device_connect(&device, V5), None).await);
    assert!(!park(&kept, None).await, "a clean start ended it");
    let over = disconnect_with(0, &session_expiry(0));
    assert!(park(&kept, Some(over)).await);
    assert!(!park(&kept, None).await, "DISCONNECT ended it");
    let later = disconnect_with(0, &session_expiry(1_200));
    assert!(park(&kept, Some(later)).await);
    assert!(park(&kept, Some(disconnect_with(4, &[]))).await, "DISCONNECT may prolong it");
    assert!(park(&kept, None).await, "also one with Will");
    let brief = device_connect(&device, V5).persistent(1);
    assert!(park(&brief, None).await, "the newest CONNECT decides");

    // Coming back takes a session, so that each look needs one of its own.
    let brief: Vec<Device> = devices(&node, 60).await;
    for device in &brief {
        let (mut wire, _) = come_back(&node, &device_connect(device, V5).persistent(1)).await;
        assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
        wire.disconnect().await;
    }
    let mut left = brief.iter();
    let expired = support::poll_until(DEADLINE, async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let device = left.next().expect("sessions of one second end");
        (!come_back(&node, &persistent(device, V5)).await.1).then_some(())
    });
    assert!(expired.await.is_some());
}

const KEEP_ALIVE: &str = "[edge]\nkeep_alive_min_s = 1\nkeep_alive_max_s = 2\n";

#[tokio::test]
async fn silence_ends_the_connection_after_one_and_a_half_keep_alives() {
    let options = Options { config: Some(KEEP_ALIVE.into()), ..Options::default() };
    let node = Node::start_with(options).await;
    let made = devices(&node, 4).await;
    let cases = [(V5, 1, None), (V5, 0, Some(2)), (V5, 600, Some(2)), (V311, 1, None)];
    let mut silent = Vec::new();
    for (device, (version, asked, told)) in made.iter().zip(cases) {
        let connect = Connect { keep_alive_s: asked, ..device_connect(device, version) };
        let (wire, connack) = Wire::greet(node.listen().mqtt, &connect).await;
        assert_eq!(connack.number(0x13), told, "asked for {asked} s");
        silent.push((wire, told.unwrap_or(1)));
    }
    let device = node.create_device().await;
    let connect = Connect { keep_alive_s: 1, ..device_connect(&device, V5) };
    let mut awake = Wire::connect(&node, &connect).await;
    let began = Instant::now();
    let mut left = silent.len();
    let mut watching = JoinSet::new();
    for (mut wire, keep_alive_s) in silent {
        watching.spawn(async move {
            wire.must_end(0x8D).await;
            let granted = Duration::from_secs(u64::from(keep_alive_s)) * 3 / 2;
            assert!(began.elapsed() >= granted, "closed too early");
        });
    }
    let mut pings = tokio::time::interval(Duration::from_millis(300));
    while left > 0 {
        tokio::select! {
            ended = watching.join_next() => {
                ended.expect("one is left").expect("the connection ended as it should");
                left -= 1;
            }
            _ = pings.tick() => assert_eq!(awake.ping().await, [], "who speaks stays"),
        }
    }
}

#[tokio::test]
async fn the_older_connection_is_told_and_gets_nothing_more() {
    let node = Node::start().await;
    for (old, new) in [(V5, V5), (V311, V5), (V5, V311), (V311, V311)] {
        let device = node.create_device().await;
        let (mut older, _) = come_back(&node, &persistent(&device, old)).await;
        assert_eq!(older.subscribe(&["push"], 1).await, [1]);
        send_numbers(&node, &device.regid, 0..2).await;
        let open = pushes(&mut older, 2).await;
        let (mut newer, is_present) = come_back(&node, &persistent(&device, new)).await;
        assert!(is_present, "the session moves over");
        send_numbers(&node, &device.regid, 2..4).await;
        let got = newer.take(4).await;
        assert_eq!(texts(&got), ["0", "1", "2", "3"]);
        let ids = |pushes: &[Push]| pushes.iter().map(|push| push.id).collect::<Vec<_>>();
        assert_eq!(ids(&got[..2]), ids(&open));
        let last = Seen::Disconnect { code: 0x8E };
        let wanted = if old == V5 { vec![last] } else { Vec::new() };
        assert_eq!(older.until_closed().await, wanted);
        assert_eq!(newer.settle().await, []);
    }
    let device = node.create_device().await;
    let mut older = Framed::connect(&node, &device).await;
    let mut newer = Framed::connect(&node, &device).await;
    older.wire.must_end(0x8E).await;
    node.send(json!({"regids": [device.regid]}), json!("mine")).await;
    assert_eq!(newer.messages(1).await[0].1, "\"mine\"");
    let result = newer.ask(frames::unregister(&device.regid)).await;
    assert_eq!(result.code, carillon_wire::idl::ResultCode::OK);
}

/// A device that gives up an attempt and makes another: the one that it opened last is its own.
#[tokio::test]
async fn a_connection_that_was_opened_earlier_does_not_take_over() {
    let node = Node::start().await;
    for version in VERSIONS {
        let device = node.create_device().await;
        let connect = persistent(&device, version);
        let mut given_up = Wire::open(node.listen().mqtt, version).await;
        // Answered, so that it was accepted in this order.
        let other = node.create_device().await;
        Wire::clean(&node, &other, version).await.disconnect().await;
        let (mut wire, _) = come_back(&node, &connect).await;
        assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
        given_up.send(connect.bytes()).await;
        assert_eq!(given_up.connack().await.code, 0);
        given_up.must_end(0x8E).await;
        send_numbers(&node, &device.regid, 0..1).await;
        assert_eq!(texts(&wire.take(1).await), ["0"]);
        wire.disconnect().await;
    }
}

/// Reads and acknowledges until the end; what came.
async fn drink(mut wire: Wire) -> (Vec<usize>, Option<Seen>) {
    let mut numbers = Vec::new();
    let mut last = None;
    loop {
        match wire.next().await {
            Seen::Publish(push) => {
                wire.ack(push.id).await;
                numbers.push(push.text().parse().expect("a number"));
            }
            Seen::Closed => return (numbers, last),
            seen => last = Some(seen),
        }
    }
}

#[tokio::test]
async fn of_a_hundred_connections_of_one_device_the_newest_alone_owns_it() {
    const CONNECTIONS: usize = 100;
    let node = Node::start().await;
    let mut witness = Witness::new(&node).await;
    let device = node.create_device().await;
    let connect = persistent(&device, V5);
    let mut drinkers = Vec::new();
    for number in 0..CONNECTIONS {
        let (mut wire, is_present) = come_back(&node, &connect).await;
        if !is_present {
            assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
        }
        drinkers.push(tokio::spawn(drink(wire)));
        // Accepted after CONNACK: no older connection may ever see it.
        send_numbers(&node, &device.regid, number..number + 1).await;
    }
    node.wait_until_acknowledged(&device.regid).await;
    let (wire, _) = come_back(&node, &device_connect(&device, V5)).await;
    let mut got = Vec::new();
    for (at, drinker) in drinkers.into_iter().enumerate() {
        let (numbers, last) = drinker.await.expect("a reader");
        assert_eq!(last, Some(Seen::Disconnect { code: 0x8E }), "connection {at}");
        assert!(numbers.iter().all(|number| *number <= at), "{at} got {numbers:?}");
        assert!(numbers.is_sorted(), "{at} got {numbers:?}");
        got.extend(numbers);
    }
    got.sort_unstable();
    got.dedup();
    assert_eq!(got, (0..CONNECTIONS).collect::<Vec<_>>(), "each was delivered");
    wire.disconnect().await;
    witness.is_served(&node).await;
}

#[tokio::test]
async fn a_hundred_at_once_leave_one_connection_that_is_served() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let mut racing = JoinSet::new();
    for at in 0..100 {
        let connect =
            if at % 3 == 0 { device_connect(&device, V5) } else { persistent(&device, V5) };
        let address = node.listen().mqtt;
        racing.spawn(async move {
            let (mut wire, connack) = Wire::greet(address, &connect).await;
            assert_eq!(connack.code, 0);
            wire.must_end(0x8E).await;
        });
    }
    for _ in 0..99 {
        racing.join_next().await.expect("some are left").expect("each hears why it ended");
    }
    let one = tokio::time::timeout(Duration::from_millis(1), racing.join_next()).await;
    assert!(one.is_err(), "the newest stays");
    assert_eq!(node.registration(&device.regid).await["online"], true);
    let mut wire = Wire::clean(&node, &device, V5).await;
    racing.join_next().await.expect("the newest so far").expect("it was taken over");
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    send_numbers(&node, &device.regid, 0..1).await;
    assert_eq!(texts(&wire.take(1).await), ["0"]);
}
