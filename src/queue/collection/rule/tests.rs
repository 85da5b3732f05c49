//! Rules against histories: every order of arrival that is possible ends alike.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::base::ids::RegId;

/// Makers: 0 is the app's servers, the others are devices.
const MAKERS: usize = 4;

/// A change of one item, as a random history makes it.
#[derive(Clone, Debug)]
struct Made {
    maker: usize,
    /// How many of the changes before it its maker knew of.
    knew: usize,
    clock: u64,
    cseq: u64,
    /// `None` deletes.
    fields: Option<Vec<u8>>,
    /// Says nothing of what it knew: it must have known everything.
    is_blind: bool,
}

/// What a replica holds at last: live values by key.
type Items = BTreeMap<Box<str>, Value>;

#[derive(Default)]
struct World {
    items: BTreeMap<Box<str>, (ItemHead, Value)>,
    seq: u64,
    /// The newest seq after each number of arrivals.
    heads: Vec<u64>,
}

impl World {
    fn present(&self) -> Present {
        let item = self.items.get("k");
        let names = item.iter().flat_map(|(head, _)| &head.siblings).map(|s| s.key.clone());
        let copy = |key: Box<str>| {
            let (head, _) = self.items.get(&key)?;
            Some((key, head.clone()))
        };
        Present {
            head: item.map(|(head, _)| head.clone()),
            value: item.filter(|(head, _)| !head.is_deleted).map(|(_, value)| value.clone()),
            copies: names.filter_map(copy).collect(),
        }
    }

    fn arrive(&mut self, rule: Rule, made: &Made) -> Outcome {
        self.heads.push(self.seq);
        let origin = match made.maker {
            0 => Origin::Server,
            n => Origin::Device { regid: RegId([n as u8; 20]), cseq: made.cseq },
        };
        let wish = Wish {
            stamp: Stamp { clock: Hlc(made.clock), origin },
            base: (!made.is_blind).then(|| Seq(self.heads[made.knew])),
            value: made.fields.as_ref().map(|fields| document(made, fields)),
        };
        let present = self.present();
        let decision = decide(rule, "k", &present, wish, Seq(self.seq + 1)).unwrap();
        for put in decision.puts {
            self.seq += 1;
            assert_eq!(put.head.seq, Seq(self.seq), "entries are contiguous");
            let was_live = self.items.get(&put.key).is_some_and(|(head, _)| !head.is_deleted);
            assert_eq!(put.kind == Kind::New, !was_live && !put.head.is_deleted);
            self.items.insert(put.key, (put.head, put.value));
        }
        if let Some(head) = decision.head {
            self.items.get_mut("k").unwrap().0 = head;
        }
        decision.outcome
    }

    fn live(self) -> Items {
        let live = self.items.into_iter().filter(|(_, (head, _))| !head.is_deleted);
        live.map(|(key, (_, value))| (key, value)).collect()
    }
}

/// Each field says who set it; the last one removes itself.
fn document(made: &Made, fields: &[u8]) -> Value {
    let field = |f: &u8| match f {
        3 => r#""f0":null"#.into(),
        f => format!(r#""f{f}":"{}-{}""#, made.maker, made.cseq),
    };
    Value::json(format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(",")))
}

/// A history, in one possible order of arrival.
fn history() -> impl Strategy<Value = Vec<Made>> {
    let fields = prop::collection::btree_set(0..4_u8, 1..3);
    let one = (0..MAKERS, any::<prop::sample::Index>(), 1..20_u64, fields, 0..4_u8, 0..6_u8);
    prop::collection::vec(one, 1..8).prop_map(|drawn| {
        let mut made: Vec<Made> = Vec::new();
        let mut knew_most = [0; MAKERS];
        for (n, (maker, knew, ahead, fields, deletes, blind)) in drawn.into_iter().enumerate() {
            let is_blind = maker == 0 && blind == 0;
            let least = knew_most[maker];
            let knew = if is_blind { n } else { least + knew.index(n + 1 - least) };
            knew_most[maker] = knew;
            let seen = made[..knew].iter().chain(made.iter().filter(|m| m.maker == maker));
            let clock = seen.map(|m| m.clock).max().unwrap_or(0) + ahead;
            let cseq = 1 + made.iter().filter(|m| m.maker == maker).count() as u64;
            let fields: BTreeSet<u8> = if fields.contains(&3) {
                fields.iter().copied().filter(|f| *f != 0).collect()
            } else {
                fields
            };
            let is_delete = deletes == 0 && knew > 0;
            let fields = (!is_delete).then(|| fields.into_iter().collect());
            made.push(Made { maker, knew, clock, cseq, fields, is_blind });
        }
        made
    })
}

/// Another possible order: what somebody knew at a time had arrived by then, and nothing else;
/// a maker's changes arrive in its own order.
fn reordered(history: &[Made], mut dice: u64) -> Vec<Made> {
    let mut cuts: BTreeSet<usize> = history.iter().map(|m| m.knew).collect();
    cuts.extend([0, history.len()]);
    // Who says nothing of what it knew knew exactly what had arrived.
    cuts.extend((0..history.len()).filter(|n| history[*n].is_blind).map(|n| n + 1));
    let cuts: Vec<usize> = cuts.into_iter().collect();
    let mut whole = Vec::new();
    for pair in cuts.windows(2) {
        let mut block: Vec<usize> = (pair[0]..pair[1]).collect();
        for n in (1..block.len()).rev() {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            block.swap(n, (dice >> 33) as usize % (n + 1));
        }
        for maker in 0..MAKERS {
            let places = (0..block.len()).filter(|p| history[block[*p]].maker == maker);
            let places: Vec<usize> = places.collect();
            let mut own: Vec<usize> = places.iter().map(|p| block[*p]).collect();
            own.sort_unstable();
            places.into_iter().zip(own).for_each(|(place, change)| block[place] = change);
        }
        whole.extend(block.into_iter().map(|n| history[n].clone()));
    }
    whole
}

