//! What is changed here: visible at once, uploaded in order, and never lost.

use carillon_wire::idl;

use super::desk::{self, Desk, change, delta, deltas, own, result};
use crate::collections::courier::Verdict;
use crate::collections::{Happening, Outcome};
use crate::items::Value;

const APPLIED: idl::EditOutcome = idl::EditOutcome::APPLIED;

fn edits(desk: &Desk) -> Vec<idl::Edit> {
    desk.errand().unwrap().up.upload.unwrap().edits
}

fn answer(desk: &Desk, results: Vec<idl::EditResult>) {
    let errand = desk.errand().unwrap();
    desk.answer(&errand, idl::Result { edits: Some(results), ..desk::ok() });
}

fn settled(changes: &mut tokio::sync::broadcast::Receiver<Happening>) -> Vec<(u64, Outcome)> {
    let mut settled = Vec::new();
    while let Ok(happening) = changes.try_recv() {
        if let Happening::Settled { number, outcome, .. } = happening {
            settled.push((number, outcome));
        }
    }
    settled
}

#[test]
fn s20_edits_survive_a_kill_and_are_sent_in_order_until_they_are_answered() {
    let mut desk = Desk::at(5);
    desk.put("a", "1");
    desk.put("b", "2");
    desk.reopen();
    assert_eq!(desk.items(), "a=1 b=2");
    desk.delete("a");
    desk.learn();
    for _ in 0..2 {
        // A cut, and a kill, before the answer.
        desk.reopen();
        let sent: Vec<_> = edits(&desk).into_iter().map(|edit| (edit.cseq, edit.key)).collect();
        assert_eq!(sent, [(1, "a".into()), (2, "b".into()), (3, "a".into())]);
    }
    let sent = edits(&desk);
    assert!(sent.iter().all(|edit| edit.base_seq == 5));
    assert!(sent.is_sorted_by(|one, other| one.clock < other.clock));
    answer(&desk, vec![result(1, APPLIED, Some(6)), result(2, APPLIED, Some(7))]);
    assert_eq!(edits(&desk).len(), 1, "the one that was not answered");
    answer(&desk, vec![result(3, APPLIED, Some(8))]);
    assert_eq!((desk.errand(), desk.items().as_str()), (None, "b=2"));
}

#[test]
fn s20_the_own_change_comes_back_without_its_value_before_or_after_the_answer() {
    let mut desk = Desk::at(5);
    let mut changes = desk.collections.changes();
    desk.put("a", "1");
    desk.put("b", "2");
    desk.learn();
    let errand = desk.errand().unwrap();
    desk.take(deltas(vec![delta(1, (6, 6), vec![own(6, "a", 1)])]));
    desk.take(deltas(vec![delta(1, (7, 7), vec![change(7, "a", Some("theirs"))])]));
    let results = vec![result(1, APPLIED, Some(6)), result(2, APPLIED, Some(8))];
    desk.answer(&errand, idl::Result { edits: Some(results), ..desk::ok() });
    assert_eq!(desk.items(), "a=theirs b=2");
    assert_eq!(desk.shelf().pending().unwrap(), 1, "b's item has not come");
    desk.take(deltas(vec![delta(1, (8, 8), vec![own(8, "b", 2)])]));
    assert_eq!((desk.items().as_str(), desk.shelf().pending().unwrap()), ("a=theirs b=2", 0));
    desk.reopen();
    assert_eq!(desk.items(), "a=theirs b=2");
    assert_eq!(settled(&mut changes), [(1, Outcome::Applied), (2, Outcome::Applied)]);
}

