//! O1: devices that do not read, or slowly.

use std::time::Duration;

use carillon_wire::{
    frame, idl,
    mqtt::{Ack, Packet, Publish, Qos, Version},
};
use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpSocket, task::JoinSet, time::sleep};

use crate::{
    flood::{DEADLINE, Scene, client::Client, size, tell},
    support::{Device, Options, poll_until},
    wirelab::lab::devices,
};

const TOPIC: &str = "flood";

/// A device over a socket that takes little, connected.
async fn narrow(scene: &Scene, device: &Device) -> Client {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    let stream = socket.connect(scene.mqtt()).await.expect("the node listens");
    let mut client = Client::over(stream, Version::V5);
    assert_eq!(client.connect(device).await, Ok(()));
    client
}

/// It is to get what it follows, and reads nothing of it.
async fn follow_plain(client: &mut Client) {
    client.subscribe().await;
    assert!(matches!(client.hear().await, Ok(Packet::SubAck(_))));
}

/// The same in frames.
async fn follow_in_frames(client: &mut Client) {
    let resume = Some(idl::Resume { digest: 1, dictionary: None });
    client.say(&[up(idl::Up { resume, ..idl::Up::default() })]).await;
    assert!(matches!(client.hear().await, Ok(Packet::Publish(_))), "it asks for positions");
    let positions = Some(idl::Positions { registrations: Vec::new(), more: None });
    client.say(&[up(idl::Up { positions, ..idl::Up::default() })]).await;
}

fn up(up: idl::Up) -> Packet {
    let mut payload = Vec::new();
    frame::encode_up(&up, &mut payload).expect("a frame of ours");
    let (topic, payload) = ("up".to_owned(), payload.into());
    Packet::Publish(Publish { topic, qos: Qos::AtMostOnce, payload, ..Publish::default() })
}

/// New devices that are subscribed to the topic.
async fn followers(scene: &Scene, count: usize) -> Vec<Device> {
    let accounts = devices(&scene.node, count).await;
    for account in &accounts {
        scene.node.subscribe(&account.regid, TOPIC).await;
    }
    accounts
}

/// These devices over sockets that take little; after `follow` they read nothing.
async fn stall(
    scene: &Scene,
    accounts: &[Device],
    follow: impl AsyncFn(&mut Client),
) -> Vec<Client> {
    let mut stalled = Vec::new();
    for account in accounts {
        let mut client = narrow(scene, account).await;
        follow(&mut client).await;
        stalled.push(client);
    }
    stalled
}

