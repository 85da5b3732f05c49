//! Items that the app's handler cannot take.

use carillon_wire::idl;
use carillon_wire::ranges::{Bounds, KeyRange};

use super::desk::{self, Desk, change, delta, deltas, fail_on};
use crate::collections::Happening;

const FIVE_MINUTES_MS: u64 = 5 * 60 * 1000;

/// Answers a refresh with these items, each `v`.
fn refresh(desk: &Desk, held: &[&str]) -> Vec<String> {
    let errand = desk.errand().unwrap();
    let repair = errand.up.repair.clone().unwrap();
    let given = desk::repaired(&repair, &desk::rows_of(held));
    desk.answer(&errand, idl::Result { ranges: Some(given), ..desk::ok() });
    repair.ranges.into_iter().map(|range| range.first).collect()
}

#[test]
fn i10_a_poison_item_is_skipped_after_one_refresh_and_the_device_goes_on() {
    let mut desk = Desk::at(5);
    desk.pass_ms(FIVE_MINUTES_MS);
    let failures = fail_on(&desk, "v");
    let mut changes = desk.collections.changes();
    let entries = vec![change(6, "a", Some("v")), change(7, "b", Some("good"))];
    desk.take(deltas(vec![delta(1, (6, 7), entries)]));
    assert_eq!((desk.items().as_str(), desk.position()), ("a=v b=good", Some((1, 7))));
    desk.reopen();
    let again = fail_on(&desk, "v");
    assert_eq!(refresh(&desk, &["a 6", "b 7"]), ["a"]);
    assert_eq!((*failures.lock().unwrap(), *again.lock().unwrap()), (1, 1));
    let skipped = |desk: &Desk| desk.shelf().get("notes", "a").unwrap().unwrap().is_skipped;
    assert!(skipped(&desk));
    desk.pass_ms(FIVE_MINUTES_MS);
    assert_eq!(desk.errand(), None, "one refresh, and no more");
    assert!(changes.try_recv().is_ok());
    // A later value of the item has its own chance.
    desk.take(deltas(vec![delta(1, (8, 8), vec![change(8, "a", Some("good"))])]));
    assert!(!skipped(&desk));
    assert_eq!(desk.items(), "a=good b=good");
}

#[test]
fn i10_a_refresh_that_brings_another_value_heals() {
    let mut desk = Desk::at(5);
    desk.pass_ms(FIVE_MINUTES_MS);
    fail_on(&desk, "damaged");
    desk.take(deltas(vec![delta(1, (6, 6), vec![change(6, "a", Some("damaged"))])]));
    refresh(&desk, &["a 6"]);
    let item = desk.shelf().get("notes", "a").unwrap().unwrap();
    assert_eq!((&item.value.bytes[..], item.is_skipped), (&b"v"[..], false));
    assert_eq!(desk.errand(), None);
}

#[test]
fn i9_many_failures_are_one_refresh_and_the_next_one_is_five_minutes_later() {
    let mut desk = Desk::at(5);
    desk.pass_ms(FIVE_MINUTES_MS);
    fail_on(&desk, "v");
    let entries = (6..22).map(|seq| change(seq, &format!("k{seq}"), Some("v"))).collect();
    desk.take(deltas(vec![delta(1, (6, 21), entries)]));
    let held: Vec<String> = (6..22).map(|seq| format!("k{seq} {seq}")).collect();
    let held: Vec<&str> = held.iter().map(String::as_str).collect();
    assert_eq!(refresh(&desk, &held).len(), 16);
    desk.take(deltas(vec![delta(1, (22, 22), vec![change(22, "late", Some("v"))])]));
    desk.pass_ms(FIVE_MINUTES_MS - 1);
    desk.reopen();
    fail_on(&desk, "v");
    assert_eq!(desk.errand(), None);
    desk.pass_ms(1);
    assert_eq!(refresh(&desk, &["late 22"]), ["late"]);
}

#[test]
fn a_deletion_that_the_handler_cannot_take_is_passed_over() {
    let mut desk = Desk::at(5);
    desk.take(deltas(vec![delta(1, (6, 6), vec![change(6, "a", Some("1"))])]));
    desk.collections.handle_with(|_| Err("no".into())).unwrap();
    let mut changes = desk.collections.changes();
    desk.take(deltas(vec![delta(1, (7, 7), vec![change(7, "a", None)])]));
    let told: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok()).collect();
    assert!(
        told.iter().any(|one| matches!(one, Happening::Skipped { reason, .. } if reason == "no"))
    );
    assert_eq!((desk.items().as_str(), desk.errand()), ("", None));
}

#[test]
fn i10_items_that_did_not_fit_the_answer_are_fetched_before_they_are_judged() {
    let mut desk = Desk::at(5);
    desk.pass_ms(FIVE_MINUTES_MS);
    let failures = fail_on(&desk, "damaged");
    let mut changes = desk.collections.changes();
    let entries = vec![change(6, "a", Some("damaged")), change(7, "b", Some("damaged"))];
    desk.take(deltas(vec![delta(1, (6, 7), entries)]));
    assert_eq!(*failures.lock().unwrap(), 2);
    // Of the second one the gateway says only that it is there, with the number that it has here.
    let errand = desk.errand().unwrap();
    let mut given =
        desk::repaired(&errand.up.repair.clone().unwrap(), &desk::rows_of(&["a 6", "b 7"]));
    let held = KeyRange::of("notes", Bounds::one("b"), [("b", 7)]);
    (given[1].items, given[1].parts) = (None, Some(vec![held.to_idl()]));
    desk.answer(&errand, idl::Result { ranges: Some(given), ..desk::ok() });
    assert_eq!(refresh(&desk, &["a 6", "b 7"]), ["b"]);
    assert_eq!((desk.items().as_str(), desk.errand()), ("a=v b=v", None));
    assert_eq!(*failures.lock().unwrap(), 2, "both came well");
    let told: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok()).collect();
    assert!(!told.iter().any(|one| matches!(one, Happening::Skipped { .. })), "{told:?}");
}
