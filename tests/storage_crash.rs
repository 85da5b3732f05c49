//! The node dies at each point of the storage writer, and of the commits that feed it, under
//! changes: what was accepted is folded, once. Needs the feature `sim`.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]
#![cfg(feature = "sim")]

mod longterm;
mod support;
#[path = "uploads/crash.rs"]
mod uploads;
mod wirelab;

use std::collections::{BTreeMap, BTreeSet};

use carillon::{
    base::ids::QueueName,
    longterm::{LongTerm, embedded::Embedded},
    queue::{entry::Body, position::Seq, store::embedded::EmbeddedStore},
};
use longterm::ALL;
use serde_json::json;
use support::{AppCredentials, DEADLINE, Node, Options, poll_until};

const POINTS: [&str; 6] = [
    "longterm::before_fold",
    "longterm::after_fold",
    "longterm::after_removal",
    "writer::before_sync",
    "writer::after_sync",
    "shard::before_publish",
];
const USERS: u64 = 3;

#[tokio::test]
async fn a_node_killed_at_any_point_of_the_storage_writer_has_folded_all_once() {
    let mut node = Node::start().await;
    let made = node.cli(&["app", "create", "kept", "--alias-policy", "server"]).await;
    let app: AppCredentials = serde_json::from_str(&made).unwrap();
    let declared = node
        .https_client()
        .put(format!("{}/v1/apps/kept/collections/notes", node.https_url()))
        .bearer_auth(&app.app_secret)
        .json(&json!({"rule": "newest"}));
    assert!(declared.send().await.unwrap().status().is_success());

    let (mut number, mut accepted) = (0, BTreeSet::new());
    for point in POINTS {
        for skipped in [0, 3, 20] {
            // What a start does must not be what dies.
            node.kill9();
            node.restart_with(Options::default()).await;
            all_is_folded(&node).await;
            node.kill9();
            let skipped = if point.starts_with("longterm::") { skipped } else { skipped + 10 };
            let failpoints = format!("{point}={skipped}*off->return");
            let env = vec![("FAILPOINTS".to_owned(), failpoints)];
            node.restart_with(Options { env, ..Options::default() }).await;
            while node.is_running() {
                number += 1;
                if change(&node, &app, number).await {
                    accepted.insert(number);
                }
            }
            assert!(node.log().contains(&format!("crash point {point}\n")), "{point}");
        }
    }
    node.kill9();
    node.restart_with(Options::default()).await;
    all_is_folded(&node).await;
    assert!(node.terminate().await.success());

    let store = EmbeddedStore::open(&node.data().join("store"), 1 << 20).unwrap();
    let longterm = Embedded::open(&node.data().join("longterm"), 1 << 20).unwrap();
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    for user in 0..USERS {
        let alias = format!("user{user}").parse().unwrap();
        let queue = QueueName::Alias("kept".parse().unwrap(), alias).id();
        longterm::fold_equals_queue(&store, &longterm, queue).await;
        for past in longterm.history(queue, Seq(0), ALL).await.unwrap() {
            let Body::Change(change) = past.entry.body else { panic!("only changes were made") };
            let number = std::str::from_utf8(&change.value.bytes).unwrap().parse().unwrap();
            *times.entry(number).or_default() += 1;
        }
    }
    assert!(times.values().all(|times| *times == 1), "no change is there twice");
    let lost: Vec<_> = accepted.iter().filter(|number| !times.contains_key(number)).collect();
    assert!(lost.is_empty(), "accepted and not folded: {lost:?}");
    println!("{} changes accepted, {} folded", accepted.len(), times.len());
}

async fn all_is_folded(node: &Node) {
    let behind = async || {
        let metrics = node.metrics().await;
        metrics.contains("carillon_longterm_behind_entries 0\n").then_some(())
    };
    poll_until(DEADLINE, behind).await.expect("all is folded");
}

/// Whether it was accepted.
async fn change(node: &Node, app: &AppCredentials, number: u64) -> bool {
    let user = number % USERS;
    let url = format!("{}/v1/apps/kept/aliases/user{user}/changes", node.https_url());
    let change = json!({"collection": "notes", "key": (number % 11).to_string(), "value": number});
    let call = node.https_client().post(url).bearer_auth(&app.app_secret);
    match call.json(&json!({"changes": [change]})).send().await {
        Ok(answer) => answer.status().is_success(),
        Err(_) => false,
    }
}
