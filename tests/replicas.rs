//! A seeded simulation of replicas: SDK devices with collections, an app server and a node.
//!
//! All of them are the real ones, on one thread in virtual time. Connections are cut behind any
//! byte, devices die between any two steps, the node dies and loses what was not synced, clocks
//! are set, replicas are damaged. At rest every replica must be what the gateway holds, nothing
//! may be lost, and nothing applied twice. `CARILLON_SEED=n` repeats one seed,
//! `CARILLON_SEEDS=n` runs more.

#![allow(clippy::disallowed_methods, reason = "tests start tasks and read their settings")]

#[path = "replicas/bugs.rs"]
mod bugs;
#[path = "replicas/checks.rs"]
mod checks;
mod dice;
#[path = "replicas/line.rs"]
mod line;
#[path = "replicas/phone.rs"]
mod phone;
#[path = "simulation/stage.rs"]
mod stage;
#[path = "replicas/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bugs::{Bug, Seen};
use dice::seeds;
use world::World;

/// What happens in one run, before it comes to rest: at least, and how much more at most.
const STEPS: [u64; 2] = [10, 20];

/// Seeds in an ordinary run.
const SEEDS: u64 = 1_000;
/// Within how many of them each planted bug must be seen.
const SEEDS_OF_A_BUG: u64 = 100;

/// Runs one seed; the violations that it showed, and what it did.
fn run(seed: u64, bug: Bug) -> (Vec<String>, Seen) {
    let runtime = stage::paused();
    runtime.block_on(async {
        let mut world = World::new(seed, bug).await;
        for _ in 0..STEPS[0] + world.below(STEPS[1]) {
            world.step().await;
        }
        world.settle().await;
        let violations = world.check().await;
        let seen = world.ether.watch.seen.lock().unwrap().clone();
        (violations, seen)
    })
}

/// The same; a panic is a violation.
fn judged(seed: u64, bug: Bug) -> (Vec<String>, Seen) {
    let run = catch_unwind(AssertUnwindSafe(|| run(seed, bug)));
    run.unwrap_or_else(|_| (vec!["panicked".into()], Seen::default()))
}

#[test]
fn replicas_are_what_the_gateway_holds_whatever_is_cut_or_dies() {
    let seeds = seeds(SEEDS);
    let mut all = Seen::default();
    for seed in seeds.clone() {
        let (violations, seen) = judged(seed, Bug::None);
        assert!(
            violations.is_empty(),
            "seed {seed}: {violations:#?}\nalone: CARILLON_SEED={seed} cargo test --features sim \
             --test replicas replicas_are"
        );
        all += seen;
    }
    println!("{seeds:?}: {:?}", all.numbers());
    for (what, count) in all.numbers() {
        assert!(seeds.end - seeds.start == 1 || *count > 0, "{what} did not happen");
    }
}

#[test]
fn planted_bugs_are_noticed() {
    for bug in Bug::ALL {
        let noticed = (0..SEEDS_OF_A_BUG).find(|seed| !judged(*seed, bug).0.is_empty());
        println!("{bug:?}: {noticed:?}");
        assert!(noticed.is_some(), "{bug:?} went unnoticed");
    }
}
