//! Which threads of a node go before which others for a processor.
#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;

use std::{collections::BTreeMap, fs};

use support::{Node, Options};

/// How nice each thread of a process is, by the threads' names.
fn niceness(pid: u32) -> BTreeMap<String, Vec<i32>> {
    let mut all: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("a process of ours") {
        // A thread may end between the two.
        let Ok(stat) = fs::read_to_string(task.expect("a thread").path().join("stat")) else {
            continue;
        };
        let (name, fields) =
            stat.split_once('(').expect("a name").1.rsplit_once(") ").expect("more");
        let nice = fields.split(' ').nth(16).expect("the 19th field").parse().expect("a number");
        all.entry(name.to_owned()).or_default().push(nice);
    }
    all
}

#[tokio::test]
async fn the_threads_of_connections_stand_back_behind_calls_and_commits() {
    let config = Some("[edge]\nnice = 3\n".to_owned());
    let node = Node::start_with(Options { config, ..Options::default() }).await;
    let all = niceness(node.pid());
    let ours = niceness(std::process::id()).into_values().flatten().next().expect("a thread");
    for (name, expected) in [("writer", ours), ("node", ours), ("devices", (ours + 3).min(19))] {
        let threads = all.get(name).unwrap_or_else(|| panic!("no {name} in {all:?}"));
        assert!(
            threads.iter().all(|nice| *nice == expected),
            "{name}: {threads:?}, not {expected}"
        );
    }
}