#[test]
fn what_the_gateway_decided_is_seen_and_the_app_is_told() {
    let mut desk = Desk::at(5);
    desk.take(deltas(vec![delta(1, (6, 6), vec![change(6, "a", Some("theirs"))])]));
    let mut changes = desk.collections.changes();
    desk.put("a", "mine");
    desk.put("b", "one");
    desk.put("c", "copied");
    desk.put("d", "bad");
    desk.learn();
    answer(
        &desk,
        vec![
            result(1, idl::EditOutcome::LOST, None),
            result(2, idl::EditOutcome::MERGED, Some(7)),
            result(3, idl::EditOutcome::COPIED, Some(8)),
            idl::EditResult {
                message: Some("no object".into()),
                ..result(4, idl::EditOutcome::INVALID, None)
            },
        ],
    );
    assert_eq!(desk.items(), "a=theirs b=one c=copied", "until their entries come");
    let mut merged = change(7, "b", Some("one and two"));
    merged.change.as_mut().unwrap().cseq = Some(2);
    let mut copied = change(8, "c~1", Some("copied"));
    copied.change.as_mut().unwrap().cseq = Some(3);
    desk.take(deltas(vec![delta(1, (7, 8), vec![merged, copied])]));
    assert_eq!(desk.items(), "a=theirs b=one and two c~1=copied");
    assert_eq!(desk.shelf().pending().unwrap(), 0);
    assert_eq!(
        settled(&mut changes),
        [
            (1, Outcome::Lost),
            (2, Outcome::Merged),
            (3, Outcome::Copied),
            (4, Outcome::Invalid("no object".into())),
        ]
    );
}

#[test]
fn an_own_change_that_was_coalesced_away_leaves_no_edit_behind() {
    let mut desk = Desk::at(5);
    desk.put("a", "mine");
    desk.learn();
    answer(&desk, vec![result(1, APPLIED, Some(6))]);
    assert_eq!(desk.items(), "a=mine");
    desk.take(deltas(vec![delta(1, (6, 9), vec![change(9, "a", Some("later"))])]));
    assert_eq!((desk.items().as_str(), desk.shelf().pending().unwrap()), ("a=later", 0));
}

#[test]
fn edits_that_were_not_taken_are_sent_again_and_the_app_knows() {
    let desk = Desk::at(5);
    desk.put("a", "1");
    desk.put("b", "2");
    desk.learn();
    let mut changes = desk.collections.changes();
    let errand = desk.errand().unwrap();
    let busy = idl::Result {
        code: idl::ResultCode::UNAVAILABLE,
        edits: Some(vec![result(1, APPLIED, Some(6))]),
        ..desk::ok()
    };
    assert_eq!(desk.answer(&errand, busy), Verdict::Later);
    let again: Vec<_> = edits(&desk).into_iter().map(|edit| edit.cseq).collect();
    assert_eq!(again, [2]);
    let mut told = std::iter::from_fn(|| changes.try_recv().ok());
    assert!(told.any(|happening| matches!(happening, Happening::Refused { .. })));
    // A gateway that says nothing of any edit is not asked again at once.
    let errand = desk.errand().unwrap();
    assert_eq!(desk.answer(&errand, desk::ok()), Verdict::Later);
}

#[test]
fn s20_a_device_that_lost_its_storage_goes_on_behind_what_the_gateway_has() {
    let mut desk = Desk::at(5);
    // Its own change of a former life comes without a value: the item is fetched.
    desk.put("b", "new life");
    let learn = desk.errand().unwrap();
    desk.answer(&learn, desk::next(42));
    assert_eq!(edits(&desk)[0].cseq, 42);
    answer(&desk, vec![result(42, APPLIED, Some(7))]);
    desk.take(deltas(vec![delta(1, (6, 7), vec![own(6, "a", 41), own(7, "b", 42)])]));
    assert_eq!(desk.items(), "b=new life");
    let repair = desk.errand().unwrap();
    let given = desk::repaired(repair.up.repair.as_ref().unwrap(), &desk::rows_of(&["a 6", "b 7"]));
    desk.answer(&repair, idl::Result { ranges: Some(given), ..desk::ok() });
    assert_eq!(desk.items(), "a=v b=v");
}

