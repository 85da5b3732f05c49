//! Who follows a topic: from the device and from the API, many at once, listed and counted while
//! it changes and after restarts.
#![allow(clippy::disallowed_methods, reason = "tests start tasks")]

mod dice;
mod phone;
mod support;
mod wirelab;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use dice::number_from_env;
use futures_util::stream::{self, StreamExt};
use phone::{KINDS, Phone};
use reqwest::Method;
use serde_json::{Value, json};
use support::{APP, DEADLINE, Node, poll_until};

/// regIDs of new registrations of the demo app.
async fn registrations(node: &Node, count: usize) -> Vec<String> {
    let count_text = count.to_string();
    let made = node.cli(&["device", "create", "--app", APP, "--count", &count_text]).await;
    let regid = |line: &str| line.rsplit(',').next().expect("a regid").to_owned();
    let regids: Vec<String> = made.lines().skip(1).map(regid).collect();
    assert_eq!(regids.len(), count);
    regids
}

async fn bulk(node: &Node, topic: &str, verb: &str, regids: &[String]) -> Value {
    let path = format!("/v1/apps/{APP}/topics/{topic}:{verb}");
    let done = node.call(Method::POST, &path, Some(json!({"regids": regids}))).await;
    assert_eq!(done.status, 200, "{}", done.body);
    done.body
}

async fn count(node: &Node, topic: &str) -> u64 {
    let path = format!("/v1/apps/{APP}/topics/{topic}");
    node.call(Method::GET, &path, None).await.body["members"].as_u64().expect("a count")
}

/// A count that was taken in the middle of changes is taken again, but not at once.
async fn counts_to(node: &Node, topic: &str, wanted: u64) {
    let is = async || (count(node, topic).await == wanted).then_some(());
    let found = poll_until(DEADLINE, is).await;
    assert!(found.is_some(), "{topic} has {} members, not {wanted}", count(node, topic).await);
    assert_eq!(count(node, topic).await, wanted, "and stays so");
}

/// All members, page by page, with how often each was listed.
async fn members(node: &Node, topic: &str, limit: usize) -> BTreeMap<String, usize> {
    let (mut all, mut after) = (BTreeMap::new(), String::new());
    loop {
        let path = format!("/v1/apps/{APP}/topics/{topic}/members?limit={limit}{after}");
        let page = node.call(Method::GET, &path, None).await;
        assert_eq!(page.status, 200, "{}", page.body);
        for member in page.body["members"].as_array().expect("members") {
            *all.entry(member.as_str().expect("a regid").to_owned()).or_default() += 1;
        }
        match page.body["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return all,
        }
    }
}

async fn topics(node: &Node, phone: &Phone) -> Value {
    node.registration(&phone.regid).await["topics"].clone()
}

#[tokio::test]
async fn a_device_and_its_app_server_change_the_same_membership() {
    let node = Node::start().await;
    let to_news = json!({"topic": "news"});
    for kind in KINDS {
        let mut phone = Phone::new(&node, kind).await;
        node.send(to_news.clone(), json!("before")).await;
        phone.subscribe("news").await;
        phone.take(0).await;
        assert_eq!((topics(&node, &phone).await, count(&node, "news").await), (json!(["news"]), 1));
        node.send(to_news.clone(), json!("one")).await;
        assert_eq!(phone.take(1).await.messages, ["\"one\""], "{kind:?}");
        // Twice is once, whoever says it.
        node.subscribe(&phone.regid, "news").await;
        node.send(to_news.clone(), json!("two")).await;
        assert_eq!(phone.take(1).await.messages, ["\"two\""], "{kind:?}");

        phone.unsubscribe("news").await;
        phone.take(0).await;
        assert_eq!((topics(&node, &phone).await, count(&node, "news").await), (json!([]), 0));
        node.send(to_news.clone(), json!("unheard")).await;
        assert_eq!(phone.take(0).await.messages, Vec::<String>::new(), "{kind:?}");

        // Away, the app server changes it: what was sent between is not for it.
        phone.go(&node).await;
        node.subscribe(&phone.regid, "news").await;
        node.send(to_news.clone(), json!("three")).await;
        node.unsubscribe(&phone.regid, "news").await;
        node.subscribe(&phone.regid, "news").await;
        node.send(to_news.clone(), json!("four")).await;
        phone.come(&node).await;
        assert_eq!(phone.take(1).await.messages, ["\"four\""], "{kind:?}");
        node.unsubscribe(&phone.regid, "news").await;
        node.send(to_news.clone(), json!("unheard")).await;
        assert_eq!(phone.take(0).await.messages, Vec::<String>::new(), "{kind:?}");
        phone.go(&node).await;
    }
}

