//! D4: a write or sync of the store fails. From then on nothing is answered and nothing
//! new is pushed, the node ends by itself and says so, and a restart loses nothing.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod ledger;
mod support;

use std::ops::Range;

use ledger::{
    Dice,
    fleet::{Door, Plan},
    rounds::{Rounds, since},
    trace::{self, Known},
};

/// From the failure to the end of the process, in seconds.
const END_WITHIN_S: f64 = 1.0;

/// A call of the store that fails.
struct Case {
    call: &'static str,
    /// A file of the data directory; without it, any file.
    file: Option<&'static str>,
    /// Which call of one thread it is.
    number: Range<u64>,
}

const CASES: &[Case] = &[
    // All calls are traced, so that the order of syncs and answers shows.
    Case { call: "fdatasync", file: None, number: 20..150 },
    Case { call: "fdatasync", file: None, number: 20..150 },
    Case { call: "write", file: Some("store/0.jnl"), number: 10..150 },
    Case { call: "fdatasync", file: Some("commit-mark"), number: 1..3 },
    Case { call: "pwrite64", file: Some("commit-mark"), number: 1..3 },
    // At the start.
    Case { call: "fsync", file: Some("store/0.jnl"), number: 1..2 },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_error_of_the_disk_is_the_end_of_all_answers() {
    let mut dice = Dice::of_this_run("disk errors");
    let plan = Plan {
        devices: 10,
        frames: 2,
        aliases: 6,
        topics: 4,
        door: Door::Admin,
        ..Plan::default()
    };
    let mut rounds = Rounds::begin(plan, dice.fork()).await;
    for case in CASES {
        fail_at(&mut rounds, case, dice.of(case.number.clone())).await;
        rounds.recover().await;
    }
    println!("disk errors: {}", rounds.fleet.end().await);
}

async fn fail_at(rounds: &mut Rounds, case: &Case, number: u64) {
    rounds.kill();
    let (mqtt, admin) = (rounds.node.listen().mqtt, rounds.node.listen().admin);
    let (file, call) = (rounds.file("trace"), case.call);
    let on = case.file.map(|name| format!("-P '{}'", rounds.node.data().join(name).display()));
    let inject = format!("-e inject={call}:error=EIO:when={number} {}", on.unwrap_or_default());
    let first = rounds.fleet.ledger.attempted() + 1;
    let logged = rounds.node.log().len();
    let status = rounds.die_by(&trace::command(&file, &inject)).await;
    let what = format!("{call} {number} of {:?}", case.file);
    let log = rounds.node.log();
    let log = since(&log, logged);
    assert_eq!(status.code(), Some(1), "{what}: {status}\n{log}");
    assert!(log.contains("carillon: "), "{what}: a line for people\n{log}");

    let text = trace::whole(&file).await;
    let took = seconds_to_the_end(&text);
    assert!(took <= END_WITHIN_S, "{what}: gone after {took} s\n{log}");
    let known = Known::of(&rounds.fleet.ledger, first);
    let order = trace::judge(&trace::read(&text), &known, &mqtt.to_string(), &admin.to_string());
    let is_whole = case.file.is_none();
    assert!(!is_whole || order.answers > 0 && order.pushes > 0, "{what}: {order:?}");
    // Without the journal's calls in the trace everything would look wrong.
    assert!(!is_whole || order.violations.is_empty(), "{what}: {:#?}", order.violations);
    println!("{what}: gone after {took:.3} s; {} answers before", order.answers);
}

/// From the injected error to the last line of a trace.
fn seconds_to_the_end(trace: &str) -> f64 {
    let time = |line: &str| -> f64 {
        line.split_whitespace().nth(1).and_then(|time| time.parse().ok()).expect("a time")
    };
    let failed = trace.lines().find(|line| line.contains("(INJECTED)")).expect("a failed call");
    time(trace.lines().last().expect("a last line")) - time(failed)
}
