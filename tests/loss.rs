//! The store loses acknowledged entries: an operator restored an old copy, or a disk
//! cut the journal. Nobody may be handed other entries under numbers that they know.

#![allow(clippy::disallowed_methods, reason = "tests start tasks and read their settings")]

mod support;

use std::{fs, path::Path, time::Duration};

use carillon_sdk::{Credentials, Device, Endpoint, Received};
use serde_json::{Value, json};
use support::{Node, copy_dir};
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(30);

/// A device whose app code reports payloads.
async fn connect(
    node: &Node,
    one: &support::Device,
    state: &Path,
) -> (Device, mpsc::Receiver<String>) {
    let (tell, told) = mpsc::channel(64);
    let endpoint: Endpoint = format!("tcp://{}", node.listen().mqtt).parse().unwrap();
    let credentials = Credentials { device_id: one.device_id.clone(), secret: one.secret.clone() };
    let device = Device::builder(endpoint, credentials, state)
        .connect_with(move |received| {
            let tell = tell.clone();
            async move {
                if let Received::Message(message) = received {
                    let payload = String::from_utf8(message.payload.to_vec()).unwrap();
                    tell.send(payload).await.unwrap();
                }
            }
        })
        .await
        .unwrap();
    (device, told)
}

async fn expect(told: &mut mpsc::Receiver<String>, payload: &Value) {
    let came = tokio::time::timeout(DEADLINE, told.recv()).await.expect("it comes in time");
    assert_eq!(came.unwrap(), payload.to_string());
}

/// A node that has sent one to five, and whose store then is as it was after three.
async fn node_that_lost(keep_mark: bool) -> (Node, support::Device, tempfile::TempDir) {
    let mut node = Node::start().await;
    let one = node.create_device().await;
    let home = tempfile::tempdir().unwrap();
    let (device, mut told) = connect(&node, &one, &home.path().join("state")).await;
    device.online().await.unwrap();
    let target = json!({"regids": [one.regid]});
    for n in 1..=3 {
        node.send(target.clone(), json!(n)).await;
        expect(&mut told, &json!(n)).await;
    }
    node.terminate().await;
    copy_dir(&node.data().join("store"), &home.path().join("store"));
    let old_mark = fs::read(node.data().join("commit-mark")).unwrap();
    node.restart().await;
    for n in 4..=5 {
        node.send(target.clone(), json!(n)).await;
        expect(&mut told, &json!(n)).await;
    }
    node.wait_until_acknowledged(&one.regid).await;
    device.shutdown().await;
    node.terminate().await;

    fs::remove_dir_all(node.data().join("store")).unwrap();
    copy_dir(&home.path().join("store"), &node.data().join("store"));
    if !keep_mark {
        // The whole machine went back in time: nothing beside the devices knows.
        fs::write(node.data().join("commit-mark"), old_mark).unwrap();
    }
    node.restart().await;
    (node, one, home)
}

async fn new_messages_arrive(node: &Node, one: &support::Device, home: &Path) {
    let (device, mut told) = connect(node, one, &home.join("state")).await;
    device.online().await.unwrap();
    // They get the numbers that 4 and 5 had, in a new epoch.
    for n in 6..=8 {
        node.send(json!({"regids": [one.regid]}), json!(n)).await;
        expect(&mut told, &json!(n)).await;
    }
    device.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mark_shows_a_loss_before_any_device_comes() {
    let (node, one, home) = node_that_lost(true).await;
    assert_eq!(node.counter("carillon_losses_total").await, 1);
    new_messages_arrive(&node, &one, home.path()).await;
    assert_eq!(node.counter("carillon_resumes_total{reason=\"ahead\"}").await, 1);
    assert_eq!(node.counter("carillon_losses_total").await, 1, "its epoch is new already");
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_a_device_with_our_tag_is_a_witness_of_a_loss() {
    let (node, one, home) = node_that_lost(false).await;
    assert_eq!(node.counter("carillon_losses_total").await, 0);
    new_messages_arrive(&node, &one, home.path()).await;
    assert_eq!(node.counter("carillon_losses_total").await, 1);
    assert_eq!(node.counter("carillon_resumes_total{reason=\"ahead\"}").await, 1);
}
