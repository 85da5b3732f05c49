//! What a message's options do, over a live node, for frames and for plain MQTT alike: life,
//! collapse keys, recalls, pauses and hours.
#![allow(clippy::disallowed_methods, reason = "tests read the clock")]

mod phone;
mod support;
mod wirelab;

use std::time::{SystemTime, UNIX_EPOCH};

use phone::{Got, KINDS, Kind, Phone};
use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, DEADLINE, Node, poll_until};

const MESSAGES: &str = "/v1/apps/demo/messages";

async fn send(node: &Node, message: Value) -> String {
    let sent = node.call(Method::POST, MESSAGES, Some(message)).await;
    assert_eq!(sent.status, 202, "{}", sent.body);
    sent.body["id"].as_str().expect("an id").to_owned()
}

/// Waits until a message has this state.
async fn becomes(node: &Node, id: &str, state: &str) {
    let path = format!("{MESSAGES}/{id}");
    let is = async || {
        let body = node.call(Method::GET, &path, None).await.body;
        (body["state"] == state).then_some(())
    };
    assert!(poll_until(DEADLINE, is).await.is_some(), "{id} never became {state}");
}

async fn recall(node: &Node, id: &str) {
    let taken = node.call(Method::DELETE, &format!("{MESSAGES}/{id}"), None).await;
    assert_eq!((taken.status.as_u16(), &taken.body["state"]), (200, &json!("recalled")));
}

async fn accept(node: &Node, phone: &Phone, accept: Value) {
    let path = format!("/v1/apps/{APP}/registrations/{}/accept", phone.regid);
    let said = node.call(Method::PUT, &path, Some(accept)).await;
    assert_eq!(said.status, 204, "{}", said.body);
}

/// Messages only, without their quotes.
fn texts(got: &Got) -> Vec<&str> {
    got.messages.iter().map(|text| text.trim_matches('"')).collect()
}

#[tokio::test]
async fn x4_who_comes_back_too_late_gets_what_still_lives_and_the_newest_of_a_key() {
    let node = Node::start().await;
    for kind in KINDS {
        let mut phone = Phone::new(&node, kind).await;
        let to_one = json!({"regids": [phone.regid]});
        phone.take(0).await;
        phone.go(&node).await;
        let all = json!({"all": true});
        let dying = [
            send(&node, json!({"target": to_one, "payload": "dead", "ttl_s": 1})).await,
            send(&node, json!({"target": all, "payload": "dead", "ttl_s": 1})).await,
        ];
        for n in 1..=3 {
            for (target, name) in [(&to_one, "own"), (&all, "all")] {
                let payload = format!("{name} {n}");
                let message = json!({"target": target, "payload": payload, "collapse_key": "k"});
                send(&node, message).await;
            }
        }
        send(&node, json!({"target": to_one, "payload": "other", "collapse_key": "o"})).await;
        send(&node, json!({"target": to_one, "payload": "living", "ttl_s": 600})).await;
        for id in dying {
            becomes(&node, &id, "expired").await;
        }
        phone.come(&node).await;
        let got = phone.take(4).await;
        assert_eq!(texts(&got), ["all 3", "living", "other", "own 3"], "{kind:?}");
        // Who is on line gets each of them.
        for n in 4..=5 {
            let message = json!({"target": to_one, "payload": n, "collapse_key": "k"});
            send(&node, message).await;
            assert_eq!(texts(&phone.take(1).await), [n.to_string()], "{kind:?}");
        }
        phone.go(&node).await;
    }
}

#[tokio::test]
async fn x6_a_recalled_message_never_arrives_and_only_frames_hear_of_one_that_did() {
    let node = Node::start().await;
    for kind in KINDS {
        let mut phone = Phone::new(&node, kind).await;
        let to_one = json!({"regids": [phone.regid]});
        let all = json!({"all": true});
        phone.take(0).await;
        let mut arrived = Vec::new();
        for target in [&to_one, &all] {
            arrived.push(send(&node, json!({"target": target, "payload": "seen"})).await);
        }
        assert_eq!(texts(&phone.take(2).await), ["seen", "seen"]);
        node.wait_until_acknowledged(&phone.regid).await;
        phone.go(&node).await;
        let mut pending = Vec::new();
        for target in [&to_one, &all] {
            pending.push(send(&node, json!({"target": target, "payload": "taken back"})).await);
        }
        for id in arrived.iter().chain(&pending) {
            recall(&node, id).await;
            recall(&node, id).await;
        }
        send(&node, json!({"target": to_one, "payload": "last"})).await;
        phone.come(&node).await;
        let got = phone.take(1).await;
        assert_eq!(texts(&got), ["last"], "{kind:?}");
        // Frames have an entry for each message that may have come; plain MQTT has no place for it.
        let recalls = if kind == Kind::Frames { 4 } else { 0 };
        assert_eq!(got.recalls, recalls, "{kind:?}");
        node.wait_until_acknowledged(&phone.regid).await;
        let online = send(&node, json!({"target": to_one, "payload": "on line"})).await;
        assert_eq!(texts(&phone.take(1).await), ["on line"]);
        recall(&node, &online).await;
        send(&node, json!({"target": to_one, "payload": "behind"})).await;
        let got = phone.take(1).await;
        assert_eq!((texts(&got), got.recalls), (vec!["behind"], recalls / 4), "{kind:?}");
        phone.go(&node).await;
    }
}

