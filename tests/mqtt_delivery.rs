//! MQTT 3.1.1 and 5 byte by byte, part two: how messages come down.
//!
//! The client's bounds (Receive Maximum, Maximum Packet Size, Topic Alias Maximum)
//! hold at every moment; what one message cannot pass does not stop the next.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::collections::BTreeSet;

use carillon_wire::{
    digest::{Digest, position_hash},
    idl,
};
use serde_json::json;
use support::Node;
use wirelab::{
    bytes::{PUBACK, Publish, VERSIONS, Version, ack, alias_max, packet_max, receive_max},
    frames::{self, Framed},
    lab::send_numbers,
    seen::{Push, Seen},
    wire::{Wire, device_connect},
};

use Version::{V5, V311};

fn texts(pushes: &[Push]) -> Vec<String> {
    pushes.iter().map(Push::text).collect()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn each_message_arrives_as_sent_and_says_where_it_comes_from() {
    let node = Node::start().await;
    let device = node.create_device().await;
    node.bind(&device.regid, "ann").await;
    node.subscribe(&device.regid, "sport").await;
    let mut wire = Wire::clean(&node, &device, V5).await;
    assert_eq!(wire.subscribe(&["push", "topic/news"], 1).await, [1, 1]);
    let payload = json!({"text": "ä\u{1F514}\u{0}\n", "n": 12345678901234567890u64});
    for (target, topic, queue) in [
        (json!({"regids": [device.regid]}), "push", "own"),
        (json!({"aliases": ["ann"]}), "push", "alias/ann"),
        (json!({"topic": "sport"}), "push", "topic/sport"),
        (json!({"topic": "news"}), "topic/news", "topic/news"),
        (json!({"all": true}), "push", "all"),
    ] {
        let id = node.send(target, payload.clone()).await;
        let push = wire.take(1).await.remove(0);
        assert_eq!((push.topic.as_str(), push.qos, push.is_dup), (topic, 1, false));
        assert_eq!(push.payload, serde_json::to_vec(&payload).unwrap());
        assert_eq!((push.user("id"), push.user("queue")), (id.as_str(), queue));
        let (epoch, seq) = push.user("position").split_once(':').expect("epoch:seq");
        assert!(epoch.parse::<u32>().is_ok() && seq.parse::<u64>().is_ok());
        assert!(!push.is_retained);
        let expiry = push.properties.numbers[&0x02];
        assert!((3_500..=3_600).contains(&expiry), "expires in {expiry} s");
    }
    assert_eq!(wire.settle().await, []);
    let mut old = Wire::clean(&node, &device, V311).await;
    assert_eq!(old.subscribe(&["push"], 1).await, [1]);
    node.send(json!({"regids": [device.regid]}), payload.clone()).await;
    let push = old.take(1).await.remove(0);
    assert_eq!(push.payload, serde_json::to_vec(&payload).unwrap());
}

#[tokio::test]
async fn qos_0_is_acknowledged_by_being_written() {
    let node = Node::start().await;
    for version in VERSIONS {
        let device = node.create_device().await;
        let mut wire = Wire::clean(&node, &device, version).await;
        assert_eq!(wire.subscribe(&["push"], 0).await, [0]);
        send_numbers(&node, &device.regid, 0..100).await;
        let mut got = Vec::new();
        while got.len() < 100 {
            let push = wire.push().await;
            assert_eq!((push.qos, push.id), (0, 0));
            got.push(push);
        }
        assert_eq!(texts(&got), numbers(0..100));
        node.wait_until_acknowledged(&device.regid).await;
    }
}

/// A plain client that takes `limit` at a time: it never has more unacknowledged, and it gets all.
async fn takes_no_more_than(node: &Node, version: Version, limit: usize, said: Option<u16>) {
    let device = node.create_device().await;
    let mut connect = device_connect(&device, version);
    if let Some(count) = said {
        connect = connect.with(receive_max(count));
    }
    let mut wire = Wire::connect(node, &connect).await;
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    send_numbers(node, &device.regid, 0..50).await;
    let mut open: Vec<Push> = wire.settled_pushes().await;
    assert_eq!(open.len(), limit, "{version:?} {said:?}");
    let stray = [ack(PUBACK, 60_000), ack(PUBACK, 60_001), ack(PUBACK, 60_001)].concat();
    wire.send(stray).await;
    assert_eq!(wire.settle().await, [], "a stray PUBACK makes no room");
    let mut got = Vec::new();
    while !open.is_empty() {
        let first = open.remove(0);
        wire.ack(first.id).await;
        got.push(first);
        open.extend(wire.settled_pushes().await);
        assert!(open.len() <= limit);
        let ids: BTreeSet<u16> = open.iter().map(|push| push.id).collect();
        assert_eq!(ids.len(), open.len(), "packet ids in use are not given twice");
    }
    assert_eq!(texts(&got), numbers(0..50));
}

#[tokio::test]
async fn i11_receive_maximum_is_honoured_and_never_raised_by_stray_acknowledgements() {
    let node = Node::start().await;
    for (limit, said) in [(1, Some(1)), (2, Some(2)), (7, Some(7)), (16, Some(65_535)), (16, None)]
    {
        takes_no_more_than(&node, V5, limit, said).await;
    }
    takes_no_more_than(&node, V311, 16, None).await;
}

#[tokio::test]
async fn acknowledgements_in_any_order_move_the_pointer_over_what_is_whole() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let mut wire = Wire::clean(&node, &device, V5).await;
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    send_numbers(&node, &device.regid, 0..6).await;
    let mut open = Vec::new();
    while open.len() < 6 {
        open.push(wire.push().await.id);
    }
    for at in [4, 1, 5, 2] {
        wire.ack(open[at]).await;
    }
    wire.disconnect().await;
    node.wait_until_online(&device.regid, false).await;
    let connect = device_connect(&device, V5).persistent(0);
    let mut wire = Wire::connect(&node, &connect).await;
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    assert_eq!(texts(&wire.take(6).await), numbers(0..6), "nothing before the first hole is lost");
    node.wait_until_acknowledged(&device.regid).await;
}

