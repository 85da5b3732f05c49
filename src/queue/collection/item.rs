//! What is stored of items and of whole collections, beside the entries.

use carillon_wire::digest::{Digest, item_hash};
use serde::{Deserialize, Serialize};

use super::head::ItemHead;
use crate::{
    base::ids::{CollectionName, QueueId},
    queue::position::{Epoch, Position, Seq},
};

/// An item without its value. It stays when the item is deleted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The epoch of the change that made it so.
    pub epoch: Epoch,
    /// What conflict rules decide on.
    pub head: ItemHead,
    /// What it adds to [`Total::bytes`]; 0 if it is deleted.
    pub bytes: u64,
    /// As [`crate::queue::entry::Change::lived_before`].
    pub lived_before: bool,
}

/// What the collections of one queue hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// The bytes of all changes that the queue ever had.
    pub bytes_so_far: u64,
    /// By name, ascending. A collection that had an item once stays.
    pub collections: Vec<Total>,
}

/// What one collection of a queue holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Which.
    pub collection: CollectionName,
    /// Live items.
    pub items: u64,
    /// Their names, keys and values.
    pub bytes: u64,
    /// The digest of the live items.
    pub digest: u64,
    /// The newest change of any of its items.
    pub last: Seq,
}

impl Item {
    /// Where the change is that made it so.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.head.seq }
    }
}

impl Totals {
    /// What a collection holds, if it ever held anything.
    pub fn of(&self, collection: &CollectionName) -> Option<&Total> {
        let at = self.collections.binary_search_by(|total| total.collection.cmp(collection));
        at.ok().map(|at| &self.collections[at])
    }

    /// An item changed.
    pub fn replace(
        &mut self,
        collection: &CollectionName,
        key: &str,
        before: Option<&Item>,
        after: &Item,
    ) {
        let at = self.collections.binary_search_by(|total| total.collection.cmp(collection));
        let at = at.unwrap_or_else(|at| {
            let collection = collection.clone();
            let fresh = Total { collection, items: 0, bytes: 0, digest: 0, last: Seq(0) };
            self.collections.insert(at, fresh);
            at
        });
        let total = &mut self.collections[at];
        let mut digest = Digest::from(total.digest);
        let hash = |item: &Item| item_hash(collection.as_str(), key, item.head.seq.0);
        if let Some(before) = before.filter(|before| !before.head.is_deleted) {
            digest.remove(hash(before));
            (total.items, total.bytes) = (total.items - 1, total.bytes - before.bytes);
        }
        if !after.head.is_deleted {
            digest.add(hash(after));
            (total.items, total.bytes) = (total.items + 1, total.bytes + after.bytes);
        }
        (total.digest, total.last) = (digest.value(), after.head.seq);
    }
}

/// The key of an item in [`crate::queue::store::Space::Items`].
pub fn item_key(queue: &QueueId, collection: &CollectionName, key: &str) -> Vec<u8> {
    [queue.as_bytes(), collection.as_str().as_bytes(), &[0], key.as_bytes()].concat()
}

/// The collection and the key of an item, by what [`item_key`] made of them.
pub fn item_of(stored_key: &[u8]) -> Option<(CollectionName, Box<str>)> {
    let names = stored_key.get(size_of::<QueueId>()..)?;
    let end = names.iter().position(|byte| *byte == 0)?;
    let collection = std::str::from_utf8(&names[..end]).ok()?.parse().ok()?;
    Some((collection, std::str::from_utf8(&names[end + 1..]).ok()?.into()))
}