fn end_of(rule: Rule, history: &[Made]) -> Items {
    let mut world = World::default();
    for made in history {
        world.arrive(rule, made);
    }
    world.live()
}

fn check(rule: Rule, history: &[Made], dice: u64) -> Result<(), TestCaseError> {
    let other = reordered(history, dice);
    prop_assert_eq!(end_of(rule, history), end_of(rule, &other), "{:?} {:#?}", rule, other);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn s21_server_wins_in_any_order(history in history(), dice: u64) {
        check(Rule::ServerWins, &history, dice)?;
    }

    #[test]
    fn s21_client_wins_in_any_order(history in history(), dice: u64) {
        check(Rule::ClientWins, &history, dice)?;
    }

    #[test]
    fn s21_the_newest_wins_in_any_order(history in history(), dice: u64) {
        check(Rule::Newest, &history, dice)?;
    }

    #[test]
    fn s21_fields_merge_in_any_order(history in history(), dice: u64) {
        check(Rule::Merge, &history, dice)?;
    }

    #[test]
    fn s21_both_are_kept_in_any_order(mut history in history(), dice: u64) {
        for made in &mut history {
            made.fields.get_or_insert_with(|| vec![1]);
        }
        check(Rule::KeepBoth, &history, dice)?;
    }

    #[test]
    fn s21_what_a_delete_did_not_know_is_kept_in_any_order(mut history in history(), dice: u64) {
        for made in &mut history {
            made.fields.get_or_insert_with(|| vec![1]);
        }
        if let Some(last) = history.last_mut().filter(|last| last.knew > 0) {
            last.fields = None;
        }
        // Under which key depends on whether the delete came first.
        let values = |history: &[Made]| {
            let ends = end_of(Rule::KeepBoth, history).into_values();
            let mut values: Vec<Bytes> = ends.map(|value| value.bytes).collect();
            values.sort();
            values
        };
        let other = reordered(&history, dice);
        prop_assert_eq!(values(&history), values(&other), "{:#?}", other);
    }
}

fn made(maker: usize, knew: usize, clock: u64, fields: &[u8]) -> Made {
    let fields = Some(fields.to_vec());
    Made { maker, knew, clock, cseq: 1, fields, is_blind: false }
}

/// Two changes that did not know of each other, the later clock first.
fn outcome_of_two(rule: Rule, first: usize, second: usize) -> (Outcome, Items) {
    let mut world = World::default();
    world.arrive(rule, &made(first, 0, 9, &[1]));
    let outcome = world.arrive(rule, &made(second, 0, 5, &[2]));
    (outcome, world.live())
}

#[test]
fn each_rule_says_what_became_of_a_late_change() {
    let server = Value::json(&br#"{"f2":"0-1"}"#[..]);
    let (outcome, items) = outcome_of_two(Rule::ServerWins, 1, 0);
    assert_eq!((outcome, &items["k"]), (Outcome::Applied, &server), "whatever its clock says");
    assert_eq!(outcome_of_two(Rule::ServerWins, 0, 1).0, Outcome::Lost);
    assert_eq!(outcome_of_two(Rule::ClientWins, 0, 1).0, Outcome::Applied);
    assert_eq!(outcome_of_two(Rule::ClientWins, 1, 0).0, Outcome::Lost);
    assert_eq!(outcome_of_two(Rule::Newest, 1, 2).0, Outcome::Lost);
    let (outcome, items) = outcome_of_two(Rule::Merge, 1, 2);
    assert_eq!(
        (outcome, items["k"].bytes.as_ref()),
        (Outcome::Merged, &br#"{"f1":"1-1","f2":"2-1"}"#[..])
    );
    let (outcome, items) = outcome_of_two(Rule::KeepBoth, 1, 2);
    assert_eq!((outcome, items.len()), (Outcome::Copied, 2));
    assert!(items.keys().any(|key| key.starts_with("k~") && key.ends_with("-1")));
}

#[test]
fn a_clock_that_runs_behind_does_not_undo_a_change_that_knew_everything() {
    let mut world = World::default();
    world.arrive(Rule::Newest, &made(1, 0, 90, &[1]));
    world.arrive(Rule::Newest, &made(2, 1, 5, &[1]));
    let late = world.arrive(Rule::Newest, &made(3, 0, 50, &[1]));
    assert_eq!(late, Outcome::Lost);
    assert_eq!(world.live()["k"].bytes.as_ref(), br#"{"f1":"2-1"}"#);
}

#[test]
fn a_value_that_is_no_object_cannot_be_merged() {
    let stamp = Stamp::default();
    let wish = Wish { stamp, base: None, value: Some(Value::json(&b"[1]"[..])) };
    let refused = decide(Rule::Merge, "k", &Present::default(), wish, Seq(1));
    assert_eq!(refused, Err(Error::NotAnObject));
}