#[tokio::test]
async fn i11_receive_maximum_counts_replies_and_deltas_of_frames_together() {
    let node = Node::start().await;
    let device = node.create_device().await;
    for limit in [1, 3] {
        let connect = device_connect(&device, V5).with(receive_max(limit));
        let mut framed = Framed::over(Wire::connect(&node, &connect).await);
        for _ in 0..8 {
            let up = frames::encode(&frames::resume(1));
            let id = framed.wire.id();
            framed.wire.send(Publish::new(V5, "up", up).qos(1, id).bytes()).await;
        }
        let positions = frames::encode(&frames::positions(vec![]));
        framed.wire.send(Publish::new(V5, "up", positions).qos(1, 99).bytes()).await;
        send_numbers(&node, &device.regid, 0..10).await;
        let (mut open, mut got) = (Vec::new(), 0);
        while got < 9 + 1 {
            for seen in framed.wire.settle().await {
                match seen {
                    Seen::Publish(push) => open.push(push.id),
                    Seen::PubAck { code, .. } => assert_eq!(code, 0),
                    other => panic!("{other:?}"),
                }
            }
            assert!((1..=usize::from(limit)).contains(&open.len()), "{} are open", open.len());
            framed.wire.ack(open.remove(0)).await;
            got += 1;
        }
    }
}

/// A device that resumes or states its positions again has not acknowledged anything by that.
#[tokio::test]
async fn resuming_again_makes_no_room_for_more() {
    let node = Node::start().await;
    for (is_digest, is_left) in [(false, false), (true, false), (false, true)] {
        let device = node.create_device().await;
        let connect = device_connect(&device, V5).with(receive_max(2));
        let mut framed = Framed::over(Wire::connect(&node, &connect).await);
        let regid = device.regid.clone();
        let positions =
            vec![idl::RegistrationPositions { gathered: None, regid, positions: vec![] }];
        framed.say(&frames::positions(positions.clone())).await;
        let (id, down) = framed.down().await;
        assert!(down.resumed.is_some(), "{down:?}");
        framed.wire.ack(id).await;
        let mut open = Vec::new();
        for number in 0..6 {
            send_numbers(&node, &device.regid, number..number + 1).await;
            open.extend(framed.wire.settled_pushes().await);
        }
        assert_eq!(open.len(), 2, "the client takes two");
        if is_left {
            assert_eq!(framed.wire.unsubscribe(&["down"]).await, [0]);
            assert_eq!(framed.wire.subscribe(&["down"], 1).await, [1]);
        }
        let mut digest = Digest::new();
        [1, 4].iter().for_each(|kind| digest.add(position_hash(&device.regid, *kind, "", 1, 0)));
        let up =
            if is_digest { frames::resume(digest.to_idl()) } else { frames::positions(positions) };
        let id = framed.wire.id();
        let again = Publish::new(V5, "up", frames::encode(&up)).qos(1, id);
        framed.wire.send(again.bytes()).await;
        assert_eq!(framed.wire.settle().await, [], "the client still has two to acknowledge");
        let (mut texts, mut is_resumed) = (Vec::new(), false);
        while !texts.contains(&"5".to_owned()) {
            assert!((1..=2).contains(&open.len()), "{} are open", open.len());
            framed.wire.ack(open.remove(0).id).await;
            for seen in framed.wire.settle().await {
                if let Seen::Publish(push) = seen {
                    let down = frames::decode(&push);
                    is_resumed |= down.resumed.is_some();
                    let deltas = down.deltas.iter().flat_map(frames::payloads);
                    texts.extend(deltas.map(|(_, text)| text));
                    open.push(push);
                }
            }
        }
        assert!(is_resumed);
        let is_again = texts.contains(&"0".to_owned());
        assert!(is_again || is_digest, "who states nothing gets all again: {texts:?}");
    }
}

