//! Snapshots over frames: a device that gathers chunks, is cut anywhere, and comes again.
//! `CARILLON_SEED=n` repeats one history, `CARILLON_SEEDS=n` runs more.

#![allow(clippy::disallowed_methods, reason = "tests read their settings")]

mod dice;
mod edge_support;
mod gatherer;

use std::collections::BTreeSet;

use carillon::{
    config::Config,
    queue::{plan::Jump, position::Seq},
    service::snapshots::{Part, Place, Rest},
};
use carillon_wire::idl::JumpReason;
use dice::{number_from_env, seeds};
use gatherer::{Gatherer, Scene};

/// A frame takes three of them.
fn large(n: usize) -> String {
    format!("{n} {}", "x".repeat(30_000))
}

fn few_at_once() -> Config {
    let mut config = Config::default();
    config.edge.window_per_registration = 1;
    config
}

#[tokio::test(start_paused = true)]
async fn a_new_device_is_given_items_newest_first_and_then_what_follows() {
    let scene = Scene::new().await;
    for n in 0..7 {
        scene.set(&format!("k{n}"), &large(n)).await;
    }
    scene.set("k0", &large(8)).await;
    scene.delete("k1").await;
    scene.message("before it came").await;
    let mut device = Gatherer::bound(&scene).await;
    device.catch_up(&scene).await;
    let keys: Vec<_> = device.gathered_keys().collect();
    assert_eq!(keys, ["k0", "k6", "k5", "k4", "k3", "k2"]);
    assert_eq!((device.chunks.len(), device.switches), (2, 1));
    assert_eq!(device.reasons(), [JumpReason::NEW]);
    device.check(&scene).await;
    scene.set("k9", "1").await;
    scene.delete("k6").await;
    scene.message("after").await;
    device.catch_up(&scene).await;
    assert_eq!((device.chunks.len(), &device.messages[..]), (2, &["after".to_owned()][..]));
    device.check(&scene).await;
    device.forget_positions();
    device.catch_up(&scene).await;
    assert_eq!(device.reasons(), [JumpReason::NEW; 2], "who lost all is new");
    device.check(&scene).await;
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_alias_has_no_items_begins_with_deltas() {
    let scene = Scene::new().await;
    let mut device = Gatherer::bound(&scene).await;
    device.catch_up(&scene).await;
    scene.set("a", "1").await;
    scene.set("a", "2").await;
    device.catch_up(&scene).await;
    device.check(&scene).await;
    scene.delete("a").await;
    let mut late = Gatherer::bound(&scene).await;
    late.catch_up(&scene).await;
    // It had not been given anything yet: the gateway cannot tell whether it has items.
    assert_eq!((device.reasons(), late.chunks.len()), (vec![JumpReason::NEW], 0));
    late.check(&scene).await;
}

#[tokio::test(start_paused = true)]
async fn s13_a_cut_costs_less_than_a_chunk() {
    let scene = Scene::with(few_at_once()).await;
    for n in 0..20 {
        scene.set(&format!("k{n:02}"), &large(n)).await;
    }
    let mut device = Gatherer::bound(&scene).await;
    scene.folded().await;
    for _ in 0..50 {
        device.visit(&scene, None).await;
        // The answer to every other visit is lost.
        device.visit(&scene, Some(0)).await;
    }
    assert_eq!(device.chunks.len(), 7);
    let keys: Vec<_> = device.gathered_keys().collect();
    assert_eq!(keys.len(), 20, "each item once");
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 20);
    assert_eq!(device.reasons(), [JumpReason::NEW]);
    device.check(&scene).await;
}

#[tokio::test(start_paused = true)]
async fn s14_what_a_device_has_stays_readable_until_the_whole_snapshot_is_there() {
    let mut scene = Scene::with(few_at_once()).await;
    for n in 0..8 {
        scene.set(&format!("k{n}"), &large(n)).await;
    }
    let mut device = Gatherer::bound(&scene).await;
    device.catch_up(&scene).await;
    scene.delete("k0").await;
    scene.set("k1", &large(11)).await;
    scene.message("lost with its day").await;
    let old = device.items.clone();
    scene = scene.later(30).await;
    device.was_away();
    scene.set("k2", &large(12)).await;
    scene.message("held").await;
    let before = device.switches;
    scene.folded().await;
    while device.switches == before {
        assert!(device.items == old, "they are as they were");
        device.visit(&scene, None).await;
    }
    device.catch_up(&scene).await;
    assert_eq!(device.reasons(), [JumpReason::NEW, JumpReason::OVERFLOW]);
    assert_eq!(device.messages, ["held"]);
    device.check(&scene).await;
}

#[tokio::test(start_paused = true)]
async fn a_floor_that_passes_the_snapshot_begins_it_again() {
    let mut scene = Scene::with(few_at_once()).await;
    for n in 0..8 {
        scene.set(&format!("k{n}"), &large(n)).await;
    }
    let mut device = Gatherer::bound(&scene).await;
    scene.folded().await;
    while !device.is_gathering() {
        device.visit(&scene, None).await;
    }
    scene.set("k3", &large(13)).await;
    scene.delete("k7").await;
    scene = scene.later(30).await;
    device.was_away();
    scene.set("k5", &large(15)).await;
    device.catch_up(&scene).await;
    assert_eq!(device.reasons(), [JumpReason::NEW, JumpReason::OVERFLOW]);
    device.check(&scene).await;
}