#[test]
fn an_upload_has_edits_of_one_epoch_and_fits_a_frame() {
    let mut desk = Desk::at(5);
    let long = "x".repeat(60 << 10);
    desk.put("a", &long);
    desk.put("b", &long);
    desk.put("c", "1");
    let jump = delta(2, (1, 3), vec![]);
    desk.take(deltas(vec![crate::replica::tests::jump(idl::JumpReason::EPOCH_CHANGED, jump)]));
    desk.put("d", "1");
    desk.learn();
    let mut sent = Vec::new();
    while let Some(errand) = desk.errand() {
        let mut bytes = Vec::new();
        carillon_wire::frame::encode_up(&errand.up, &mut bytes).unwrap();
        let upload = errand.up.upload.as_ref().unwrap();
        sent.push((upload.epoch, upload.edits.len(), upload.edits[0].base_seq));
        let results =
            upload.edits.iter().map(|edit| result(edit.cseq, idl::EditOutcome::LOST, None));
        let results = results.collect();
        desk.answer(&errand, idl::Result { edits: Some(results), ..desk::ok() });
    }
    assert_eq!(sent, [(1, 1, 5), (1, 2, 5), (2, 1, 3)]);
}

#[test]
fn s20_edits_are_numbered_again_when_the_gateway_asks_for_it() {
    let mut desk = Desk::at(5);
    desk.put("a", "1");
    desk.learn();
    answer(&desk, vec![result(1, APPLIED, Some(6))]);
    desk.take(deltas(vec![delta(1, (6, 6), vec![own(6, "a", 1)])]));
    desk.put("b", "2");
    desk.put("c", "3");
    let renumber = |next| idl::Result { code: idl::ResultCode::RENUMBER, ..desk::next(next) };
    let numbers = |desk: &Desk| edits(desk).iter().map(|edit| edit.cseq).collect::<Vec<_>>();
    assert_eq!(numbers(&desk), [2, 3]);
    // A copy of this database has gone on meanwhile; or the gateway lost what it had.
    for (next, then) in [(9, [9, 10]), (1, [1, 2])] {
        assert_eq!(desk.answer(&desk.errand().unwrap(), renumber(next)), Verdict::GoOn);
        assert_eq!(numbers(&desk), then);
    }
    desk.reopen();
    assert_eq!(numbers(&desk), [1, 2]);
    // It says nothing new, or nothing: not at once again.
    for told in [Some(1), None] {
        let told = idl::Result { next_cseq: told, ..renumber(1) };
        assert_eq!(desk.answer(&desk.errand().unwrap(), told), Verdict::Later);
    }
    // An own change that bears the number of another edit is not taken for it.
    desk.take(deltas(vec![delta(1, (7, 7), vec![own(7, "z", 1)])]));
    assert_eq!((desk.items().as_str(), desk.shelf().pending().unwrap()), ("a=1 b=2 c=3", 2));
    answer(&desk, vec![result(1, APPLIED, Some(8)), result(2, APPLIED, Some(9))]);
    desk.take(deltas(vec![delta(1, (8, 9), vec![own(8, "b", 1), own(9, "c", 2)])]));
    assert_eq!((desk.items().as_str(), desk.shelf().pending().unwrap()), ("a=1 b=2 c=3", 0));
}

#[test]
fn s20_an_answered_edit_is_found_by_its_entry_whatever_the_numbers_are_since() {
    let mut desk = Desk::at(5);
    desk.put("a", "mine");
    desk.learn();
    answer(&desk, vec![result(1, APPLIED, Some(8))]);
    desk.put("b", "more");
    let renumber = idl::Result { code: idl::ResultCode::RENUMBER, ..desk::next(9) };
    desk.answer(&desk.errand().unwrap(), renumber);
    // Of a former life, and at 7 another value: that has to be fetched.
    desk.take(deltas(vec![delta(1, (6, 7), vec![own(7, "a", 8)])]));
    assert_eq!(desk.shelf().pending().unwrap(), 2);
    desk.take(deltas(vec![delta(1, (8, 8), vec![own(8, "a", 1)])]));
    assert_eq!((desk.items().as_str(), desk.shelf().pending().unwrap()), ("a=mine b=more", 1));
    assert_eq!(desk.rows(), [("a".to_owned(), 8)]);
}

