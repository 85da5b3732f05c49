//! D2: the node dies at each of its crash points, under load and at its start; nothing
//! that was answered is lost. Needs the feature `sim`.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]
#![cfg(feature = "sim")]

#[path = "callbacks/hook.rs"]
mod hook;
mod ledger;
mod support;

use std::{collections::BTreeMap, ops::Range, path::Path};

use carillon::{
    base::{
        clock::{Clock, day_of},
        crash_point,
    },
    queue::store::{Batch, Space, Store, embedded::EmbeddedStore},
};
use ledger::{
    Dice,
    fleet::Plan,
    number_from_env,
    rounds::{Rounds, signal_of, since},
};

const SIGABRT: i32 = 6;
/// Days of which the store has something that is too old.
const OLD_DAYS: u32 = 3;
/// Rounds for each point in one run of the gate; the slow set asks for more.
const ROUNDS: u64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_at_any_crash_point_loses_nothing() {
    let rounds_each = number_from_env("CARILLON_KILLS").map_or(ROUNDS, |kills| kills.div_ceil(4));
    let mut dice = Dice::of_this_run("crash points");
    let hook = hook::Hook::start("").await;
    let plan = Plan {
        devices: 12,
        frames: 2,
        aliases: 8,
        topics: 4,
        scheduled_percent: 15,
        collapsed_percent: 8,
        pause_ms: 2..600,
        recalled_percent: 10,
        callback: Some(hook.url()),
        away: 200 * rounds_each as usize,
        ..Plan::default()
    };
    let mut rounds = Rounds::begin(plan, dice.fork()).await;
    hook.trust(&rounds.node.app().app_secret);
    let mut hits: BTreeMap<&str, u64> = BTreeMap::new();
    for round in 0..rounds_each {
        for point in points() {
            // The first time at its first chance, which may be before the node is ready.
            let skipped = if round == 0 { 0 } else { dice.of(chances(point)) };
            die_at(&mut rounds, point, skipped).await;
            *hits.entry(point).or_default() += 1;
            rounds.recover().await;
        }
    }
    // Everything is acknowledged: none of what was asked for is missing.
    hook.wait_for(&rounds.fleet.events().owed()).await;
    let told = rounds.fleet.events().judge(&hook.taken());
    rounds.kill();
    let oldest = EmbeddedStore::open(&rounds.store(), 1 << 20).unwrap().days()[0];
    assert!(oldest >= today() - 1, "old days are dropped in the end, but {oldest} is there");
    let longest = rounds.longest_restart;
    let report = rounds.fleet.end().await;
    assert_eq!(hits.len(), points().count());
    println!("events of callbacks, none missing and none wrong: {told:?}");
    println!("crash points: {hits:?}, {report}, longest restart to ready {longest:?}");
}

/// Every point that messages lead to; those of the storage writer are in `storage_crash.rs`.
fn points() -> impl Iterator<Item = &'static &'static str> {
    crash_point::ALL.iter().filter(|point| !point.starts_with("longterm::"))
}

/// How often a point may be passed before the node dies there: up to a second or two of load.
fn chances(point: &str) -> Range<u64> {
    match point {
        "pointers::before_flush" | "receipts::before_write" | "callbacks::before_pass" => 0..4,
        "mark::before_write" | "mark::before_sync" => 0..3,
        "retention::before_drop" => 0..u64::from(OLD_DAYS),
        "send::after_record" | "send::before_done" => 0..80,
        "schedule::after_accept" | "schedule::before_due" | "schedule::after_due" => 0..25,
        "recall::after_record" => 0..15,
        _ => 0..250,
    }
}

async fn die_at(rounds: &mut Rounds, point: &str, skipped: u64) {
    rounds.kill();
    if point == "retention::before_drop" {
        add_old_days(&rounds.store());
    }
    let logged = rounds.node.log().len();
    let skip = if skipped == 0 { String::new() } else { format!("{skipped}*off->") };
    let status = rounds.die_by(&format!("env 'FAILPOINTS={point}={skip}return'")).await;
    let log = rounds.node.log();
    let log = since(&log, logged);
    assert_eq!(signal_of(status), SIGABRT, "at {point} after {skipped}: {log}");
    assert!(log.contains(&format!("crash point {point}\n")), "{point} after {skipped}: {log}");
}

/// Gives a store, which no node holds, entries that are older than it keeps.
fn add_old_days(dir: &Path) {
    let store = EmbeddedStore::open(dir, 1 << 20).expect("a store that nobody holds");
    let mut batch = Batch::default();
    for day in today() - 40..today() - 40 + OLD_DAYS {
        batch.put(Space::Entries(day), b"key".to_vec(), b"old".to_vec());
        batch.put(Space::Messages(day), b"key".to_vec(), b"old".to_vec());
    }
    store.write(&batch).unwrap();
    store.sync().unwrap();
}

fn today() -> u32 {
    day_of(Clock::system().unix_ms())
}
