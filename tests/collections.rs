//! Changes of collections over the whole service: what a follower is given of them, from any
//! position, makes of what it holds there exactly what the alias holds at last.
//! `CARILLON_SEED=n` repeats one history, `CARILLON_SEEDS=n` runs more.

#![allow(clippy::disallowed_methods, reason = "tests start tasks and read their settings")]

mod dice;
mod replica;
#[path = "simulation/stage.rs"]
mod stage;

use carillon::{
    queue::{
        collection::{
            change::{Format, Kind, Value},
            rule::{Outcome, Rule},
        },
        position::Seq,
    },
    service::{Error, collections::Change},
};
use dice::seeds;
use replica::{
    Scene, json,
    oracle::{Seen, World},
};

#[tokio::test(start_paused = true)]
async fn changes_and_messages_of_an_alias_are_in_one_order() {
    let scene = Scene::new().await;
    scene.set("newest", "a", "1").await;
    scene.message().await;
    scene.set("newest", "a", "2").await;
    scene.set("newest", "b", "3").await;
    let given = scene.given(Seq(0));
    let keys: Vec<_> = given.iter().map(|entry| entry.seq).collect();
    assert_eq!(keys, [2, 3, 4], "the first change of `a` is covered, and not given");
    assert_eq!(given[1].kind, Some(Kind::Update));
    assert_eq!(scene.given(Seq(1))[1].value, Some(json("2")));
}