#[tokio::test]
async fn i11_a_message_too_large_for_the_client_is_passed_over() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let large = |size: usize| json!("x".repeat(size));
    let connect = device_connect(&device, V5).with(packet_max(300));
    let mut wire = Wire::connect(&node, &connect).await;
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    let to = || json!({"regids": [device.regid]});
    for size in [20, 3_000, 10, 400, 500, 30] {
        node.send(to(), large(size)).await;
    }
    let pushes = wire.take(3).await;
    assert_eq!(texts(&pushes), [20, 10, 30].map(|size| large(size).to_string()));
    assert!(pushes.iter().all(|push| push.bytes <= 300));
    assert_eq!(wire.settle().await, []);
    node.wait_until_acknowledged(&device.regid).await;
    node.send(to(), large(4_000)).await;
    node.wait_until_acknowledged(&device.regid).await;

    let mut framed = Framed::over({
        let connect = device_connect(&device, V5).with(packet_max(300));
        Wire::connect(&node, &connect).await
    });
    framed.say(&frames::positions(vec![])).await;
    let (id, down) = framed.down().await;
    assert!(down.resumed.is_some(), "{down:?}");
    framed.wire.ack(id).await;
    for size in [40, 3_000, 50] {
        node.send(to(), large(size)).await;
    }
    let wanted = [40, 50].map(|size| large(size).to_string());
    let mut got = Vec::new();
    while !got.ends_with(&wanted) {
        got.extend(framed.messages(1).await.into_iter().map(|(_, text)| text));
    }
    assert!(!got.contains(&large(3_000).to_string()));
    node.wait_until_acknowledged(&device.regid).await;
}

#[tokio::test]
async fn topic_aliases_are_told_before_they_are_used_and_stay_in_bounds() {
    let node = Node::start().await;
    for limit in [0, 1, 10] {
        let device = node.create_device().await;
        let connect = device_connect(&device, V5).with(alias_max(limit));
        let mut wire = Wire::connect(&node, &connect).await;
        assert_eq!(wire.subscribe(&["push", "topic/news", "topic/sport"], 1).await, [1; 3]);
        let round = async |wire: &mut Wire, topics: &[&str]| {
            for topic in topics {
                let target = match topic.strip_prefix("topic/") {
                    Some(name) => json!({"topic": name}),
                    None => json!({"regids": [device.regid]}),
                };
                node.send(target, json!(topic)).await;
                let push = wire.take(1).await.remove(0);
                assert!(push.alias().is_none_or(|alias| (1..=limit).contains(&alias)));
                assert_eq!(wire.topic_of(&push), *topic);
                assert_eq!(push.text(), json!(topic).to_string());
            }
        };
        let all = ["push", "topic/news", "topic/sport"];
        round(&mut wire, &all).await;
        round(&mut wire, &["topic/sport", "push", "topic/news", "push"]).await;
        assert_eq!(wire.unsubscribe(&["topic/news"]).await, [0]);
        round(&mut wire, &["topic/sport", "push"]).await;
        assert_eq!(wire.subscribe(&["topic/news"], 1).await, [1]);
        round(&mut wire, &all).await;
    }
    let device = node.create_device().await;
    let connect = device_connect(&device, V5).with(alias_max(5));
    let mut framed = Framed::over(Wire::connect(&node, &connect).await);
    for at in 0..3 {
        framed.say(&frames::resume(1)).await;
        let (id, down) = framed.down().await;
        assert!(down.ask_positions.is_some(), "answer {at}: {down:?}");
        framed.wire.ack(id).await;
    }
}

#[tokio::test]
async fn frames_are_acknowledged_as_a_whole_and_resume_by_digest() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let mut framed = Framed::connect(&node, &device).await;
    send_numbers(&node, &device.regid, 0..5).await;
    let mut held: Vec<idl::Delta> = Vec::new();
    while held.iter().map(|delta| delta.entries.len()).sum::<usize>() < 5 {
        let (id, deltas) = framed.deltas().await;
        assert_eq!(deltas.regid, device.regid);
        held.extend(deltas.deltas);
        framed.wire.ack(id).await;
    }
    node.wait_until_acknowledged(&device.regid).await;
    framed.wire.disconnect().await;
    send_numbers(&node, &device.regid, 5..7).await;

    let mut digest = Digest::new();
    for kind in [idl::QueueKind::OWN, idl::QueueKind::ALL] {
        let delta = held.iter().rev().find(|delta| delta.queue.kind == kind);
        let delta = delta.expect("a resuming device without positions hears of each queue");
        let (epoch, seq) = (delta.epoch as u32, delta.to_seq as u64);
        let number = if kind == idl::QueueKind::OWN { 1 } else { 4 };
        digest.add(position_hash(&device.regid, number, "", epoch, seq));
    }
    let mut framed = Framed::mute(&node, &device).await;
    framed.say(&frames::resume(digest.to_idl())).await;
    let (id, down) = framed.down().await;
    let regids = down.resumed.expect("the digests agree").regids;
    assert_eq!(regids, None);
    framed.wire.ack(id).await;
    let got = framed.messages(2).await;
    assert_eq!(got, ["5", "6"].map(|text| (device.regid.clone(), text.to_owned())));
}
