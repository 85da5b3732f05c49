//! Statements about a device's collections, by feeding frames and by killing it between any two steps.

mod desk;
mod edits;
mod model;
mod poison;
mod snapshots;

use carillon_wire::idl;
use carillon_wire::ranges::KeyRange;

use super::*;
use crate::items::{Step, What};
use crate::replica::tests::{jump, tag};
use desk::{ALIAS, Desk, change, collection_digest, delta, deltas, ok, repaired, rows_of, value};

const NEW: idl::JumpReason = idl::JumpReason::NEW;

#[test]
fn s10_i3_of_a_frame_with_a_gap_nothing_is_applied_and_the_position_is_stated_once() {
    let mut desk = Desk::at(5);
    let sent = desk.take(deltas(vec![delta(1, (8, 9), vec![change(9, "a", Some("late"))])]));
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].positions.as_ref().unwrap().registrations[0].positions[0].seq, 5);
    // What was on its way behind the gap is no reason to say it again.
    let sent = desk.take(deltas(vec![delta(1, (10, 10), vec![change(10, "a", Some("late"))])]));
    assert_eq!((sent.len(), desk.items().as_str()), (0, ""));
    desk.take(deltas(vec![delta(
        1,
        (6, 9),
        vec![change(7, "b", Some("1")), change(9, "a", Some("late"))],
    )]));
    assert_eq!(desk.items(), "a=late b=1");
}

#[test]
fn s10_i4_of_an_overlap_only_the_suffix_is_applied() {
    let mut desk = Desk::at(5);
    desk.take(deltas(vec![delta(1, (6, 7), vec![change(7, "a", Some("new"))])]));
    let overlap = vec![change(6, "a", Some("old")), change(8, "b", Some("more"))];
    desk.take(deltas(vec![delta(1, (6, 8), overlap)]));
    assert_eq!(desk.items(), "a=new b=more");
    desk.take(deltas(vec![delta(1, (6, 7), vec![change(7, "a", None)])]));
    assert_eq!((desk.items().as_str(), desk.position()), ("a=new b=more", Some((1, 8))));
}

#[test]
fn i5_an_item_and_its_position_are_durable_together() {
    let mut desk = Desk::at(5);
    let frame = || deltas(vec![delta(1, (6, 6), vec![change(6, "a", Some("1"))])]);
    // Killed inside the transaction: the files are what a killed process leaves.
    let mut killed = desk.copied_inside_of(frame());
    assert_eq!((killed.items().as_str(), killed.position()), ("", Some((1, 5))));
    killed.take(frame());
    assert_eq!((killed.items().as_str(), killed.position()), ("a=1", Some((1, 6))));
    // Killed before and behind it.
    desk.lose(frame());
    desk.reopen();
    assert_eq!((desk.items().as_str(), desk.position()), ("", Some((1, 5))));
    desk.take(frame());
    desk.reopen();
    assert_eq!((desk.items().as_str(), desk.position()), ("a=1", Some((1, 6))));
}

#[test]
fn s18_what_was_skipped_in_a_range_is_behind_the_device_all_the_same() {
    let mut desk = Desk::at(5);
    desk.take(deltas(vec![delta(1, (6, 20), vec![change(13, "a", Some("latest"))])]));
    assert_eq!((desk.items().as_str(), desk.position()), ("a=latest", Some((1, 20))));
}

#[test]
fn s19_a_digest_that_differs_is_repaired_by_ranges() {
    let mut desk = Desk::at(5);
    let entries = (6..206).map(|seq| change(seq, &format!("k{seq}"), Some("v"))).collect();
    desk.take(deltas(vec![delta(1, (6, 205), entries)]));
    let right = collection_digest(205, desk.rows());
    desk.spoil("k77", None);
    desk.spoil("k99", Some("wrong"));
    desk.spoil("k300", Some("never was"));
    // One for an earlier state, and one for a later, compare with nothing.
    desk.take(with_digest((206, 206), idl::CollectionDigest { seq: 100, ..right.clone() }));
    desk.take(with_digest((207, 207), idl::CollectionDigest { seq: 300, ..right.clone() }));
    assert_eq!(desk.errand(), None);

    desk.take(with_digest((208, 208), right.clone()));
    let (mut frames, mut ranges, mut given) = (0, 0, 0);
    while let Some(errand) = desk.errand() {
        let repair = errand.up.repair.clone().unwrap();
        assert_eq!((repair.epoch, repair.seq, repair.collection.as_str()), (1, 208, "notes"));
        frames += 1;
        ranges += repair.ranges.len();
        let answer = desk::repaired(&repair, &desk::rows(6..206));
        given += answer.iter().filter_map(|range| range.items.as_ref()).flatten().count();
        desk.answer(&errand, idl::Result { ranges: Some(answer), ..desk::ok() });
    }
    assert_eq!(desk.rows(), desk::rows(6..206));
    assert!(frames <= 5 && ranges < 60 && given <= 30, "{frames} {ranges} {given}");
}

