//! Digests of collections, and repair by ranges: over frames, as a device does it.

mod support;
mod wirelab;

use carillon_wire::{
    frame, idl,
    ranges::{Bounds, KeyRange, STATED_MAX},
};
use support::sync::{ALIAS, Copy, NOTES, Scene, apply, digest_of, key, range, set};
use wirelab::frames::{self, Framed};

/// A `Repair` of these ranges, answered. Counts the bytes of both.
async fn repair(
    scene: &Scene,
    framed: &mut Framed,
    seq: i64,
    ranges: Vec<idl::KeyRange>,
    bytes: &mut usize,
) -> idl::Result {
    let repair = idl::Repair {
        regid: scene.device.regid.clone(),
        alias_name: ALIAS.into(),
        collection: NOTES.into(),
        epoch: 1,
        seq,
        ranges,
    };
    let up = idl::Up { repair: Some(repair), ..frames::nothing() };
    *bytes += frames::encode(&up).len();
    let result = framed.ask(up).await;
    let down = idl::Down { result: Some(result.clone()), ..idl::Down::default() };
    let mut encoded = Vec::new();
    frame::encode_down(&down, &mut encoded).expect("it fits a frame");
    *bytes += encoded.len();
    result
}

/// Takes deltas until digests come; gives where it stands then, and them.
async fn until_digests(
    framed: &mut Framed,
    copy: &mut Copy,
) -> (i64, Vec<idl::CollectionDigest>, usize) {
    let (mut at, mut count) = (0, 0);
    loop {
        let (id, down) = framed.down().await;
        framed.wire.ack(id).await;
        if let Some(chunk) = down.snapshot {
            copy.extend(chunk.items.into_iter().map(|item| (item.key, item.seq as u64)));
            continue;
        }
        let deltas = down.deltas.expect("deltas or a snapshot");
        let reached = apply(copy, &deltas);
        count += usize::from(reached > 0);
        at = at.max(reached);
        if let Some(digests) = deltas.digests {
            return (at, digests, count);
        }
    }
}

#[tokio::test]
async fn s19_a_digest_finds_one_item_of_ten_thousand_and_its_repair_costs_little() {
    let scene = Scene::new().await;
    scene.fill(10_000).await;
    let mut framed = Framed::connect(&scene.node, &scene.device).await;
    let mut copy = Copy::new();
    let (at, digests, _) = until_digests(&mut framed, &mut copy).await;
    let [digest] = &digests[..] else { panic!("one collection: {digests:?}") };
    assert_eq!((at, digest.seq, digest.items, copy.len()), (10_000, 10_000, 10_000, 10_000));
    assert_eq!(digest.digest, digest_of(&copy));

    let whole = copy.clone();
    copy.insert(key(4_711), 3);
    copy.remove(&key(9_000));
    assert_ne!(digest.digest, digest_of(&copy));
    let (mut bytes, mut stated) = (0, vec![range(&copy, Bounds::everything())]);
    while !stated.is_empty() {
        let some = stated.drain(..stated.len().min(STATED_MAX));
        let some = some.map(|range| range.to_idl()).collect();
        let result = repair(&scene, &mut framed, at, some, &mut bytes).await;
        assert_eq!(result.code, idl::ResultCode::OK, "{result:?}");
        for differing in result.ranges.unwrap_or_default() {
            let bounds = KeyRange::from_idl(differing.range).unwrap().bounds;
            if let Some(items) = differing.items {
                copy.retain(|key, seq| !bounds.contains(key) || *seq > at as u64);
                copy.extend(items.into_iter().map(|item| (item.key, item.seq as u64)));
            }
            for part in differing.parts.unwrap_or_default() {
                let theirs = KeyRange::from_idl(part).unwrap();
                let ours = range(&copy, theirs.bounds.clone());
                stated.extend((ours != theirs).then_some(ours));
            }
        }
    }
    assert_eq!(copy, whole);
    println!("two items of 10,000 repaired for {bytes} bytes");
    assert!(bytes < 10_000, "{bytes}");
}

