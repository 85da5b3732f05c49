//! What is folded and what is read back: values, without a store.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Commit, Error};
use crate::{
    base::ids::{CollectionName, QueueId, Shard},
    queue::{
        collection::change::{Kind, Stamp, Value},
        entry::{Body, Change, Entry},
        position::{Position, Seq},
        reader::Take,
    },
};

/// Commits of one shard, to be folded together.
#[derive(Clone, Debug)]
pub struct Fold {
    /// Whose.
    pub shard: Shard,
    /// Where the pointer of the shard stands now; if it stands elsewhere nothing is folded.
    pub after: Commit,
    /// Where it stands then.
    pub upto: Commit,
    /// What they appended; each queue once.
    pub queues: Vec<Advance>,
}

/// The next entries of one queue.
#[derive(Clone, Debug)]
pub struct Advance {
    /// Which.
    pub queue: QueueId,
    /// Contiguous, from the one after what is folded.
    pub steps: Vec<Step>,
}

/// One entry.
#[derive(Clone, Debug)]
pub struct Step {
    /// The day of its append; those of a queue never go back.
    pub day: u32,
    /// What it is.
    pub entry: Arc<Entry>,
}

/// The name of an item in its queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name {
    /// Its collection.
    pub collection: CollectionName,
    /// Its key there.
    pub key: Box<str>,
}

/// A live item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Its name.
    pub name: Name,
    /// The change that made it so.
    pub position: Position,
    /// When and by whom that was made.
    pub stamp: Stamp,
    /// The change that created the item.
    pub born: Seq,
    /// What it is.
    pub value: Value,
}

/// One entry of a queue's history.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// The day of its append.
    pub day: u32,
    /// What it is.
    pub entry: Entry,
}

/// Which keys of a collection: `from` included, `to` not.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The collection.
    pub collection: CollectionName,
    /// The first key.
    pub from: Box<str>,
    /// The key before which it ends; `None` is the end of the collection.
    pub to: Option<Box<str>>,
}

impl Advance {
    /// Where the queue is folded to then.
    pub(super) fn position(&self) -> Option<Position> {
        self.steps.last().map(|step| step.entry.position)
    }

    /// The newest change of each item, by the bytes of its name.
    pub(super) fn latest(&self) -> BTreeMap<(&str, &str), (Position, &Change)> {
        let mut latest = BTreeMap::new();
        for Step { entry, .. } in &self.steps {
            if let Body::Change(change) = &entry.body {
                let name = (change.collection.as_str(), &*change.key);
                latest.insert(name, (entry.position, change));
            }
        }
        latest
    }
}

impl Item {
    /// What a change made of it; `None`: it is no more.
    pub(super) fn made_by(position: Position, change: &Change) -> Option<Self> {
        let Change { collection, key, kind, value, stamp, born, .. } = change;
        let name = Name { collection: collection.clone(), key: key.clone() };
        let (stamp, born, value) = (*stamp, *born, value.clone());
        (*kind != Kind::Delete).then_some(Self { name, position, stamp, born, value })
    }

    /// What counts for [`Take::bytes`].
    pub(super) fn bytes(&self) -> usize {
        self.value.bytes.len()
    }
}

/// The first of them that fit: it stops at the one that passes the bytes.
pub(super) fn taken<T>(
    all: impl Iterator<Item = Result<T, Error>>,
    take: Take,
    bytes_of: impl Fn(&T) -> usize,
) -> Result<Vec<T>, Error> {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for one in all.take(take.entries) {
        let one = one?;
        bytes += bytes_of(&one);
        taken.push(one);
        if bytes >= take.bytes {
            break;
        }
    }
    Ok(taken)
}

/// A number that is kept as its bits.
pub(super) const fn signed(number: u64) -> i64 {
    number.cast_signed()
}
