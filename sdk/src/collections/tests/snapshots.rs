//! Snapshots, gathered beside what the app sees.

use carillon_wire::idl;

use super::desk::{self, Desk, alias, change, delta, deltas, own, result};
use crate::replica::tests::tag;

/// A chunk of a snapshot at `at`, with `key seq` items whose value is `v`.
fn chunk(at: u64, items: &[&str], cursor: Option<&str>) -> idl::SnapshotChunk {
    let item = |(key, seq): (String, u64)| idl::Item {
        collection: "notes".into(),
        key,
        seq: seq as i64,
        value: b"v".to_vec(),
        format: None,
        clock: None,
    };
    idl::SnapshotChunk {
        regid: "r1".into(),
        queue: alias().to_idl(),
        jump: idl::JumpReason::OVERFLOW,
        epoch: 1,
        at_seq: at as i64,
        tag: tag(1, at).to_vec(),
        items: desk::rows_of(items).into_iter().map(item).collect(),
        cursor: cursor.map(|cursor| cursor.as_bytes().to_vec()),
        until_seq: None,
        begins: None,
    }
}

fn begin(chunk: idl::SnapshotChunk) -> idl::SnapshotChunk {
    idl::SnapshotChunk { begins: Some(true), ..chunk }
}

fn end(until: i64, chunk: idl::SnapshotChunk) -> idl::SnapshotChunk {
    idl::SnapshotChunk { until_seq: Some(until), ..chunk }
}

/// With one item at (1, 6), and the first chunk of a snapshot at 20.
fn gathering() -> Desk {
    let mut desk = Desk::at(5);
    desk.take(deltas(vec![delta(1, (6, 6), vec![change(6, "old", Some("1"))])]));
    desk.chunk(begin(chunk(20, &["c 19", "b 12"], Some("cursor 1"))));
    desk
}

/// What the device states after a new connection.
fn stated(desk: &mut Desk) -> idl::RegistrationPositions {
    desk.replica.begin();
    let outcome = desk.replica.ask_positions().unwrap();
    outcome.send[0].positions.as_ref().unwrap().registrations[0].clone()
}

#[test]
fn s14_what_was_there_is_readable_until_all_is_there_and_then_gone_at_once() {
    let mut desk = gathering();
    assert_eq!((desk.items().as_str(), desk.position()), ("old=1", Some((1, 6))));
    desk.chunk(end(22, chunk(20, &["a 3"], None)));
    desk.take(deltas(vec![delta(1, (21, 21), vec![change(21, "b", Some("2"))])]));
    assert_eq!((desk.items().as_str(), desk.position()), ("old=1", Some((1, 6))));
    let mut changes = desk.collections.changes();
    desk.take(deltas(vec![delta(1, (22, 23), vec![change(22, "c", None)])]));
    assert_eq!((desk.items().as_str(), desk.position()), ("a=v b=2", Some((1, 23))));
    assert_eq!(std::iter::from_fn(|| changes.try_recv().ok()).count(), 3, "a, b and old");
    desk.take(deltas(vec![delta(1, (24, 24), vec![change(24, "d", Some("1"))])]));
    desk.reopen();
    assert_eq!(desk.items(), "a=v b=2 d=1");
}

#[test]
fn s13_after_a_kill_the_device_states_the_last_chunk_that_it_keeps() {
    let mut desk = gathering();
    desk.replica.snapshot(chunk(20, &["lost 11"], Some("cursor 2"))).unwrap();
    desk.reopen();
    let registration = stated(&mut desk);
    assert_eq!(registration.positions[0].seq, 6, "the items' own");
    let gathered = &registration.gathered.unwrap()[0];
    assert_eq!((gathered.epoch, gathered.at_seq, &gathered.tag[..]), (1, 20, &tag(1, 20)[..]));
    assert_eq!((gathered.cursor.as_deref(), gathered.reached_seq), (Some(&b"cursor 1"[..]), None));

    desk.chunk(end(21, chunk(20, &["a 3"], None)));
    desk.reopen();
    let gathered = stated(&mut desk).gathered.unwrap();
    assert_eq!((gathered[0].cursor.as_ref(), gathered[0].reached_seq), (None, Some(20)));
    desk.take(deltas(vec![delta(1, (21, 21), vec![])]));
    assert_eq!(desk.items(), "a=v b=v c=v");
    assert_eq!(stated(&mut desk).gathered, None);
}