#[tokio::test]
async fn s12_a_device_that_binds_late_is_given_chunks_and_then_deltas() {
    let scene = Scene::new().await;
    scene.fill(3_000).await;
    let device = scene.new_device().await;
    let mut framed = Framed::connect(&scene.node, &device).await;
    scene.bind(&device).await;
    let (mut chunks, mut seqs) = (Vec::new(), Vec::new());
    while chunks.last().is_none_or(|last: &idl::SnapshotChunk| last.until_seq.is_none()) {
        let (id, down) = framed.down().await;
        framed.wire.ack(id).await;
        chunks.extend(down.snapshot);
    }
    seqs.extend(chunks.iter().flat_map(|chunk| chunk.items.iter().map(|item| item.seq)));
    assert!(seqs.into_iter().eq((1..=3_000).rev()), "newest first");
    assert!(chunks.len() > 1 && chunks.iter().all(|one| one.jump == idl::JumpReason::NEW));
    let items = chunks.into_iter().flat_map(|chunk| chunk.items);
    let mut copy: Copy = items.map(|item| (item.key, item.seq as u64)).collect();
    let (at, digests, _) = until_digests(&mut framed, &mut copy).await;
    assert_eq!((at, digests[0].digest), (3_000, digest_of(&copy)), "digests follow it");
    scene.change(vec![set("late", 1)]).await;
    let (_, deltas) = framed.deltas().await;
    assert_eq!(apply(&mut copy, &deltas), 3_001);
}

#[tokio::test]
async fn s19_digests_come_once_a_resume_and_then_every_64_frames_of_changes() {
    let scene = Scene::new().await;
    scene.fill(3).await;
    let mut framed = Framed::connect(&scene.node, &scene.device).await;
    let mut copy = Copy::new();
    let (at, digests, _) = until_digests(&mut framed, &mut copy).await;
    assert_eq!((at, digests[0].digest), (3, digest_of(&copy)));
    for n in 0..64 {
        scene.change(vec![set("often", n)]).await;
        if n < 63 {
            let (id, deltas) = framed.deltas().await;
            framed.wire.ack(id).await;
            apply(&mut copy, &deltas);
            assert_eq!(deltas.digests, None, "after {n}");
        }
    }
    let (at, digests, frames) = until_digests(&mut framed, &mut copy).await;
    assert_eq!((at, frames, digests[0].digest), (67, 1, digest_of(&copy)));
}

#[tokio::test]
async fn what_a_repair_may_not_ask_is_refused_and_the_connection_stays() {
    let scene = Scene::new().await;
    scene.fill(20).await;
    let mut framed = Framed::connect(&scene.node, &scene.device).await;
    let everything = range(&Copy::new(), Bounds::everything()).to_idl();
    let mut bytes = 0;
    for (ranges, seq) in [
        (vec![everything.clone(), everything.clone()], 20),
        (vec![everything.clone(); 17], 20),
        (vec![everything.clone()], -1),
    ] {
        let result = repair(&scene, &mut framed, seq, ranges, &mut bytes).await;
        assert_eq!(result.code, idl::ResultCode::INVALID, "{result:?}");
    }
    let other = idl::Repair {
        regid: scene.device.regid.clone(),
        alias_name: "bob".into(),
        collection: NOTES.into(),
        epoch: 1,
        seq: 0,
        ranges: vec![everything.clone()],
    };
    let result = framed.ask(idl::Up { repair: Some(other), ..frames::nothing() }).await;
    assert_eq!(result.code, idl::ResultCode::NOT_FOUND, "an alias that it does not follow");
    // Who stands at 0 cannot have any of them: deltas bring them.
    let result = repair(&scene, &mut framed, 0, vec![everything.clone()], &mut bytes).await;
    assert_eq!((result.code, result.ranges), (idl::ResultCode::OK, None));
    let result = repair(&scene, &mut framed, 20, vec![everything], &mut bytes).await;
    assert_eq!(result.ranges.map(|ranges| ranges.len()), Some(1));
}