#[tokio::test(start_paused = true)]
async fn s18_what_came_and_went_unseen_vanishes() {
    let scene = Scene::new().await;
    scene.set("newest", "a", "1").await;
    scene.set("newest", "a", "2").await;
    scene.delete("newest", "a").await;
    scene.set("newest", "b", "1").await;
    let seqs = |after| scene.given(Seq(after)).iter().map(|entry| entry.seq).collect::<Vec<_>>();
    assert_eq!(seqs(0), [4], "`a` was never there");
    assert_eq!(seqs(1), [3, 4], "who has it is told that it is no more");
    assert_eq!(seqs(2), [3, 4]);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_came_back_and_went_is_ended_for_who_had_it_before() {
    let scene = Scene::new().await;
    scene.set("newest", "a", "1").await;
    scene.delete("newest", "a").await;
    scene.set("newest", "a", "2").await;
    scene.delete("newest", "a").await;
    let seqs = |after| scene.given(Seq(after)).iter().map(|entry| entry.seq).collect::<Vec<_>>();
    assert_eq!(seqs(1), [4], "it has the first life");
    // It may have it still: who was here between 2 and 3 was told, who came later was not.
    assert_eq!(seqs(2), [4]);
    assert_eq!(seqs(3), [4]);
}

#[tokio::test(start_paused = true)]
async fn fields_of_several_makers_are_merged_in_one_call_and_over_calls() {
    let scene = Scene::new().await;
    let base = Some(Seq(0));
    let first = scene.ask("merge", "a", Some(json(r#"{"x":1}"#)), None);
    let late = scene.of_device(scene.ask("merge", "a", Some(json(r#"{"y":2}"#)), base), 1);
    let done = scene.change(vec![first, late]).await;
    assert_eq!(scene.outcomes(&done), [Some(Outcome::Applied), Some(Outcome::Merged)]);
    let late = scene.of_device(scene.ask("merge", "a", Some(json(r#"{"z":3}"#)), base), 2);
    let list = scene.of_device(scene.ask("merge", "a", Some(json("[1]")), base), 3);
    let done = scene.change(vec![late, list]).await;
    assert_eq!(scene.outcomes(&done), [Some(Outcome::Merged), None], "a list has no fields");
    let given = scene.given(Seq(0));
    assert_eq!(given.last().unwrap().value, Some(json(r#"{"x":1,"y":2,"z":3}"#)));
    assert_eq!(given.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn many_who_change_one_item_at_once_all_get_their_fields_in() {
    let scene = Scene::new().await;
    let change = |n: u64| {
        let value = json(&format!(r#"{{"f{n}":{n}}}"#));
        scene.change(vec![
            scene.of_device(scene.ask("merge", "a", Some(value), Some(Seq(0))), n + 1),
        ])
    };
    let done = futures_util::future::join_all((0..32).map(change)).await;
    assert!(done.iter().all(|one| one[0].is_ok()));
    let Value { bytes, .. } = scene.given(Seq(0)).pop().unwrap().value.unwrap();
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes).unwrap();
    assert_eq!(object.len(), 32);
}

#[tokio::test(start_paused = true)]
async fn a_clock_far_ahead_is_brought_back() {
    let scene = Scene::new().await;
    let mut ask = scene.of_device(scene.ask("newest", "a", Some(json("1")), Some(Seq(0))), 1);
    ask.stamp.clock.0 = u64::MAX - 5;
    scene.change(vec![ask]).await;
    let mut later = scene.of_device(scene.ask("newest", "a", Some(json("2")), Some(Seq(0))), 2);
    later.stamp.clock = scene.clock_in(60_000);
    later.stamp.origin = scene.other_device(1);
    assert_eq!(scene.outcomes(&scene.change(vec![later]).await), [Some(Outcome::Applied)]);
}

#[tokio::test(start_paused = true)]
async fn collections_need_aliases_that_not_every_device_may_bind() {
    let scene = Scene::open().await;
    let declared = scene.service.declare(&scene.app, "notes", Rule::Newest).await;
    assert!(matches!(declared, Err(Error::NeedsPolicy)));
    assert!(matches!(scene.service.collections(&scene.app), Err(Error::NeedsPolicy)));
}

#[tokio::test(start_paused = true)]
async fn a_value_is_bounded_and_what_its_format_says() {
    let scene = Scene::new().await;
    let collections = scene.service.collections(&scene.app).unwrap();
    let ask = |value: Value| {
        let stamp = scene.service.server_stamp();
        let (collection, key) = ("newest", "a");
        collections.ask(Change { collection, key, value: Some(value), base: None, stamp })
    };
    let text = |bytes: usize| json(&format!("\"{}\"", "x".repeat(bytes - 2)));
    let thrift = |bytes: &[u8]| Value { format: Format::Thrift, bytes: bytes.to_vec().into() };
    assert!(ask(text(65_536)).is_ok() && ask(thrift(b"\xff\0")).is_ok());
    for wrong in [text(65_537), json("{"), json(""), json("\u{0}"), thrift(&[0; 65_537])] {
        assert!(matches!(ask(wrong), Err(Error::Invalid { field: "value", .. })));
    }
    let both = |n: u32| json(&format!(r#"{{"f{n}":"{}"}}"#, "x".repeat(40_000)));
    let change = |n: u32| scene.ask("merge", "a", Some(both(n)), None);
    let done = scene.change(vec![change(1), change(2), change(1)]).await;
    let outcomes = scene.outcomes(&done);
    assert_eq!(outcomes, [Some(Outcome::Applied), None, Some(Outcome::Applied)]);
    assert_eq!(done[1].as_ref().unwrap_err().to_string(), TOO_LARGE);
}

const TOO_LARGE: &str = "the merged value would be larger than 65536 bytes";

#[test]
fn s18_coalesced_deltas_from_any_position_lead_to_the_same_items() {
    let mut all = Seen::default();
    let seeds = seeds(150);
    for seed in seeds.clone() {
        eprintln!("CARILLON_SEED={seed}");
        let runtime = stage::paused();
        let seen = runtime.block_on(async {
            let mut world = World::in_memory(seed).await;
            for _ in 0..60 {
                world.step().await;
            }
            world.check().await;
            world.seen
        });
        all.given += seen.given;
        all.left_out += seen.left_out;
        all.messages += seen.messages;
        all.lost_calls += seen.lost_calls;
        all.gone_calls += seen.gone_calls;
        all.whole_calls += seen.whole_calls;
    }
    println!("{all:?}");
    let is_whole = seeds.end - seeds.start > 1;
    assert!(!is_whole || all.left_out > 100 && all.messages > 100, "{all:?}");
    assert!(!is_whole || all.lost_calls > 10, "{all:?}");
    assert!(!is_whole || all.gone_calls > 10 && all.whole_calls > 10, "{all:?}");
}

#[tokio::test]
async fn what_the_collections_hold_is_the_same_after_a_restart_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("store");
    let mut world = World::on_disk(7, &dir).await;
    for _ in 0..200 {
        world.step().await;
    }
    world.check().await;
    let mut world = world.reopen(&dir).await;
    world.check().await;
    for _ in 0..100 {
        world.step().await;
    }
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn s3_the_changes_of_calls_at_once_are_contiguous() {
    let scene = Scene::new().await;
    let call = |n: u64| {
        let set = |key: &str| scene.ask("newest", key, Some(json(&n.to_string())), None);
        scene.change(["a", "b", "c"].map(|key| set(&format!("{key}{n}"))).into())
    };
    let done = futures_util::future::join_all((0..50).map(call)).await;
    for call in done {
        let seqs: Vec<u64> = call.iter().map(|one| one.as_ref().unwrap().seq.unwrap().0).collect();
        assert_eq!(seqs, [seqs[0], seqs[0] + 1, seqs[0] + 2]);
    }
}