#[test]
fn s13_while_chunks_are_missing_the_digest_agrees_with_nobody() {
    let mut desk = Desk::at(5);
    let agreed = desk.replica.begin().resume.unwrap().digest;
    desk.chunk(begin(chunk(20, &["a 3"], Some("cursor"))));
    assert_ne!(desk.replica.begin().resume.unwrap().digest, agreed);
}

#[test]
fn i12_deltas_behind_a_snapshot_are_applied_to_it_once_whatever_is_killed() {
    for killed in 0..16 {
        let mut desk = gathering();
        let steps: [&dyn Fn(&mut Desk); 4] = [
            &|desk| drop(desk.chunk(chunk(20, &["a 3"], Some("cursor 2")))),
            &|desk| drop(desk.chunk(end(23, chunk(20, &[], None)))),
            &|desk| drop(desk.take(deltas(vec![delta(1, (21, 22), vec![change(21, "a", None)])]))),
            &|desk| {
                drop(desk.take(deltas(vec![delta(1, (21, 23), vec![change(23, "c", Some("2"))])])))
            },
        ];
        for (at, step) in steps.into_iter().enumerate() {
            step(&mut desk);
            if killed >> at & 1 == 1 {
                desk.reopen();
            }
        }
        assert_eq!(desk.items(), "b=v c=2", "killed {killed:04b}");
    }
}

#[test]
fn what_is_newer_than_the_snapshot_is_left_to_the_deltas() {
    let mut desk = Desk::at(5);
    // Created at 21 and deleted at 22: both are skipped for whoever stands at 20.
    desk.chunk(begin(end(22, chunk(20, &["gone 21", "a 3"], None))));
    desk.take(deltas(vec![delta(1, (21, 22), vec![])]));
    assert_eq!(desk.items(), "a=v");
}

#[test]
fn s10_a_chunk_that_does_not_continue_is_not_gathered_and_the_position_is_stated() {
    let mut desk = Desk::at(5);
    let sent = desk.chunk(chunk(20, &["a 3"], Some("cursor")));
    assert!(sent[0].positions.is_some());
    let mut desk = gathering();
    let sent = desk.chunk(chunk(30, &["a 3"], Some("cursor")));
    assert!(sent[0].positions.as_ref().unwrap().registrations[0].gathered.is_some());
    assert!(
        desk.replica.snapshot(chunk(20, &[], None)).is_err(),
        "s8: neither last nor with a cursor"
    );
}

#[test]
fn a_snapshot_that_begins_again_or_is_given_up_leaves_nothing_of_the_first() {
    let mut desk = gathering();
    desk.chunk(begin(chunk(30, &["x 29"], Some("cursor"))));
    desk.chunk(end(30, chunk(30, &["y 2"], None)));
    assert_eq!((desk.items().as_str(), desk.position()), ("x=v y=v", Some((1, 30))));
    let mut desk = gathering();
    desk.take(deltas(vec![delta(1, (7, 8), vec![change(8, "new", Some("1"))])]));
    assert_eq!((desk.items().as_str(), desk.position()), ("new=1 old=1", Some((1, 8))));
    assert_eq!(stated(&mut desk).gathered, None);
}

#[test]
fn edits_stay_over_a_snapshot_until_they_are_part_of_it() {
    let mut desk = gathering();
    desk.put("old", "mine");
    desk.put("m", "2");
    desk.learn();
    let errand = desk.errand().unwrap();
    desk.chunk(end(22, chunk(20, &[], None)));
    desk.take(deltas(vec![delta(1, (21, 21), vec![own(21, "m", 2)])]));
    assert_eq!(desk.items(), "m=2 old=mine");
    desk.take(deltas(vec![delta(1, (22, 22), vec![])]));
    assert_eq!(desk.items(), "b=v c=v m=2 old=mine", "its answer has not come");
    let results = vec![
        result(1, idl::EditOutcome::LOST, None),
        result(2, idl::EditOutcome::APPLIED, Some(21)),
    ];
    desk.answer(&errand, idl::Result { edits: Some(results), ..desk::ok() });
    assert_eq!((desk.items().as_str(), desk.shelf().pending().unwrap()), ("b=v c=v m=2", 0));
}