fn with_digest(range: (u64, u64), digest: idl::CollectionDigest) -> idl::Deltas {
    idl::Deltas { digests: Some(vec![digest]), ..deltas(vec![delta(1, range, Vec::new())]) }
}

#[test]
fn s22_a_copy_that_differs_everywhere_is_compared_to_its_end() {
    const ITEMS: u64 = 600;
    let mut desk = Desk::at(5);
    let (first, last) = (6, 5 + ITEMS);
    let entries = (first..=last).map(|seq| change(seq, &format!("k{seq:05}"), Some("v"))).collect();
    desk.take(deltas(vec![delta(1, (first, last), entries)]));
    let held: Vec<_> = (first..=last).map(|seq| (format!("k{seq:05}"), seq - 1)).collect();
    let mut changes = desk.collections.changes();
    desk.shelf().compare("notes").unwrap();
    let mut exchanges = 0;
    while let Some(errand) = desk.errand() {
        let mut given = repaired(&errand.up.repair.clone().unwrap(), &held);
        // Items are large: an answer has room for those of one range.
        for range in given.iter_mut().filter(|range| range.items.is_some()).skip(1) {
            let bounds = KeyRange::from_idl(range.range.clone()).unwrap().bounds;
            let within = held.iter().filter(|(key, _)| bounds.contains(key)).cloned();
            let there = KeyRange::of("notes", bounds.clone(), within);
            (range.items, range.parts) = (None, Some(vec![there.to_idl()]));
        }
        desk.answer(&errand, idl::Result { ranges: Some(given), ..ok() });
        exchanges += 1;
    }
    assert!(exchanges > 64, "an unasked repair would have ended before: {exchanges}");
    assert_eq!(desk.rows(), held);
    let told = std::iter::from_fn(|| changes.try_recv().ok());
    let ends =
        told.filter(|one| matches!(one, Happening::Compared { outcome: Comparison::Complete, .. }));
    assert_eq!(ends.count(), 1);
}

#[test]
fn a_comparison_that_a_snapshot_interrupts_begins_again_behind_it() {
    let mut desk = Desk::at(5);
    desk.take(deltas(vec![delta(1, (6, 6), vec![change(6, "a", Some("v"))])]));
    desk.shelf().compare("notes").unwrap();
    let asked = desk.errand().unwrap();
    let mut changes = desk.collections.changes();
    desk.collections
        .transact(|work| {
            let mut shelf = work.tables.shelves()?.remove(0);
            work.began(&mut shelf)?;
            work.switched(&mut shelf, 1, 9)
        })
        .unwrap();
    // The snapshot had nothing: an answer from before it must not bring anything back.
    let given = repaired(&asked.up.repair.clone().unwrap(), &rows_of(&["a 6", "b 6"]));
    desk.answer(&asked, idl::Result { ranges: Some(given), ..ok() });
    assert_eq!(desk.items(), "");
    let again = desk.errand().unwrap();
    assert_eq!(again.up.repair.as_ref().unwrap().seq, 9);
    desk.answer(&again, ok());
    let told: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok()).collect();
    let ends = told.iter().filter(|one| matches!(one, Happening::Compared { .. }));
    assert_eq!(ends.count(), 1);
}

#[test]
fn s19_an_answer_never_undoes_what_a_delta_brought_meanwhile() {
    let mut desk = Desk::at(5);
    let entries = vec![change(6, "a", Some("1")), change(7, "b", Some("1"))];
    desk.take(deltas(vec![delta(1, (6, 7), entries)]));
    let right = collection_digest(7, desk.rows());
    desk.spoil("c", Some("never was"));
    desk.take(with_digest((8, 8), right));
    let errand = desk.errand().unwrap();
    let old = desk::repaired(errand.up.repair.as_ref().unwrap(), &desk::rows_of(&["a 6", "b 7"]));
    desk.take(deltas(vec![delta(
        1,
        (9, 11),
        vec![change(9, "a", Some("2")), change(10, "b", None), change(11, "d", Some("1"))],
    )]));
    desk.answer(&errand, idl::Result { ranges: Some(old), ..desk::ok() });
    assert_eq!(desk.items(), "a=2 d=1");
}

