//! Repair by ranges of keys: what of a device's copy of a collection differs, for bytes in
//! proportion to the difference.

use carillon_wire::{
    frame::{self, seq_from_idl},
    idl,
    limits::FRAME_BYTES_MAX,
    ranges::{self, Answer, Bounds, KeyRange},
};

use super::{Error, Service, bind::By, items::ItemView};
use crate::{
    base::ids::{Alias, CollectionName, QueueId, QueueName},
    queue::{
        collection::item::{Item, Totals, item_key, item_of},
        position::Seq,
        store::{Range, Space, decode},
    },
};

/// A stated range that differs from what is held.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// What is held there.
    pub range: KeyRange,
    /// That itself, or where to look.
    pub held: Held,
}

/// What is held in a range that differs.
#[derive(Clone, Debug)]
pub enum Held {
    /// All items.
    Items(Vec<ItemView>),
    /// The range in parts, of which those that differ are to be stated.
    Parts(Vec<KeyRange>),
}

/// A collection that is repaired for a device that stands somewhere.
struct Repairing<'a> {
    service: &'a Service,
    queue: QueueId,
    collection: CollectionName,
    at: Seq,
}

/// The items of a range as far as they concern the device, in the order of their keys.
type Named = Vec<(Box<str>, Seq)>;

impl Service {
    /// What the collections of a queue hold, where it has some. A digest that cannot be read is
    /// not given: whoever needs more of the queue is told so there.
    pub fn totals(&self, queue: &QueueId) -> Option<Totals> {
        let bytes = self.router.get(Space::Collections, queue.as_bytes()).ok().flatten()?;
        decode(&bytes).ok()
    }

    /// Compares what a device holds of a collection with what is held here: the ranges that
    /// differ, as much of them as one frame takes.
    ///
    /// # Errors
    /// [`Error::NotFound`] (the registration, or it does not follow the alias),
    /// [`Error::Invalid`], [`Error::NeedsPolicy`], [`Error::Sealed`], [`Error::Unavailable`].
    pub async fn repair(&self, by: By<'_>, stated: idl::Repair) -> Result<Vec<Repaired>, Error> {
        let idl::Repair { regid, alias_name, collection, epoch: _, seq, ranges } = stated;
        let (_, registration) = self.registration_of(&regid, by)?;
        let alias: Alias = alias_name.parse()?;
        let collection: CollectionName = collection.parse()?;
        self.collections(&registration.app)?;
        let queue = QueueName::Alias(registration.app, alias);
        if !registration.follows.iter().any(|follow| follow.queue == queue) {
            return Err(Error::NotFound { what: "alias of this registration" });
        }
        let at = Seq(seq_from_idl(seq).map_err(invalid)?);
        let repairing = Repairing { service: self, queue: queue.id(), collection, at };
        repairing.compare(ranges::stated_from_idl(ranges).map_err(invalid)?).await
    }
}

impl Repairing<'_> {
    async fn compare(&self, stated: Vec<KeyRange>) -> Result<Vec<Repaired>, Error> {
        // Each of them can at least be named, so that it is stated again.
        let named: usize = stated.iter().map(|range| 2 * cost(range)).sum();
        let mut room = (FRAME_BYTES_MAX - HEAD_BYTES).saturating_sub(named);
        let mut repaired = Vec::new();
        for stated in stated {
            let held = self.held(&stated.bounds).await?;
            let seqs = || held.iter().map(|(key, seq)| (key, seq.0));
            let name = self.collection.as_str();
            let range = KeyRange::of(name, stated.bounds.clone(), seqs());
            let items = match range.answer(&stated) {
                Answer::Equal => continue,
                Answer::Items => self.items(&held, room).await?,
                Answer::Parts => None,
            };
            let parts = || Held::Parts(range.split(name, seqs()));
            let mut answer = items.map_or_else(parts, Held::Items);
            match room.checked_sub(bytes(&answer)) {
                Some(rest) => room = rest,
                None => answer = Held::Parts(vec![range.clone()]),
            }
            repaired.push(Repaired { range, held: answer });
        }
        Ok(repaired)
    }

    /// What is held within bounds. What the device cannot have yet, changes will bring it, and
    /// they would not tell it where that came and went.
    async fn held(&self, bounds: &Bounds) -> Result<Named, Error> {
        let key = |key: &str| item_key(&self.queue, &self.collection, key);
        let mut range = Range::prefix_after(&key(""), key(&bounds.first));
        if let Some(before) = &bounds.before {
            range.to = Some(key(before));
        }
        let mut held = Vec::new();
        loop {
            let read = self.service.router.scan(Space::Items, &range, PAGE)?;
            let Some((last, _)) = read.last() else { return Ok(held) };
            range.from = [last.as_ref(), &[0]].concat();
            for (stored_key, item) in read {
                let item: Item = decode(&item)?;
                let is_told = item.head.born <= self.at || item.lived_before;
                if let Some((_, key)) = item_of(&stored_key)
                    && !item.head.is_deleted
                    && is_told
                {
                    held.push((key, item.head.seq));
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// None if they take more bytes than this.
    async fn items(&self, held: &Named, room: usize) -> Result<Option<Vec<ItemView>>, Error> {
        let (mut items, mut bytes) = (Vec::with_capacity(held.len()), 0);
        for (key, _) in held {
            let stored_key = item_key(&self.queue, &self.collection, key);
            let Some(item) = self.service.router.get(Space::Items, &stored_key)? else { continue };
            let item: Item = decode(&item)?;
            if item.head.is_deleted {
                continue;
            }
            let value = self.service.value_of(&self.queue, &self.collection, key, &item).await?;
            let Some(value) = value else { continue };
            let (collection, key) = (self.collection.clone(), key.clone());
            let (seq, clock) = (item.head.seq, item.head.stamp.clock);
            items.push(ItemView { collection, key, seq, value, clock });
            bytes += items.last().map_or(0, item_bytes);
            if bytes > room {
                return Ok(None);
            }
        }
        Ok(Some(items))
    }
}

fn invalid(error: frame::Error) -> Error {
    Error::Invalid { field: "repair", rule: error.to_string() }
}

/// What an answer costs beside its range, at most.
fn bytes(held: &Held) -> usize {
    match held {
        Held::Items(items) => items.iter().map(item_bytes).sum(),
        Held::Parts(parts) => parts.iter().map(cost).sum(),
    }
}

fn item_bytes(item: &ItemView) -> usize {
    item.collection.as_str().len() + item.key.len() + item.value.bytes.len() + 48
}

fn cost(range: &KeyRange) -> usize {
    range.bytes_upper_bound() + 8
}

/// Items that are looked at at once.
const PAGE: usize = 1_024;
/// What a Result has beside its ranges, at most.
const HEAD_BYTES: usize = 64;