#[tokio::test]
async fn a_partly_bad_list_changes_the_good_ones_and_names_the_bad() {
    let node = Node::start().await;
    node.create_app("other").await;
    let foreign = node.cli(&["device", "create", "--app", "other"]).await;
    let foreign = foreign.lines().nth(1).and_then(|line| line.rsplit(',').next()).unwrap();
    let mut regids = registrations(&node, 995).await;
    let good = regids.clone();
    let bad = [foreign.to_owned(), "a".repeat(32), "no regid".to_owned(), String::new()];
    regids.extend(bad.iter().cloned());
    regids.push(good[0].clone());
    assert_eq!(regids.len(), 1_000);
    for (verb, then) in [("subscribe", 995), ("subscribe", 995), ("unsubscribe", 0)] {
        let since = Instant::now();
        let done = bulk(&node, "news", verb, &regids).await;
        println!("{verb} of 1000: {:?}", since.elapsed());
        assert_eq!(done["done"], 996, "{done}");
        let failed: Vec<Value> =
            bad.iter().map(|regid| json!({"regid": regid, "code": "not_found"})).collect();
        assert_eq!(done["failed"], json!(failed));
        assert_eq!(count(&node, "news").await, then);
        let listed = members(&node, "news", 1_000).await;
        assert_eq!(listed.len() as u64, then);
        assert!(listed.keys().all(|regid| good.contains(regid)));
    }
    let path = format!("/v1/apps/{APP}/topics/news:subscribe");
    let many = vec![good[0].clone(); 1_001];
    for wrong in [json!({"regids": []}), json!({"regids": many})] {
        let refused = node.call(Method::POST, &path, Some(wrong)).await;
        assert_eq!(
            (refused.status.as_u16(), refused.body["field"].as_str()),
            (422, Some("regids"))
        );
    }
    assert_eq!(count(&node, "news").await, 0, "a refused list changes nothing");
}

#[tokio::test]
async fn who_stays_is_listed_once_while_others_come_and_go() {
    let node = Arc::new(Node::start().await);
    let mut stay = registrations(&node, 400).await;
    let change = registrations(&node, 300).await;
    bulk(&node, "news", "subscribe", &stay).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let churn = tokio::spawn({
        let (node, change, is_over) = (node.clone(), change.clone(), is_over.clone());
        async move {
            let mut rounds = 0;
            while !is_over.load(Ordering::Relaxed) {
                for part in change.chunks(50) {
                    bulk(&node, "news", "subscribe", part).await;
                    count(&node, "news").await;
                }
                for part in change.chunks(70) {
                    bulk(&node, "news", "unsubscribe", part).await;
                }
                rounds += 1;
            }
            rounds
        }
    });
    stay.sort();
    for limit in [1_000, 37, 100, 3] {
        let listed = members(&node, "news", limit).await;
        assert!(listed.values().all(|times| *times == 1), "somebody is listed twice");
        let staying: Vec<&String> = listed.keys().filter(|regid| !change.contains(regid)).collect();
        assert!(staying.iter().copied().eq(&stay), "pages of {limit}");
    }
    is_over.store(true, Ordering::Relaxed);
    println!("{} rounds of changes meanwhile", churn.await.unwrap());
    counts_to(&node, "news", 400).await;
    assert_eq!(members(&node, "news", 1_000).await.len(), 400);
}

