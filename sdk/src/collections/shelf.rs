//! The app's handle of the collections of one alias, and edits.

use std::collections::BTreeMap;

use carillon_wire::names;

use super::edits::{self, over};
use super::tables::{EditRow, Flag, ItemRow, Tables};
use super::{Collections, Error, VALUE_BYTES_MAX, Who};
use crate::items::{Side, Value};
use crate::names::RegId;

/// The collections of one alias, as one registration has them.
#[derive(Clone, Debug)]
pub struct Shelf {
    collections: Collections,
    regid: RegId,
    alias: String,
}

/// An item as the app sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemView {
    /// Its key.
    pub key: String,
    /// Its value, with what was changed here.
    pub value: Value,
    /// It was changed here, and the gateway's answer has not come.
    pub is_pending: bool,
    /// The app's handler failed on it, also after it had been fetched anew.
    pub is_skipped: bool,
}

/// What an item is to become.
enum Wish {
    Whole(Value),
    Fields(Value),
    Deleted,
}

impl Shelf {
    pub(super) fn new(collections: Collections, regid: RegId, alias: &str) -> Self {
        Self { collections, regid, alias: alias.to_owned() }
    }

    /// The registration.
    pub fn regid(&self) -> &RegId {
        &self.regid
    }

    /// The alias.
    pub fn alias(&self) -> &str {
        &self.alias
    }

    /// One item, if it is there.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn get(&self, collection: &str, key: &str) -> Result<Option<ItemView>, Error> {
        self.collections.read(|tables| {
            let Some(shelf) = tables.shelf(self.regid.as_str(), &self.alias)? else {
                return Ok(None);
            };
            let item = tables.item(shelf.copy(Side::Items), collection, key)?;
            Ok(view(key, item, &tables.edits_of(shelf.id, collection, key)?))
        })
    }

    /// All items of a collection, in the order of their keys.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn items(&self, collection: &str) -> Result<Vec<ItemView>, Error> {
        self.collections.read(|tables| {
            let Some(shelf) = tables.shelf(self.regid.as_str(), &self.alias)? else {
                return Ok(Vec::new());
            };
            let mut both: BTreeMap<String, (Option<ItemRow>, Vec<EditRow>)> = BTreeMap::new();
            for item in tables.items(shelf.copy(Side::Items), collection)? {
                let key = item.key.clone();
                both.entry(key).or_default().0 = Some(item);
            }
            for edit in tables.edits_in(shelf.id, collection)? {
                let key = edit.key.clone();
                both.entry(key).or_default().1.push(edit);
            }
            let views = both.into_iter().map(|(key, (item, edits))| view(&key, item, &edits));
            Ok(views.flatten().collect())
        })
    }

    /// Changes an item, or makes it: here at once, and at the gateway as soon as it can be reached. The number says
    /// which [`Settled`](super::Happening::Settled) belongs to it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn put(&self, collection: &str, key: &str, value: Value) -> Result<u64, Error> {
        self.edit(collection, key, Wish::Whole(value))
    }

    /// Changes those top-level fields of an item that are in this JSON object, and removes those that are `null` there:
    /// for collections whose rule is `merge`. What others make of its other fields stands beside it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn patch(&self, collection: &str, key: &str, fields: Value) -> Result<u64, Error> {
        if edits::fields(&fields).is_none() {
            return Err(Error::NotAnObject);
        }
        self.edit(collection, key, Wish::Fields(fields))
    }

    /// Deletes an item in the same way.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn delete(&self, collection: &str, key: &str) -> Result<u64, Error> {
        self.edit(collection, key, Wish::Deleted)
    }

    /// How many edits wait for the gateway's answer, or for the item that they led to.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn pending(&self) -> Result<u64, Error> {
        self.collections.read(|tables| match tables.shelf(self.regid.as_str(), &self.alias)? {
            Some(shelf) => Ok(tables.edits(shelf.id)?),
            None => Ok(0),
        })
    }

    /// Waits until the gateway has decided about all edits, also those that are made meanwhile. Offline that takes until
    /// the device is online.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn uploaded(&self) -> Result<(), Error> {
        let mut happenings = self.collections.changes();
        let is_waiting = |tables: Tables<'_>| {
            let shelf = tables.shelf(self.regid.as_str(), &self.alias)?;
            let waiting = shelf.map(|shelf| tables.unanswered(shelf.id, 1)).transpose()?;
            Ok(waiting.is_some_and(|edits| !edits.is_empty()))
        };
        while self.collections.read(is_waiting)? {
            // Each edit that is decided about is told. Who heard too late looks again.
            let _ = happenings.recv().await;
        }
        Ok(())
    }

    fn edit(&self, collection: &str, key: &str, wish: Wish) -> Result<u64, Error> {
        let is_patch = matches!(wish, Wish::Fields(_));
        let value = match wish {
            Wish::Whole(value) | Wish::Fields(value) => Some(value),
            Wish::Deleted => None,
        };
        check("collection", collection, names::COLLECTION)?;
        check("key", key, names::KEY)?;
        let bytes = value.as_ref().map_or(0, |value| value.bytes.len());
        if bytes > VALUE_BYTES_MAX {
            return Err(Error::TooLarge(bytes));
        }
        let now_ms = (self.collections.inner.now_ms)();
        let number = self.collections.transact(|work| {
            let tables = work.tables;
            let mut shelf = tables.open_shelf(self.regid.as_str(), &self.alias)?;
            let clock = next_clock(tables.clock()?, now_ms);
            tables.saw_clock(clock)?;
            let before = work.visible(&shelf, (collection, key))?;
            let (epoch, base_seq) = shelf.at.unwrap_or_default();
            let edit = EditRow {
                number: 0,
                collection: collection.to_owned(),
                key: key.to_owned(),
                value,
                is_patch,
                epoch,
                base_seq,
                clock,
                answered: None,
                is_landed: false,
            };
            let number = tables.push_edit(&mut shelf, &edit)?;
            work.tell(&shelf, (collection, key), before, Who::Here)?;
            Ok(number.cast_unsigned())
        })?;
        self.collections.inner.errands.notify_one();
        Ok(number)
    }
}

fn view(key: &str, item: Option<ItemRow>, edits: &[EditRow]) -> Option<ItemView> {
    let is_pending = !edits.is_empty();
    let is_skipped = !is_pending && item.as_ref().is_some_and(|item| item.flag == Flag::Skipped);
    let value = over(item.map(|item| item.value), edits)?;
    Some(ItemView { key: key.to_owned(), value, is_pending, is_skipped })
}

/// A hybrid clock after all that was seen, and not behind the time: 48 bits of milliseconds, 16 that count.
fn next_clock(last: u64, now_ms: u64) -> u64 {
    (now_ms << 16).max(last.saturating_add(1))
}

fn check(what: &'static str, name: &str, rule: names::Rule) -> Result<(), Error> {
    if rule.allows(name) { Ok(()) } else { Err(Error::Name { what, rule: rule.says }) }
}