async fn send_much(scene: &Scene, target: serde_json::Value, messages: usize, bytes: usize) {
    for number in 0..messages {
        let text = format!("{number} {}", "x".repeat(bytes));
        scene.node.send(target.clone(), json!(text)).await;
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

/// Messages that are as large as any, and a store that keeps little of them in memory.
fn large(edge: &str) -> Options {
    let config = format!(
        "[limits]\npayload_bytes_max = 65536\n\
         [store]\ntail_bytes = 1048576\ncache_bytes = 1048576\n[edge]\n{edge}"
    );
    Options { config: Some(config), ..Options::default() }
}

/// The memory that the node grows by until all these are cut, while none is.
async fn grown_until_cut(scene: &Scene, before_kib: usize, count: usize) -> usize {
    let (mut most, mut cut) = (0, 0);
    let all_cut = async || {
        if cut == 0 {
            most = most.max(scene.memory_kib());
        }
        cut = scene.ended("write_timeout").await;
        (cut == count).then_some(())
    };
    assert!(poll_until(DEADLINE, all_cut).await.is_some(), "who takes nothing stays");
    most.saturating_sub(before_kib)
}

/// In the slow set 1,000, as O1 asks. The messages wait for the devices, so that nothing but the
/// devices takes memory while it is measured.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_costs_little_is_cut_and_loses_nothing() {
    let (count, messages) = (size(60, 1_000), 12);
    let edge = format!("write_timeout_ms = {}\n", size(3_000, 10_000));
    let mut scene = Scene::with_options(large(&edge)).await;
    let accounts = followers(&scene, count).await;
    send_much(&scene, json!({"topic": TOPIC}), messages, 60_000).await;
    let quiet = scene.quiet().await;

    let before = scene.memory_kib();
    let stalled = stall(&scene, &accounts, follow_plain).await;
    let plain = grown_until_cut(&scene, before, count).await;
    println!("{count} plain devices that do not read: {} KiB each", plain / count);
    drop(stalled);
    for account in &accounts {
        let mut back = Client::open(scene.mqtt(), None).await.expect("a socket");
        assert_eq!(back.connect(account).await, Ok(()));
        back.subscribe().await;
        take_all(&mut back, messages).await;
        back.leave().await;
    }
    let after = scene.quiet().await;
    tell(&format!("after {count} devices that did not read"), &quiet, &after);
    assert!(plain <= 64 * count + 2_048, "{plain} KiB for {count} devices");
    scene.end_well().await;
}

/// The same of those who speak frames and unpack none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_in_frames_costs_little() {
    let count = size(60, 1_000);
    let edge = format!("write_timeout_ms = {}\n", size(3_000, 10_000));
    let scene = Scene::with_options(large(&edge)).await;
    let accounts = followers(&scene, count).await;
    send_much(&scene, json!({"topic": TOPIC}), 128, 4_000).await;
    let before = scene.memory_kib();
    let _stalled = stall(&scene, &accounts, follow_in_frames).await;
    let grown = grown_until_cut(&scene, before, count).await;
    println!("{count} devices that do not read frames: {} KiB each", grown / count);
    assert!(grown <= 64 * count + 2_048, "{grown} KiB for {count} devices");
    scene.end_well().await;
}

/// The write timeout is for who takes nothing, not for who is slow.
#[tokio::test]
async fn who_reads_slowly_is_served_for_as_long_as_it_takes() {
    const MESSAGES: usize = 60;
    // The kernel reports room in steps of a third of its buffer: a small one has small steps.
    let scene =
        Scene::with_options(large("write_timeout_ms = 3000\nsend_buffer_bytes = 8192\n")).await;
    let account = devices(&scene.node, 1).await.remove(0);
    let mut client = narrow(&scene, &account).await;
    follow_plain(&mut client).await;
    send_much(&scene, json!({"regids": [account.regid]}), MESSAGES, 60_000).await;
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

/// O1: as many who read as who do not, 1,000 each in the slow set, and a topic that all follow.
/// Those who behave beside them are served; those who read get everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_served_while_many_do_not_read() {
    let (count, messages) = (size(20, 1_000), size(60, 600));
    let config = Some("[limits]\npayload_bytes_max = 16384\n".to_owned());
    let mut scene = Scene::with_options(Options { config, ..Options::default() }).await;
    let accounts = followers(&scene, 2 * count).await;
    let (stalling, reading) = accounts.split_at(count);
    let _stalled = stall(&scene, stalling, follow_plain).await;
    let mut readers = JoinSet::new();
    for account in reading {
        let mut client = Client::open(scene.mqtt(), None).await.expect("a socket");
        assert_eq!(client.connect(account).await, Ok(()));
        follow_plain(&mut client).await;
        readers.spawn(async move { take_all(&mut client, messages).await });
    }
    let quiet = scene.quiet().await;
    let (url, token) = (scene.node.admin().url.clone(), scene.node.admin().token.clone());
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let flood = async move {
        // One after the other: so they have their order.
        for number in 0..messages {
            let request = client.post(format!("{url}/v1/apps/demo/messages")).bearer_auth(&token);
            // So large that no window of them fits the kernel's buffer.
            let text = format!("{number} {}", "x".repeat(12_000));
            let body = json!({"target": {"topic": TOPIC}, "payload": text});
            let sent = request.json(&body).send().await.expect("an answer");
            assert_eq!(sent.status(), 202);
        }
        while let Some(reader) = readers.join_next().await {
            reader.expect("it got everything");
        }
    };
    let (during, ()) = scene.served_while(20, flood).await;
    tell(&format!("{count} devices that do not read beside {count} that do"), &quiet, &during);
    scene.end_well().await;
}
