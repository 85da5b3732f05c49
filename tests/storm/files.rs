//! O4: too few open files.

use std::{fs, net::SocketAddr, time::Instant};

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::silent::HALF_HELLO;
use crate::{
    flood::{DEADLINE, Scene, client::Client, crowd, size, tell},
    support::{APP, Options, poll_until},
    wirelab::lab::devices,
};

/// Seconds of processor time that the node has used.
fn cpu_s(scene: &Scene) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", scene.node.pid())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("Linux").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_files_new_sockets_are_closed_and_everything_else_goes_on() {
    let sockets = size(900, 5_000);
    let wrapper = ["prlimit", &format!("--nofile={FILES}:{FILES}")].map(str::to_owned).to_vec();
    let options = Options { wrapper, config: Some(String::new()), ..Options::default() };
    let mut scene = Scene::with_options(options).await;
    let accounts = devices(&scene.node, sockets).await;
    let quiet = scene.quiet().await;
    // Nobody more is let in, also of those who behave.
    scene.is_open = false;
    let to = scene.mqtt();
    let flood = crowd(sockets, sockets, |number| {
        let account = accounts[number].clone();
        async move {
            let mut client = Client::open(to, Some(1)).await.expect("a socket");
            client.connect(&account).await.is_ok().then_some(client)
        }
    });
    let (during, opened) = scene.served_while(20, flood).await;
    tell(&format!("{sockets} connects for {} files", FILES - KEPT), &quiet, &during);
    let held = opened.iter().flatten().count();
    assert!((50..FILES - KEPT).contains(&held), "{held} were let in");
    assert_eq!(scene.refused("files").await, sockets - held);
    at_the_limit_only_new_sockets_suffer(&scene).await;

    let at = Instant::now();
    drop(opened);
    let back = async || {
        let mut back = Client::open(to, Some(1)).await.expect("a socket");
        back.connect(&accounts[0]).await.is_ok().then_some(back)
    };
    let back = poll_until(DEADLINE, back).await.expect("who leaves makes room");
    println!("{held} held; after they left the next one was in after {:?}", at.elapsed());
    back.leave().await;
    assert!(!scene.node.log().contains("cannot accept"), "the reserve was used up");
    scene.is_open = true;
    scene.end_well().await;
}

async fn at_the_limit_only_new_sockets_suffer(scene: &Scene) {
    let (refused, knocks) = (scene.refused("files").await, size(300, 2_000));
    let (cpu, at) = (cpu_s(scene), Instant::now());
    for _ in 0..knocks {
        is_closed(scene.mqtt(), b"").await;
    }
    let share = 100.0 * (cpu_s(scene) - cpu) / at.elapsed().as_secs_f64();
    println!("{knocks} sockets closed one after the other took {share:.0} % of a core");
    is_closed(scene.node.listen().mqtts, &HALF_HELLO).await;
    assert_eq!(scene.refused("files").await, refused + knocks + 1);

    // The store, the operator and app servers have files, and so have those who are in.
    for _ in 0..20 {
        scene.node.send(json!({"topic": "any"}), json!(1)).await;
        scene.node.create_device().await;
    }
    let url = format!("{}/v1/apps/{APP}/messages", scene.node.https_url());
    let body = json!({"target": {"topic": "any"}, "payload": 1});
    let call = scene.node.https_client().post(url).bearer_auth(&scene.node.app().app_secret);
    assert_eq!(call.json(&body).send().await.expect("a TLS handshake").status(), 202);
    assert!(scene.node.metrics().await.contains("process_open_fds"));
    let home = scene.node.data().parent().expect("a home").to_owned();
    fs::write(home.join("carillon.toml"), "[limits]\npayload_bytes_max = 4000\n").unwrap();
    let told: Value = serde_json::from_str(&scene.node.cli(&["reload"]).await).unwrap();
    assert_eq!(told["changed"], json!(["limits.payload_bytes_max"]));
}

/// A socket that says this finds itself closed without an answer.
async fn is_closed(to: SocketAddr, says: &[u8]) {
    let mut client = Client::open(to, Some(1)).await.expect("a socket");
    client.say_bytes(says).await;
    let read = tokio::time::timeout(DEADLINE, client.stream.read(&mut [0])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
}

const FILES: usize = 1_024;
/// Files that no device gets.
const KEPT: usize = 384;
