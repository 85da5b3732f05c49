//! Two copies of a collection, and what it costs to make them equal.

use std::collections::BTreeMap;

use carillon_wire::ranges::{Answer, Bounds, KeyRange, PARTS_MAX, stated_from_idl};
use proptest::prelude::*;

type Copy = BTreeMap<String, u64>;

fn within<'a>(copy: &'a Copy, bounds: &Bounds) -> Vec<(&'a str, u64)> {
    let held = copy.iter().map(|(key, seq)| (key.as_str(), *seq));
    held.filter(|(key, _)| bounds.contains(key)).collect()
}

fn range(copy: &Copy, bounds: Bounds) -> KeyRange {
    let items = within(copy, &bounds);
    KeyRange::of("notes", bounds, items)
}

/// Makes the device's copy what the gateway's is, as both ends do it. How many ranges and items went over the wire.
fn repair(device: &mut Copy, gateway: &Copy) -> (usize, usize) {
    let (mut ranges, mut items) = (0, 0);
    let mut stated = vec![range(device, Bounds::everything())];
    while let Some(one) = stated.pop() {
        ranges += 1;
        let one = KeyRange::from_idl(one.to_idl()).unwrap();
        let held = range(gateway, one.bounds.clone());
        match held.answer(&one) {
            Answer::Equal => {}
            Answer::Items => {
                device.retain(|key, _| !one.bounds.contains(key));
                let given = within(gateway, &one.bounds);
                items += given.len();
                device.extend(given.into_iter().map(|(key, seq)| (key.to_owned(), seq)));
            }
            Answer::Parts => {
                let parts = held.split("notes", within(gateway, &one.bounds));
                assert!(parts.len() > 1 && parts.len() as u64 <= PARTS_MAX);
                assert_eq!(parts.iter().map(|part| part.items).sum::<u64>(), held.items);
                ranges += parts.len();
                let ours = parts.into_iter().map(|part| (range(device, part.bounds.clone()), part));
                stated.extend(ours.filter(|(ours, theirs)| ours != theirs).map(|(ours, _)| ours));
            }
        }
    }
    (ranges, items)
}

fn copies(count: u64) -> Copy {
    (0..count).map(|n| (format!("note {n:06}"), n + 1)).collect()
}

#[test]
fn s19_one_item_of_ten_thousand_costs_a_few_ranges_and_items() {
    let gateway = copies(10_000);
    let mut device = gateway.clone();
    device.insert("note 004711".into(), 7);
    let (ranges, items) = repair(&mut device, &gateway);
    assert_eq!(device, gateway);
    assert!(ranges <= 4 * 17 && items <= 8, "{ranges} ranges, {items} items");
}

#[test]
fn s19_equal_copies_cost_one_range_and_empty_ones_are_filled() {
    let gateway = copies(1_000);
    assert_eq!(repair(&mut gateway.clone(), &gateway), (1, 0));
    let mut empty = Copy::new();
    assert_eq!(repair(&mut empty, &gateway).1, 1_000);
    assert_eq!(empty, gateway);
    assert_eq!(repair(&mut gateway.clone(), &Copy::new()), (1, 0));
}

#[test]
fn bounds_hold_what_they_say_and_the_wire_refuses_those_that_hold_nothing() {
    let one = Bounds::one("b");
    assert!(one.contains("b") && !one.contains("a") && !one.contains("b1"));
    let mut idl = range(&Copy::new(), one).to_idl();
    idl.before = Some(idl.first.clone());
    assert!(KeyRange::from_idl(idl.clone()).is_err());
    (idl.before, idl.items) = (None, -1);
    assert!(KeyRange::from_idl(idl).is_err());
}

#[test]
fn stated_ranges_are_few_in_order_and_apart() {
    let part = |first: &str, before: Option<&str>| {
        let bounds = Bounds { first: first.into(), before: before.map(str::to_owned) };
        range(&Copy::new(), bounds).to_idl()
    };
    assert_eq!(stated_from_idl(vec![part("a", Some("b")), part("c", None)]).unwrap().len(), 2);
    assert!(stated_from_idl(vec![part("a", None), part("c", None)]).is_err());
    assert!(stated_from_idl(vec![part("a", Some("c")), part("b", None)]).is_err());
    let many: Vec<_> = (b'a'..b'r').map(|n| char::from(n).to_string()).collect();
    let many = many.iter().map(|key| part(key, Some(&format!("{key}\0")))).collect();
    assert!(stated_from_idl(many).is_err());
}

fn any_copy() -> impl Strategy<Value = Copy> {
    proptest::collection::btree_map("[a-dä]{0,3}", 1u64..50, 0..120)
}

proptest! {
    #[test]
    fn s19_any_two_copies_become_equal(mut device in any_copy(), gateway in any_copy()) {
        repair(&mut device, &gateway);
        prop_assert_eq!(device, gateway);
    }
}

#[test]
fn bounds_are_no_longer_than_a_key_makes_them() {
    let of = |first: usize, before: usize| {
        let before = Some("z".repeat(before));
        KeyRange::of("notes", Bounds { first: "a".repeat(first), before }, [("", 0); 0]).to_idl()
    };
    assert!(KeyRange::from_idl(of(257, 257)).is_ok());
    assert!(KeyRange::from_idl(of(258, 1)).is_err());
    assert!(KeyRange::from_idl(of(1, 258)).is_err());
}