#[test]
fn a_patch_is_seen_over_the_item_and_only_its_fields_go_up() {
    let mut desk = Desk::at(5);
    let first = change(6, "a", Some(r#"{"done":false,"text":"milk"}"#));
    desk.take(deltas(vec![delta(1, (6, 6), vec![first])]));
    let patch = |key, fields: &str| {
        desk.shelf().patch("notes", key, Value::json(fields.to_owned())).unwrap();
    };
    patch("a", r#"{"done":true}"#);
    patch("a", r#"{"by":"me"}"#);
    patch("b", r#"{"text":"new","gone":null}"#);
    assert_eq!(desk.items(), r#"a={"by":"me","done":true,"text":"milk"} b={"text":"new"}"#);
    desk.reopen();
    // What others make of its other fields is seen at once.
    let theirs = change(7, "a", Some(r#"{"done":false,"text":"bread"}"#));
    desk.take(deltas(vec![delta(1, (7, 7), vec![theirs])]));
    assert_eq!(
        desk.shelf().get("notes", "a").unwrap().map(|item| (item.value, item.is_pending)),
        desk::value(r#"{"by":"me","done":true,"text":"bread"}"#).map(|value| (value, true))
    );
    desk.learn();
    let sent = edits(&desk).into_iter().map(|edit| String::from_utf8(edit.value.unwrap()).unwrap());
    let sent: Vec<_> = sent.collect();
    assert_eq!(sent, [r#"{"done":true}"#, r#"{"by":"me"}"#, r#"{"text":"new","gone":null}"#]);
    // Of the two one has come back, merged.
    let mut changes = desk.collections.changes();
    let mut merged = change(8, "a", Some(r#"{"done":true,"text":"bread"}"#));
    merged.change.as_mut().unwrap().cseq = Some(1);
    desk.take(deltas(vec![delta(1, (8, 8), vec![merged])]));
    assert_eq!(settled(&mut changes), [(1, Outcome::Merged)], "and nothing is seen to change");
    desk.shelf().delete("notes", "a").unwrap();
    assert_eq!(desk.items(), r#"b={"text":"new"}"#);
}

#[tokio::test]
async fn who_waits_for_uploads_waits_until_all_edits_are_answered() {
    let desk = Desk::at(5);
    let shelf = desk.shelf();
    shelf.uploaded().await.unwrap();
    desk.put("a", "1");
    desk.put("b", "2");
    desk.learn();
    let waiting = tokio::spawn(async move { shelf.uploaded().await });
    for cseq in [1, 2] {
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        answer(&desk, vec![result(cseq, APPLIED, Some(5 + cseq as u64))]);
    }
    waiting.await.unwrap().unwrap();
    let known = desk.collections.shelves().unwrap();
    assert_eq!(known.iter().map(|shelf| shelf.alias()).collect::<Vec<_>>(), [desk::ALIAS]);
}

#[test]
fn s23_a_cut_at_any_byte_of_an_upload_sends_less_than_one_frame_again() {
    let value = format!("\"{}\"", "v".repeat(900));
    for cut in (0..400_000).step_by(17_989) {
        let desk = Desk::at(5);
        for n in 0..300 {
            desk.put(&format!("k{n}"), &value);
        }
        desk.learn();
        // What went out, whole frames and the part of one; and how often the cut was in between.
        let (mut sent, mut useful, mut longest, mut is_cut) = (0, 0, 0, false);
        while let Some(errand) = desk.errand() {
            let mut bytes = Vec::new();
            carillon_wire::frame::encode_up(&errand.up, &mut bytes).unwrap();
            longest = longest.max(bytes.len());
            if !is_cut && sent + bytes.len() > cut {
                (sent, is_cut) = (cut, true);
                continue;
            }
            (sent, useful) = (sent + bytes.len(), useful + bytes.len());
            let edits = errand.up.upload.as_ref().unwrap().edits.iter();
            let results = edits.map(|edit| result(edit.cseq, APPLIED, Some(5 + edit.cseq as u64)));
            let results = Some(results.collect());
            desk.answer(&errand, idl::Result { edits: results, ..desk::ok() });
        }
        assert!(useful > 270_000 && longest < 100_000, "{useful} bytes, frames up to {longest}");
        assert!(sent - useful < longest, "cut at {cut}: {} bytes again", sent - useful);
    }
}
