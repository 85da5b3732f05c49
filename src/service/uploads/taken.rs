//! What is kept of the edits that one device uploaded to one alias: enough to answer the
//! newest of them again. Pure.

use std::{collections::VecDeque, hash::Hasher};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::Edit;
use crate::queue::{collection::rule::Outcome, position::Seq};

/// Edits whose fates are kept: so many may be without an answer.
pub const KEPT_MAX: usize = 256;

/// What became of one edit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// In a word; or why it cannot be read.
    pub outcome: Result<Outcome, Box<str>>,
    /// The entry that it led to, if it did.
    pub seq: Option<Seq>,
}

/// The edits that were taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// The newest one's number; 0: none was.
    last: u64,
    /// Of the newest ones up to it.
    kept: VecDeque<Kept>,
}

/// Where edits are among those that were taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Of the first ones, which were taken before.
    pub fates: Vec<Fate>,
    /// Whether the others come next. If not, they are other edits with numbers that were taken
    /// or forgotten, or there is a hole before them.
    pub goes_on: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// So that another edit with the same number is not taken for it.
    print: u64,
    fate: Fate,
}

impl Taken {
    /// The number that comes next.
    pub fn next(&self) -> u64 {
        self.last + 1
    }

    /// Where some edits, consecutive ones, are among those that were taken.
    pub fn place(&self, edits: &[Edit]) -> Placed {
        let nowhere = Placed { fates: Vec::new(), goes_on: false };
        let Some(first) = edits.first() else { return Placed { goes_on: true, ..nowhere } };
        let Some(before) = self.next().checked_sub(first.cseq) else { return nowhere };
        let before = usize::try_from(before).unwrap_or(usize::MAX);
        // Of more than are kept it cannot be told whether they are the same.
        let Some(from) = self.kept.len().checked_sub(before) else { return nowhere };
        let taken = edits.iter().zip(self.kept.range(from..));
        let same = taken.take_while(|(edit, kept)| print(edit) == kept.print);
        let fates: Vec<Fate> = same.map(|(_, kept)| kept.fate.clone()).collect();
        let goes_on = fates.len() == before.min(edits.len());
        Placed { fates, goes_on }
    }

    /// The edit that comes next was taken.
    ///
    /// # Panics
    /// If it is not the next one: the caller's error.
    pub fn note(&mut self, edit: &Edit, fate: Fate) {
        assert_eq!(edit.cseq, self.next(), "edits are taken in their order");
        self.last = edit.cseq;
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(Kept { print: print(edit), fate });
    }
}

/// What tells an edit from another with its number: not where its maker stood, which may be
/// said anew when it is sent again.
fn print(edit: &Edit) -> u64 {
    let mut hasher = SipHasher13::new();
    for name in [&edit.collection, &edit.key] {
        hasher.write(name.as_bytes());
        hasher.write_u8(0);
    }
    hasher.write_u64(edit.clock.0);
    if let Some(value) = &edit.value {
        hasher.write(&value.bytes);
        hasher.write_u8(1);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{
        collection::change::{Hlc, Value},
        position::{Epoch, Position},
    };

    fn edit(cseq: u64, text: &str) -> Edit {
        let base = Position { epoch: Epoch(1), seq: Seq(0) };
        Edit {
            cseq,
            collection: "notes".to_owned(),
            key: format!("n{cseq}"),
            value: Some(Value::json(text.to_owned())),
            base: Ok(base),
            clock: Hlc::at(cseq),
        }
    }

    fn fate(seq: u64) -> Fate {
        Fate { outcome: Ok(Outcome::Applied), seq: Some(Seq(seq)) }
    }

    fn edits(numbers: std::ops::RangeInclusive<u64>) -> Vec<Edit> {
        numbers.map(|cseq| edit(cseq, "1")).collect()
    }

    fn taken(count: u64) -> Taken {
        let mut taken = Taken::default();
        edits(1..=count).iter().for_each(|edit| taken.note(edit, fate(edit.cseq)));
        taken
    }

    #[test]
    fn s20_what_was_taken_is_answered_again_and_the_rest_comes_next() {
        let taken = taken(10);
        let placed =
            |edits: &[Edit], fates| assert_eq!(taken.place(edits), Placed { fates, goes_on: true });
        placed(&edits(11..=12), vec![]);
        placed(&edits(9..=12), vec![fate(9), fate(10)]);
        placed(&edits(3..=4), vec![fate(3), fate(4)]);
        placed(&edits(1..=10), (1..=10).map(fate).collect());
        placed(&[], vec![]);
    }

    #[test]
    fn s20_holes_other_edits_and_forgotten_ones_do_not_go_on() {
        let mut taken = taken(10);
        let nowhere = Placed { fates: vec![], goes_on: false };
        assert_eq!(taken.place(&edits(12..=13)), nowhere, "a hole");
        assert_eq!(taken.place(&[edit(u64::MAX >> 1, "1")]), nowhere);
        let mut others = edits(9..=12);
        others[1] = edit(10, "2");
        let up_to_it = Placed { fates: vec![fate(9)], goes_on: false };
        assert_eq!(taken.place(&others), up_to_it, "another edit with a number that was taken");
        // What its maker knew may be said anew.
        others[1] = Edit { base: Err("gone".into()), ..edit(10, "1") };
        assert!(taken.place(&others).goes_on);
        for one in edits(11..=300) {
            taken.note(&one, fate(one.cseq));
        }
        assert_eq!(taken.place(&edits(44..=44)), nowhere, "one that is forgotten");
        let newest = Placed { fates: vec![fate(45)], goes_on: true };
        assert_eq!(taken.place(&edits(45..=45)), newest);
        assert_eq!(taken.next(), 301);
    }
}
