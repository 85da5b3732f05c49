//! Which of two changes of an item wins.
//!
//! One function decides, from values alone. The same changes, arriving in any order that is
//! possible given who knew of what, end with the same items.

mod keep_both;
mod merge;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::{
    change::{Hlc, Kind, Origin, Stamp, Value, Wish},
    head::ItemHead,
};
use crate::queue::position::Seq;

/// How a collection settles changes whose makers did not know of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The app server's; among devices the newest.
    ServerWins,
    /// The device's; among devices the newest.
    ClientWins,
    /// The newest.
    Newest,
    /// Top-level fields of a JSON document, each by the newest.
    Merge,
    /// The newest; the other becomes an item of its own.
    KeepBoth,
}

/// An item as it is before a change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Present {
    /// `None`: it never was.
    pub head: Option<ItemHead>,
    /// Its value; `None` if it is not there.
    pub value: Option<Value>,
    /// The heads of the copies that the head names and that are still there.
    pub copies: Vec<(Box<str>, ItemHead)>,
}

/// One entry that a change leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct Put {
    /// Under which key.
    pub key: Box<str>,
    /// What it does.
    pub kind: Kind,
    /// The value; empty for a delete.
    pub value: Value,
    /// The item afterwards; its seq is where the entry goes.
    pub head: ItemHead,
}

/// What a change leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What its maker is told.
    pub outcome: Outcome,
    /// Its entries, in order.
    pub puts: Vec<Put>,
    /// The item's head, if that changes without an entry under the item's own key.
    pub head: Option<ItemHead>,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It stands as it was made.
    Applied,
    /// It stands together with what others made of the item.
    Merged,
    /// It is kept under a key of its own.
    Copied,
    /// What is there stays.
    Lost,
}

/// A change that cannot be applied under its collection's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Only objects have fields to merge.
    #[error("the value must be a JSON object, because the collection merges fields")]
    NotAnObject,
    /// What others set, together with this, is too large.
    #[error("the merged value would be larger than 65536 bytes")]
    TooLarge,
}

/// Decides a change of the item `key`, whose entries take the seqs from `next` on.
///
/// # Errors
/// [`Error`] if the rule cannot read the value.
pub fn decide(
    rule: Rule,
    key: &str,
    present: &Present,
    mut wish: Wish,
    next: Seq,
) -> Result<Decision, Error> {
    if let Some(head) = present.head.as_ref().filter(|head| head.was_seen_by(&wish)) {
        // A clock that runs behind what its owner saw must not undo it later.
        let least = Hlc(head.stamp.clock.0.saturating_add(1));
        wish.stamp.clock = wish.stamp.clock.max(least);
    }
    match rule {
        Rule::ServerWins | Rule::ClientWins | Rule::Newest => {
            let wins = present.head.as_ref().is_none_or(|head| wins(rule, head, &wish));
            let put = || put(key, present.head.as_ref(), &wish, next);
            Ok(if wins { Decision::applied(put()) } else { Decision::lost() })
        }
        Rule::Merge => merge::decide(key, present, &wish, next),
        Rule::KeepBoth => Ok(keep_both::decide(key, present, &wish, next)),
    }
}

impl Decision {
    fn applied(put: Put) -> Self {
        Self { outcome: Outcome::Applied, puts: vec![put], head: None }
    }

    fn lost() -> Self {
        Self { outcome: Outcome::Lost, puts: Vec::new(), head: None }
    }
}

fn wins(rule: Rule, head: &ItemHead, wish: &Wish) -> bool {
    let is_newer = wish.stamp > head.stamp;
    match (rule, wish.stamp.origin) {
        (Rule::ServerWins, Origin::Server) => true,
        (Rule::ServerWins, Origin::Device { .. }) => {
            let knew_server = wish.base.is_none_or(|base| base >= head.last_server);
            knew_server && (head.was_seen_by(wish) || is_newer)
        }
        // An app server's change stands only for the devices' changes that it knew.
        (Rule::ClientWins, Origin::Device { .. }) => {
            head.was_seen_by(wish) || head.device.is_none_or(|device| wish.stamp > device)
        }
        (Rule::ClientWins, Origin::Server) => wish.base.is_none_or(|base| base >= head.last_device),
        (Rule::Newest | Rule::Merge | Rule::KeepBoth, _) => head.was_seen_by(wish) || is_newer,
    }
}

/// The entry of a change that stands as it was made.
fn put(key: &str, before: Option<&ItemHead>, wish: &Wish, seq: Seq) -> Put {
    let head = after(before, wish.stamp, wish.value.is_none(), seq);
    let kind = kind(before, &head);
    Put { key: key.into(), kind, value: wish.value.clone().unwrap_or_default(), head }
}

/// The head of an item after a change that won.
fn after(before: Option<&ItemHead>, stamp: Stamp, is_deleted: bool, seq: Seq) -> ItemHead {
    let mut head = before.cloned().unwrap_or_default();
    let is_born = !is_deleted && before.is_none_or(|head| head.is_deleted);
    if is_born {
        head.born = seq;
    }
    (head.seq, head.stamp, head.is_deleted) = (seq, stamp, is_deleted);
    match stamp.origin {
        Origin::Server => head.last_server = seq,
        Origin::Device { .. } => {
            head.last_device = seq;
            head.device = head.device.max(Some(stamp));
        }
    }
    head
}

fn kind(before: Option<&ItemHead>, after: &ItemHead) -> Kind {
    match (before.is_some_and(|head| !head.is_deleted), after.is_deleted) {
        (_, true) => Kind::Delete,
        (true, false) => Kind::Update,
        (false, false) => Kind::New,
    }
}
