//! O1: devices that do not read, or slowly.

use std::time::Duration;

use carillon_wire::mqtt::{Ack, Packet, Version};
use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpSocket, time::sleep};

use crate::{
    flood::{Scene, client::Client, crowd, scale},
    support::{DEADLINE, Device, poll_until},
    wirelab::lab::devices,
};

const TOPIC: &str = "flood";

/// A device that follows the topic over a socket that takes little.
async fn narrow(scene: &Scene, device: &Device) -> Client {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    let stream = socket.connect(scene.mqtt()).await.expect("the node listens");
    let mut client = Client::over(stream, Version::V5);
    assert_eq!(client.connect(device).await, Ok(()));
    client.subscribe().await;
    assert!(matches!(client.hear().await, Ok(Packet::SubAck(_))));
    client
}

/// More than windows and socket buffers of one device take.
async fn send_much(scene: &Scene, regid: &str, messages: usize) {
    for number in 0..messages {
        let text = format!("{number} {}", "x".repeat(60_000));
        scene.node.send(json!({"regids": [regid]}), json!(text)).await;
    }
}

/// Acknowledges what comes until all has come; in order, each at least once.
async fn take_all(client: &mut Client, messages: usize) {
    let mut newest = None;
    while newest != Some(messages - 1) {
        let Packet::Publish(publish) = client.hear().await.expect("it goes on") else { continue };
        let text = std::str::from_utf8(&publish.payload[1..]).expect("text");
        let number: usize = text.split(' ').next().expect("a number").parse().expect("a number");
        assert!(newest.is_none_or(|newest| number == newest + 1), "{number} after {newest:?}");
        newest = Some(number);
        client.say(&[Packet::PubAck(Ack { packet_id: publish.packet_id, reason: 0 })]).await;
    }
}

const LARGE: &str = "[limits]\npayload_bytes_max = 65536\n[store]\ntail_bytes = 1048576\n";

#[tokio::test]
async fn who_takes_nothing_is_cut_and_loses_nothing() {
    let count = 8 * scale();
    let edge = "write_timeout_ms = 800\n";
    let options = crate::support::Options {
        config: Some(format!("{LARGE}[edge]\n{edge}")),
        ..Default::default()
    };
    let mut scene = Scene::with_options(options).await;
    let accounts = devices(&scene.node, count).await;
    for account in &accounts {
        scene.node.subscribe(&account.regid, TOPIC).await;
    }
    let mut stalled = Vec::new();
    for account in &accounts {
        stalled.push(narrow(&scene, account).await);
    }
    let (quiet, ()) = scene.served_while(50, async {}).await;
    let before = scene.memory_kib();
    for number in 0..MESSAGES {
        let text = format!("{number} {}", "x".repeat(60_000));
        scene.node.send(json!({"topic": TOPIC}), json!(text)).await;
    }
    let cut = async || (scene.ended("write_timeout").await == count).then_some(());
    assert!(poll_until(DEADLINE, cut).await.is_some(), "who takes nothing stays");
    let grown = scene.memory_kib().saturating_sub(before);
    let (after, ()) = scene.served_while(50, async {}).await;
    println!("{count} devices that do not read, {grown} KiB: quiet {quiet}; after {after}");
    // What all share of the messages is in memory once; a device costs its output at most.
    assert!(grown < 8_192 + 512 * count, "{grown} KiB for {count} devices");
    drop(stalled);
    for account in &accounts {
        let mut back = Client::open(scene.mqtt(), None).await.expect("a socket");
        assert_eq!(back.connect(account).await, Ok(()));
        back.subscribe().await;
        take_all(&mut back, MESSAGES).await;
    }
    scene.end_well().await;
}

/// The write timeout is for who takes nothing, not for who is slow.
#[tokio::test]
async fn who_reads_slowly_is_served_for_as_long_as_it_takes() {
    // The kernel reports room in steps of a third of its buffer: a small one has small steps.
    let edge = "write_timeout_ms = 3000\nsend_buffer_bytes = 8192\n";
    let options = crate::support::Options {
        config: Some(format!("{LARGE}[edge]\n{edge}")),
        ..Default::default()
    };
    let scene = Scene::with_options(options).await;
    let account = devices(&scene.node, 1).await.remove(0);
    let client = narrow(&scene, &account).await;
    send_much(&scene, &account.regid, MESSAGES).await;
    // Each read comes well within the timeout, all of them take longer, and output waits on.
    let mut stream = client.stream;
    let mut buffer = vec![0; 256 << 10];
    let mut taken = 0;
    for _ in 0..40 {
        sleep(Duration::from_millis(100)).await;
        taken += stream.read(&mut buffer).await.expect("it goes on");
    }
    assert_eq!(scene.ended("write_timeout").await, 0, "cut after {taken} bytes");
    assert!(taken < MESSAGES * 60_000 / 2, "{taken} bytes: nothing waited");
    drop(stream);
    scene.end_well().await;
}

#[tokio::test]
async fn others_are_served_while_many_do_not_read() {
    let count = 20 * scale();
    let mut scene = Scene::with("", "").await;
    let accounts = devices(&scene.node, count).await;
    for account in &accounts {
        scene.node.subscribe(&account.regid, TOPIC).await;
    }
    let mut stalled = Vec::new();
    for account in &accounts {
        stalled.push(narrow(&scene, account).await);
    }
    let (quiet, ()) = scene.served_while(100, async {}).await;
    let (url, token) = (scene.node.admin().url.clone(), scene.node.admin().token.clone());
    let flood = crowd(200 * scale(), 4, move |number| {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let request = client.post(format!("{url}/v1/apps/demo/messages")).bearer_auth(&token);
        let text = format!("{number} {}", "x".repeat(4_000));
        let body = json!({"target": {"topic": TOPIC}, "payload": text});
        async move { request.json(&body).send().await.is_ok_and(|sent| sent.status() == 202) }
    });
    let (during, sent) = scene.served_while(20, flood).await;
    assert!(sent.iter().all(|is_sent| *is_sent));
    println!("{count} devices that do not read: quiet {quiet}; flood {during}");
    scene.end_well().await;
}

const MESSAGES: usize = 60;
