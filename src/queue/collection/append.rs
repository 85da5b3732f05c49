//! Changes become entries: one transaction on the queue's owner.
//!
//! Entries, items and totals are written together, so that each always says what the others do.
//! Values that a rule needs are read before; if one changed meanwhile, the transaction is void
//! and its caller reads again.

use std::collections::HashMap;

use serde::Serialize;

use super::{
    change::{Hlc, Stamp, Value, Wish},
    item::{Item, Totals, item_key},
    rule::{self, Outcome, Present, Put, Rule, decide},
};
use crate::{
    base::ids::{CollectionName, QueueId},
    queue::{
        entry::{Body, Change},
        position::{Position, Seq},
        store::{self, Space, decode, encode},
        txn::Txn,
    },
};

/// How far a maker's clock may be ahead of ours.
const AHEAD_MS_MAX: u64 = 3_600_000;

/// What somebody wants to do to an item of a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The item's collection.
    pub collection: CollectionName,
    /// How it settles conflicts.
    pub rule: Rule,
    /// The item's key.
    pub key: Box<str>,
    /// The new value; `None` deletes.
    pub value: Option<Value>,
    /// Where its maker stood in the queue; `None`: it means whatever is there.
    pub base: Option<Position>,
    /// When and by whom.
    pub stamp: Stamp,
}

/// What became of an [`Ask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Done {
    /// In a word.
    pub outcome: Outcome,
    /// The entry that it led to, if it did.
    pub seq: Option<Seq>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A value that a rule needs is not the one that was read before.
    #[error("an item changed meanwhile")]
    Moved,
}

/// Values that were read before the transaction, by the changes that made them.
#[derive(Clone, Debug, Default)]
pub struct Known(HashMap<Vec<u8>, (Position, Value)>);

impl Known {
    /// The value of the item with this stored key, as that change made it.
    pub fn insert(&mut self, stored_key: Vec<u8>, made_at: Position, value: Value) {
        self.0.insert(stored_key, (made_at, value));
    }

    fn get(&self, stored_key: &[u8], made_at: Position) -> Option<Value> {
        let (of, value) = self.0.get(stored_key)?;
        (*of == made_at).then(|| value.clone())
    }
}

/// Changes of one queue's items, in one transaction.
pub struct Changing<'t, 'a> {
    /// The transaction, for what is written along.
    pub txn: &'t mut Txn<'a>,
    queue: QueueId,
    known: Known,
    totals: Totals,
    has_changed: bool,
}

/// Runs changes of a queue's items in a transaction of its owner.
///
/// # Errors
/// What `act` refuses with, and [`Error`]: the transaction must not be kept then.
pub fn changing<T, E: From<Error>>(
    txn: &mut Txn<'_>,
    queue: QueueId,
    known: Known,
    act: impl FnOnce(&mut Changing<'_, '_>) -> Result<T, E>,
) -> Result<T, E> {
    let totals = txn.get(Space::Collections, queue.as_bytes()).map_err(Error::from)?;
    let totals = totals.map_or(Ok(Totals::default()), |bytes| decode(&bytes));
    let totals = totals.map_err(Error::from)?;
    let mut changing = Changing { txn, queue, known, totals, has_changed: false };
    let done = act(&mut changing)?;
    if changing.has_changed {
        changing.txn.put(Space::Collections, queue.as_bytes(), encode(&changing.totals));
    }
    Ok(done)
}

impl Changing<'_, '_> {
    /// Decides a change and appends what it leads to. A change that its rule cannot read is a
    /// result: it leads to nothing, and others may stand beside it.
    ///
    /// # Errors
    /// [`Error`]: the transaction must not be kept.
    pub fn change(&mut self, ask: &Ask) -> Result<Result<Done, rule::Error>, Error> {
        let stored_key = item_key(&self.queue, &ask.collection, &ask.key);
        let item = self.item(&stored_key)?;
        let wish = self.wish(ask)?;
        let present = self.present(ask, &wish, &stored_key, item.as_ref())?;
        let next = self.txn.head(&self.queue)?.seq.next();
        let decision = match decide(ask.rule, &ask.key, &present, wish, next) {
            Ok(decision) => decision,
            Err(refused) => return Ok(Err(refused)),
        };
        let seq = decision.puts.last().map(|put| put.head.seq);
        for put in decision.puts {
            let is_as_made = decision.outcome == Outcome::Applied && put.key == ask.key;
            self.put(&ask.collection, put, is_as_made)?;
        }
        if let (Some(head), Some(item)) = (decision.head, item) {
            self.txn.put(Space::Items, stored_key, encode(&Item { head, ..item }));
        }
        Ok(Ok(Done { outcome: decision.outcome, seq }))
    }