#[tokio::test(start_paused = true)]
async fn s12_a_snapshot_is_given_where_it_is_smaller_than_what_was_missed() {
    let scene = Scene::new().await;
    for n in 0..100 {
        scene.set(&format!("k{n}"), &format!("{n}")).await;
    }
    let (mut device, mut chatty) = (Gatherer::bound(&scene).await, Gatherer::bound(&scene).await);
    device.catch_up(&scene).await;
    // Many changes of few items are few deltas.
    for n in 0..400 {
        scene.set(&format!("k{}", n % 3), &format!("again {n}")).await;
    }
    device.catch_up(&scene).await;
    chatty.catch_up(&scene).await;
    assert_eq!(device.reasons(), [JumpReason::NEW]);
    for n in 0..100 {
        scene.set(&format!("k{n}"), &format!("anew {n}")).await;
    }
    scene.folded().await;
    device.catch_up(&scene).await;
    assert_eq!(device.reasons(), [JumpReason::NEW, JumpReason::SMALLER]);
    device.check(&scene).await;
    // A message that is due comes with the changes around it.
    chatty.catch_up(&scene).await;
    let had = chatty.reasons();
    for n in 0..100 {
        scene.set(&format!("k{n}"), &format!("last {n}")).await;
        if n == 50 {
            scene.message("in between").await;
        }
    }
    scene.folded().await;
    chatty.catch_up(&scene).await;
    device.catch_up(&scene).await;
    assert_eq!((chatty.reasons(), &chatty.messages[..]), (had, &["in between".to_owned()][..]));
    chatty.check(&scene).await;
    device.check(&scene).await;
}

#[tokio::test(start_paused = true)]
async fn i9_several_reasons_for_a_snapshot_are_one_snapshot() {
    let mut scene = Scene::with(few_at_once()).await;
    for n in 0..8 {
        scene.set(&format!("k{n}"), &large(n)).await;
    }
    let mut device = Gatherer::bound(&scene).await;
    device.catch_up(&scene).await;
    // What it misses is more than all items, retention drops it, and then it loses all.
    for n in 0..80 {
        scene.set(&format!("k{}", n % 8), &large(n)).await;
    }
    scene = scene.later(30).await;
    device.was_away();
    for n in 0..80 {
        scene.set(&format!("k{}", n % 8), &large(n)).await;
    }
    scene.folded().await;
    device.forget_positions();
    let before = (device.chunks.len(), device.switches);
    device.catch_up(&scene).await;
    assert_eq!(device.reasons().len(), 2, "{:?}", device.reasons());
    assert_eq!((device.chunks.len(), device.switches), (before.0 + 3, before.1 + 1));
    device.check(&scene).await;
}

#[tokio::test(start_paused = true)]
async fn s11_none_is_lost_or_doubled_whatever_changes_meanwhile() {
    let mut seen = gatherer::history::Seen::default();
    for seed in seeds(4) {
        println!("CARILLON_SEED={seed}");
        gatherer::history::history(seed, &mut seen).await;
    }
    println!("{seen:?}");
    if seen.histories > 1 {
        assert!(seen.is_enough(), "{seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn s7_any_position_is_answered_and_leads_to_what_is_there() {
    let tokens = number_from_env("CARILLON_TOKENS").unwrap_or(1_000);
    let told = gatherer::tokens::any_token(tokens, seeds(1).start).await;
    println!("{told:?}");
    assert!(told.contains_key(&None), "a true position is continued");
    for reason in [JumpReason::NEW, JumpReason::OVERFLOW] {
        assert!(told.contains_key(&Some(reason.0)), "{reason:?} in {told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_no_long_term_storage_goes_on_without_a_snapshot() {
    let mut scene = Scene::new().await;
    scene.set("a", "1").await;
    scene = scene.without_longterm().await;
    let mut client = scene.connect_bound().await;
    scene.message("is not kept waiting for ever").await;
    let entries = client.entries_until("is not kept waiting for ever").await;
    assert!(entries.iter().all(|entry| entry.change.is_none()));
}

#[tokio::test(start_paused = true)]
async fn s11_a_snapshot_is_exact_behind_all_that_changed_while_its_chunks_were_read() {
    let mut scene = Scene::new().await;
    for n in 0..4 {
        scene.set(&format!("k{n}"), &large(n)).await;
    }
    scene.folded().await;
    let Part::Chunk(first) = scene.chunk(4, None).await else { panic!("a chunk") };
    let Rest::Before(before) = first.rest else { panic!("a cut: {first:?}") };
    let place = Place { at: first.at, before };
    scene.set("k0", "anew").await;
    scene.folded().await;
    let Part::Chunk(last) = scene.chunk(4, Some(place)).await else { panic!("a chunk") };
    assert_eq!((last.begins, last.items.len()), (false, 0), "`k0` is behind the snapshot");
    assert_eq!(last.rest, Rest::Until(Seq(5)), "a delta brings it");
    let later = scene.chunk(6, None).await;
    assert!(matches!(later, Part::Later), "it is not folded so far: {later:?}");
    // A connection lasts, and retention passes its snapshot.
    scene = scene.later(30).await;
    scene.set("k1", "anew").await;
    scene.folded().await;
    let Part::Chunk(again) = scene.chunk(4, Some(place)).await else { panic!("a chunk") };
    assert_eq!((again.begins, again.reason), (true, Jump::Overflow));
    assert!(again.at.seq >= Seq(5), "deltas begin at what is held: {:?}", again.at);
}