#[test]
fn s19_what_is_newer_than_the_position_is_left_to_the_deltas() {
    let mut desk = Desk::at(5);
    desk.take(deltas(vec![delta(1, (6, 6), vec![change(6, "a", Some("v"))])]));
    let right = collection_digest(6, desk.rows());
    desk.spoil("b", Some("never was"));
    desk.take(with_digest((7, 7), right));
    let errand = desk.errand().unwrap();
    // It is created after our position, and may be gone again without a word.
    let ahead = desk::repaired(errand.up.repair.as_ref().unwrap(), &desk::rows_of(&["a 6", "c 9"]));
    desk.answer(&errand, idl::Result { ranges: Some(ahead), ..desk::ok() });
    assert_eq!(desk.items(), "a=v");
}

#[test]
fn the_app_hears_of_each_change_that_it_can_see_with_old_and_new() {
    let mut desk = Desk::at(5);
    let mut changes = desk.collections.changes();
    desk.take(deltas(vec![delta(1, (6, 6), vec![change(6, "a", Some("1"))])]));
    desk.put("a", "mine");
    desk.take(deltas(vec![delta(1, (7, 7), vec![change(7, "a", Some("hidden by mine"))])]));
    desk.delete("a");
    let mut heard = Vec::new();
    while let Ok(Happening::Changed(change)) = changes.try_recv() {
        heard.push((change.old, change.new, change.who));
    }
    assert_eq!(
        heard,
        [
            (None, value("1"), Who::Elsewhere),
            (value("1"), value("mine"), Who::Here),
            (value("mine"), None, Who::Here),
        ]
    );
}

#[test]
fn an_alias_that_is_not_followed_any_more_leaves_nothing_behind() {
    let mut desk = Desk::at(5);
    desk.take(deltas(vec![delta(1, (6, 6), vec![change(6, "a", Some("1"))])]));
    desk.put("b", "never uploaded");
    let mut changes = desk.collections.changes();
    let own = crate::names::QueueName::Own;
    let alias = crate::names::QueueName::Alias(ALIAS.into());
    let start = jump(NEW, crate::replica::tests::delta(&own, 1, (1, 1), vec![]));
    let end = crate::replica::tests::unfollow(2, &alias);
    let end = crate::replica::tests::delta(&own, 1, (2, 2), vec![end]);
    desk.take(deltas(vec![start, end]));
    assert_eq!((desk.items().as_str(), desk.shelf().pending().unwrap()), ("", 0));
    assert!(matches!(changes.try_recv(), Ok(Happening::Forgotten { .. })));
}

fn steps(desk: &Desk, regid: &str, what: What) {
    let step = Step { regid: RegId::from(regid), alias: ALIAS.into(), what };
    let state = desk.collections.load_state().unwrap().unwrap();
    desk.collections.commit_steps(&state, &Steps(vec![step])).unwrap();
}

#[test]
fn a_registration_that_was_made_again_keeps_items_and_edits() {
    let mut desk = Desk::at(5);
    desk.take(deltas(vec![delta(1, (6, 6), vec![change(6, "a", Some("1"))])]));
    desk.put("b", "not uploaded");
    steps(&desk, "r1", What::Renamed(RegId::from("r2")));
    let shelf = desk.collections.of(&RegId::from("r2"), ALIAS);
    assert_eq!((desk::text(&shelf), desk.items().as_str()), ("a=1 b=not uploaded".into(), ""));
    let learn = desk.errand().unwrap();
    assert_eq!(learn.up.upload.as_ref().unwrap().regid, "r2");
    desk.answer(&learn, desk::next(1));
    assert_eq!(desk.errand().unwrap().up.upload.unwrap().edits[0].cseq, 1);
}