    fn item(&self, stored_key: &[u8]) -> Result<Option<Item>, store::Error> {
        let stored = self.txn.get(Space::Items, stored_key)?;
        stored.map(|bytes| decode(&bytes)).transpose()
    }

    fn wish(&self, ask: &Ask) -> Result<Wish, store::Error> {
        let base = ask.base.map(|base| self.txn.seen_at(&self.queue, base)).transpose()?;
        let now_ms = self.txn.now_ms();
        let mut stamp = ask.stamp;
        if stamp.clock.unix_ms() > now_ms.saturating_add(AHEAD_MS_MAX) {
            stamp.clock = Hlc::at(now_ms);
        }
        Ok(Wish { stamp, base, value: ask.value.clone() })
    }

    /// The item with as much of it as its rule looks at.
    fn present(
        &self,
        ask: &Ask,
        wish: &Wish,
        stored_key: &[u8],
        item: Option<&Item>,
    ) -> Result<Present, Error> {
        let Some(item) = item else { return Ok(Present::default()) };
        let mut present =
            Present { head: Some(item.head.clone()), value: None, copies: Vec::new() };
        if ask.rule == Rule::KeepBoth {
            for sibling in &item.head.siblings {
                let copy = self.item(&item_key(&self.queue, &ask.collection, &sibling.key))?;
                present.copies.extend(copy.map(|copy| (sibling.key.clone(), copy.head)));
            }
        }
        if is_value_needed(ask.rule, item, wish) {
            let value = self.known.get(stored_key, item.position());
            present.value = Some(value.ok_or(Error::Moved)?);
        }
        Ok(present)
    }

    fn put(
        &mut self,
        collection: &CollectionName,
        put: Put,
        is_as_made: bool,
    ) -> Result<(), Error> {
        let Put { key, kind, value, head } = put;
        let stored_key = item_key(&self.queue, collection, &key);
        let before = self.item(&stored_key)?;
        let lived_before = before.as_ref().is_some_and(|before| {
            before.lived_before || (head.born == head.seq && before.head.born > Seq(0))
        });
        let mut change = Change {
            collection: collection.clone(),
            key,
            kind,
            value,
            stamp: head.stamp,
            is_as_made,
            born: head.born,
            lived_before,
            bytes_so_far: 0,
        };
        let bytes = change.bytes() as u64;
        self.totals.bytes_so_far += bytes;
        change.bytes_so_far = self.totals.bytes_so_far;
        let (key, value) = (change.key.clone(), change.value.clone());
        let expected = head.seq;
        let position = self.txn.append(self.queue, Body::Change(change))?;
        assert_eq!(position.seq, expected, "a change is where its rule said");
        let bytes = if head.is_deleted { 0 } else { bytes };
        let after = Item { epoch: position.epoch, head, bytes, lived_before };
        self.totals.replace(collection, &key, before.as_ref(), &after);
        self.has_changed = true;
        self.txn.put(Space::Items, stored_key.clone(), encode(&after));
        self.known.insert(stored_key, position, value);
        Ok(())
    }
}

/// Whether a rule looks at the value that is there.
fn is_value_needed(rule: Rule, item: &Item, wish: &Wish) -> bool {
    let is_looked_at = match rule {
        Rule::ServerWins | Rule::ClientWins | Rule::Newest => false,
        Rule::Merge => true,
        Rule::KeepBoth => !item.head.was_seen_by(wish),
    };
    is_looked_at && !item.head.is_deleted
}
