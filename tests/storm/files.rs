//! O4: too few open files.

use std::{fs, time::Instant};

use serde_json::json;

use crate::{
    flood::{Scene, client::Client, crowd, scale},
    support::Options,
    wirelab::lab::devices,
};

/// Seconds of processor time that the node has used.
fn cpu_s(scene: &Scene) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", scene.node.pid())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("Linux").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

#[tokio::test]
async fn without_files_new_sockets_are_closed_and_everything_else_goes_on() {
    const FILES: usize = 640;
    let sockets = 400 * scale();
    let wrapper = ["prlimit", &format!("--nofile={FILES}:{FILES}")].map(str::to_owned).to_vec();
    let mut scene = Scene::with_options(Options { wrapper, ..Options::default() }).await;
    let accounts = devices(&scene.node, sockets).await;
    let (quiet, ()) = scene.served_while(20, async {}).await;
    let to = scene.mqtt();
    let (cpu, at) = (cpu_s(&scene), Instant::now());
    let opened = crowd(sockets, sockets, |number| {
        let account = accounts[number].clone();
        async move {
            let mut client = Client::open(to, Some(1)).await.expect("a socket");
            client.connect(&account).await.is_ok().then_some(client)
        }
    });
    let opened = opened.await;
    let held = opened.iter().flatten().count();
    let share = (cpu_s(&scene) - cpu) / at.elapsed().as_secs_f64();
    println!("{sockets} connects, {held} held, {:.0} % of a core: quiet {quiet}", share * 100.0);
    assert!((50..FILES - 384).contains(&held), "{held} were let in");
    assert_eq!(scene.refused("files").await, sockets - held);
    // The store, the operator and app servers have files, and so do those who are in.
    for _ in 0..20 {
        scene.node.send(json!({"topic": "any"}), json!(1)).await;
        scene.node.create_device().await;
    }
    assert!(scene.node.metrics().await.contains("process_open_fds"));
    drop(opened);
    let mut back = Client::open(to, Some(1)).await.expect("a socket");
    while back.connect(&accounts[0]).await.is_err() {
        back = Client::open(to, Some(1)).await.expect("a socket");
    }
    assert!(!scene.node.log().contains("cannot accept"), "the reserve was used up");
}