#[test]
fn s20_a_registration_that_was_made_again_does_not_upload_anew_what_was_taken() {
    // Its items may have begun to come before the device hears that it is the other one's successor.
    for has_begun in [false, true] {
        let desk = Desk::at(5);
        for key in ["answered", "taken", "new"] {
            desk.put(key, "1");
        }
        desk.learn();
        let upload = desk.errand().unwrap();
        let first = desk::result(1, idl::EditOutcome::APPLIED, Some(6));
        desk.answer(&upload, idl::Result { edits: Some(vec![first]), ..ok() });
        let shelf = desk.collections.of(&RegId::from("r2"), ALIAS);
        if has_begun {
            steps(&desk, "r2", What::Moved { epoch: 1, seq: 6 });
            shelf.put("notes", "own", Value::json("1")).unwrap();
        }
        steps(&desk, "r1", What::Renamed(RegId::from("r2")));
        let sent = |desk: &Desk| {
            let upload = desk.errand().unwrap().up.upload.unwrap();
            assert_eq!(upload.regid, "r2");
            let sent = upload.edits.into_iter().map(|edit| (edit.cseq, edit.key));
            sent.collect::<Vec<_>>()
        };
        let names = ["taken", "new", "own"];
        let numbered = |from: i64| {
            let names = if has_begun { &names[..] } else { &names[..2] };
            (from..).zip(names.iter().map(|name| (*name).to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(sent(&desk), numbered(2));
        // What was answered is there where the successor stands.
        assert_eq!(shelf.pending().unwrap(), 3);
        // A gateway that knows nothing of it says so.
        let renumber = idl::Result { code: idl::ResultCode::RENUMBER, ..desk::next(1) };
        desk.answer(&desk.errand().unwrap(), renumber);
        assert_eq!(sent(&desk), numbered(1));
    }
}

#[test]
fn who_asks_for_a_comparison_hears_that_a_bound_ended_it() {
    let desk = Desk::at(9);
    let mut changes = desk.collections.changes();
    desk.shelf().compare("notes").unwrap();
    let mut answers = 0;
    while let Some(errand) = desk.errand() {
        // Another one each time.
        answers += 1;
        let given = repaired(&errand.up.repair.clone().unwrap(), &[("a".into(), answers)]);
        desk.answer(&errand, idl::Result { ranges: Some(given), ..ok() });
    }
    assert_eq!(answers, 3);
    let told: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok()).collect();
    let end = told.last().unwrap();
    assert!(matches!(end, Happening::Compared { outcome: Comparison::Cut, .. }), "{end:?}");
}

#[test]
fn a_handler_that_calls_back_is_told_that_it_may_not() {
    let mut desk = Desk::at(5);
    let shelf = desk.shelf();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let to = heard.clone();
    let handler = move |_: &ItemChange| {
        to.lock().unwrap().push(shelf.get("notes", "a").unwrap_err().to_string());
        Ok(())
    };
    desk.collections.handle_with(handler).unwrap();
    desk.take(deltas(vec![delta(1, (6, 6), vec![change(6, "a", Some("1"))])]));
    assert_eq!(*heard.lock().unwrap(), [Error::InHandler.to_string()]);
}

#[test]
fn names_and_values_out_of_their_bounds_and_files_of_another_version_are_refused() {
    let desk = Desk::at(5);
    let shelf = desk.shelf();
    let long = Value::json(vec![b'1'; VALUE_BYTES_MAX + 1]);
    assert!(matches!(shelf.put("notes", "a", long), Err(Error::TooLarge(65537))));
    let bad = [("", "a"), ("my notes", "a"), ("nötes", "a"), ("notes", ""), ("notes", "a\n")];
    let long = "k".repeat(257);
    let bad = bad.into_iter().chain([("notes", long.as_str()), ("notes", "\u{feff}")]);
    for (collection, key) in bad {
        assert!(matches!(shelf.put(collection, key, Value::json("1")), Err(Error::Name { .. })));
    }
    for bad in [Value::json("[1]"), Value::json("{"), Value::thrift("{}")] {
        assert!(matches!(shelf.patch("notes", "a", bad), Err(Error::NotAnObject)));
    }
    let path = desk.directory.path().join("later");
    let later = Connection::open(&path).unwrap();
    later.pragma_update(None, "user_version", 2).unwrap();
    assert!(matches!(Collections::open(&path), Err(Error::Version(2))));
}

#[test]
fn the_tag_that_is_kept_is_that_of_the_last_delta() {
    let mut desk = Desk::at(5);
    desk.take(deltas(vec![delta(1, (6, 6), vec![])]));
    assert_eq!(
        desk.replica.positions()[&RegId::from("r1")].values().next().unwrap().tag,
        Some(tag(1, 6))
    );
}