/// As docs/API.md says: so many are looked at, and whether there are more is told.
#[tokio::test]
async fn a_message_counts_a_thousand_followers_and_says_whether_there_are_more() {
    let node = Node::start().await;
    registrations(&node, 1_000).await;
    for (count, is_partial) in [(1_000, false), (1_001, true)] {
        let path = format!("/v1/apps/{APP}/messages");
        let message = json!({"target": {"all": true}, "payload": 1});
        let sent = node.call(Method::POST, &path, Some(message)).await.body;
        assert_eq!(sent["target"]["matched"], count, "{sent}");
        let path = format!("{path}/{}", sent["id"].as_str().expect("an id"));
        let counts = node.call(Method::GET, &path, None).await.body["counts"].clone();
        let wanted = json!({"queues": 1, "appended": 1, "followers": 1_000, "passed": 0, "is_partial": is_partial});
        assert_eq!(counts, wanted);
        registrations(&node, 1).await;
    }
}

/// Members of one topic that come and go in lists; `CARILLON_MEMBERS` asks for more. Prints how fast.
const MEMBERS: u64 = 4_000;

#[tokio::test]
async fn many_come_in_bulk_are_counted_listed_and_go() {
    let node = Node::start().await;
    let wanted = number_from_env("CARILLON_MEMBERS").unwrap_or(MEMBERS);
    let mut regids = registrations(&node, wanted as usize).await;
    let rate = |since: Instant| wanted as f64 / since.elapsed().as_secs_f64();
    for (verb, then) in [("subscribe", wanted), ("subscribe", wanted), ("unsubscribe", 0)] {
        let since = Instant::now();
        // As an app server does that waits for no answer before its next list.
        let lists = regids.chunks(1_000).map(|list| bulk(&node, "crowd", verb, list));
        let done: Vec<Value> = stream::iter(lists).buffer_unordered(4).collect().await;
        println!("{verb}: {:.0} registrations/s", rate(since));
        assert!(done.iter().all(|one| one["failed"] == json!([])), "{done:?}");
        assert_eq!(count(&node, "crowd").await, then);
        if then > 0 {
            let since = Instant::now();
            let listed = members(&node, "crowd", 1_000).await;
            println!("listed: {:.0} members/s", rate(since));
            regids.sort();
            assert!(listed.values().all(|times| *times == 1) && listed.keys().eq(&regids));
        }
    }
}

/// A count that is asked for in the middle of changes is right when they are over.
#[tokio::test]
async fn counts_are_right_behind_changes_and_after_restarts() {
    let mut node = Node::start().await;
    let regids = registrations(&node, 800).await;
    for round in 0..6 {
        let topic = format!("t{round}");
        let asking = async {
            for _ in 0..40 {
                count(&node, &topic).await;
            }
        };
        let changing = async {
            for part in regids.chunks(100) {
                bulk(&node, &topic, "subscribe", part).await;
            }
            for part in regids[..round * 100].chunks(100) {
                bulk(&node, &topic, "unsubscribe", part).await;
            }
        };
        tokio::join!(asking, changing);
        let wanted = 800 - round as u64 * 100;
        assert_eq!(members(&node, &topic, 1_000).await.len() as u64, wanted);
        counts_to(&node, &topic, wanted).await;
    }
    node.terminate().await;
    node.restart().await;
    assert_eq!(count(&node, "t0").await, 800);
    bulk(&node, "t0", "unsubscribe", &regids[..10]).await;
    node.kill9();
    node.restart().await;
    for round in 1..6 {
        assert_eq!(count(&node, &format!("t{round}")).await, 800 - round * 100);
    }
    assert_eq!(count(&node, "t0").await, 790);
    let sent = node
        .call(
            Method::POST,
            &format!("/v1/apps/{APP}/messages"),
            Some(json!({"target": {"topic": "t0"}, "payload": 1})),
        )
        .await;
    assert_eq!(sent.body["target"]["matched"], 790);
}