#[tokio::test]
async fn x13_pauses_and_hours_hold_everything_back_and_lose_nothing() {
    let node = Node::start().await;
    let minutes_now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 60;
    let hours = |from: u64, to: u64| {
        let minute = |ahead: u64| (minutes_now + ahead) % 1_440;
        json!({"hours": {"start_minute": minute(from), "end_minute": minute(to), "zone": "UTC"}})
    };
    // Three hours from now, and the other way round: all day but then.
    let (closed, open) = (hours(180, 240), hours(240, 180));
    for kind in KINDS {
        let mut phone = Phone::new(&node, kind).await;
        node.subscribe(&phone.regid, "news").await;
        phone.take(0).await;
        let mut number = 0;
        let targets =
            [json!({"regids": [phone.regid]}), json!({"topic": "news"}), json!({"all": true})];
        for (shut, opened) in
            [(json!({"paused": true}), json!({"paused": false})), (closed.clone(), open.clone())]
        {
            for is_away in [false, true] {
                accept(&node, &phone, shut.clone()).await;
                if is_away {
                    phone.go(&node).await;
                }
                number += 1;
                for target in &targets {
                    send(&node, json!({"target": target, "payload": number})).await;
                }
                if is_away {
                    phone.come(&node).await;
                }
                assert_eq!(phone.take(0).await, Got::default(), "{kind:?} {shut}");
                accept(&node, &phone, opened.clone()).await;
                let got = phone.take(3).await;
                assert_eq!(texts(&got), vec![number.to_string(); 3], "{kind:?} {shut}");
            }
        }
        phone.go(&node).await;
        node.unsubscribe(&phone.regid, "news").await;
    }
}

/// How many entries were skipped so far, for this reason.
async fn skipped(node: &Node, reason: &str) -> u64 {
    let metrics = node.metrics().await;
    let name = format!("carillon_skipped_total{{reason=\"{reason}\"}}");
    let line = metrics.lines().find(|line| line.starts_with(&name)).expect("the counter");
    line.rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a count")
}

#[tokio::test]
async fn what_is_skipped_is_counted_once_however_often_a_device_comes_for_it() {
    let node = Node::start().await;
    for (before, kind) in (0..).zip(KINDS) {
        let mut phone = Phone::new(&node, kind).await;
        let to_one = json!({"regids": [phone.regid]});
        phone.take(0).await;
        phone.go(&node).await;
        let dead = json!({"target": to_one, "payload": "dead", "ttl_s": 1});
        let mut dying = vec![send(&node, dead.clone()).await];
        send(&node, json!({"target": to_one, "payload": "living"})).await;
        dying.push(send(&node, dead).await);
        let german = json!({"locale": ["de"]});
        send(&node, json!({"target": to_one, "payload": "german", "filter": german})).await;
        for n in 1..=2 {
            let message = json!({"target": to_one, "payload": n, "collapse_key": "k"});
            send(&node, message).await;
        }
        let back = send(&node, json!({"target": to_one, "payload": "taken back"})).await;
        recall(&node, &back).await;
        for id in dying {
            becomes(&node, &id, "expired").await;
        }
        for _ in 0..3 {
            phone.peek(&node).await;
        }
        phone.come(&node).await;
        assert_eq!(texts(&phone.take(2).await), ["living", "2"]);
        node.wait_until_acknowledged(&phone.regid).await;
        for (reason, each) in [("expired", 2), ("filtered", 1), ("collapsed", 1), ("recalled", 1)] {
            let count = skipped(&node, reason).await;
            assert_eq!(count, each * (before + 1), "{reason}, {kind:?}");
        }
        phone.go(&node).await;
    }
}
