//! The app's handle of the collections of one alias, and edits.

use std::collections::BTreeMap;

use carillon_wire::names;

use super::edits::{self, over};
use super::repairs::Purpose;
use super::tables::{EditRow, Flag, ItemRow, ShelfRow, Tables};
use super::work::Work;
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
        self.collections.read(|tables| match tables.shelf(self.regid.as_str(), &self.alias)? {
            Some(shelf) => views(tables, &shelf, collection),
            None => Ok(Vec::new()),
        })
    }

    /// Changes an item, or makes it: here at once, and at the gateway as soon as it can be reached. The number says
    /// which [`Settled`](super::Happening::Settled) belongs to it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn put(&self, collection: &str, key: &str, value: Value) -> Result<u64, Error> {
        self.change(collection, key, Some(value), false)
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
        self.change(collection, key, Some(fields), true)
    }

    /// Deletes an item in the same way.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn delete(&self, collection: &str, key: &str) -> Result<u64, Error> {
        self.change(collection, key, None, false)
    }

    /// Makes these the items of a collection: those that are others, or are not there, are put, those that are not named
    /// are deleted, in one step. How many edits that took.
    ///
    /// The edits have seen what is here now: a device that was offline for long better calls this online. What others
    /// change meanwhile is settled by the collection's rule; where that is `merge`, fields that an item has and its new
    /// value does not name stay.
    ///
    /// # Errors
    /// See [`Error`]; nothing is changed then.
    pub fn replace(
        &self,
        collection: &str,
        items: &BTreeMap<String, Value>,
    ) -> Result<usize, Error> {
        check_names(collection, items.keys())?;
        items.values().try_for_each(check_size)?;
        self.transact(|work, shelf| {
            let here = views(work.tables, shelf, collection)?;
            let here: BTreeMap<String, Value> =
                here.into_iter().map(|item| (item.key, item.value)).collect();
            let gone = here.keys().filter(|key| !items.contains_key(*key)).map(|key| (key, None));
            let put = items.iter().filter(|(key, value)| here.get(*key) != Some(*value));
            let put = put.map(|(key, value)| (key, Some(value.clone())));
            let mut count = 0;
            for (key, value) in gone.chain(put) {
                self.edit(work, shelf, (collection, key), value, false)?;
                count += 1;
            }
            Ok(count)
        })
    }

    /// Compares a collection with the gateway's as soon as the device is online and stands where deltas go on, and takes
    /// over what differs: for a device that does not trust its copy. The gateway does the same unasked where a digest
    /// differs. [`Happening::Compared`](super::Happening::Compared) tells the end; a restart forgets that it was asked.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn compare(&self, collection: &str) -> Result<(), Error> {
        self.ask(collection, Purpose::Compare)
    }

    /// The same, and all items come again, also those whose numbers are the same: against damaged values. What is here
    /// stays readable meanwhile, and edits stay.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn fetch(&self, collection: &str) -> Result<(), Error> {
        self.ask(collection, Purpose::Fetch)
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

    fn change(
        &self,
        collection: &str,
        key: &str,
        value: Option<Value>,
        is_patch: bool,
    ) -> Result<u64, Error> {
        check_names(collection, [key])?;
        value.iter().try_for_each(check_size)?;
        self.transact(|work, shelf| self.edit(work, shelf, (collection, key), value, is_patch))
    }

    /// Puts an edit in the queue, and makes it visible.
    fn edit(
        &self,
        work: &mut Work<'_>,
        shelf: &mut ShelfRow,
        (collection, key): (&str, &str),
        value: Option<Value>,
        is_patch: bool,
    ) -> Result<u64, Error> {
        let tables = work.tables;
        let clock = next_clock(tables.clock()?, (self.collections.inner.now_ms)());
        tables.saw_clock(clock)?;
        let before = work.visible(shelf, (collection, key))?;
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
        let number = tables.push_edit(shelf, &edit)?;
        work.tell(shelf, (collection, key), before, Who::Here)?;
        Ok(number.cast_unsigned())
    }

    fn ask(&self, collection: &str, purpose: Purpose) -> Result<(), Error> {
        check("collection", collection, names::COLLECTION)?;
        self.transact(|work, shelf| {
            work.repairs.need(shelf.id, collection, purpose);
            Ok(())
        })
    }

    /// In one transaction; there may be something to ask the gateway afterwards.
    fn transact<T>(
        &self,
        change: impl FnOnce(&mut Work<'_>, &mut ShelfRow) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let done = self.collections.transact(|work| {
            let mut shelf = work.tables.open_shelf(self.regid.as_str(), &self.alias)?;
            change(work, &mut shelf)
        })?;
        self.collections.inner.errands.notify_one();
        Ok(done)
    }
}

/// All items of a collection, in the order of their keys.
fn views(tables: Tables<'_>, shelf: &ShelfRow, collection: &str) -> Result<Vec<ItemView>, Error> {
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

fn check_names<K: AsRef<str>>(
    collection: &str,
    keys: impl IntoIterator<Item = K>,
) -> Result<(), Error> {
    check("collection", collection, names::COLLECTION)?;
    keys.into_iter().try_for_each(|key| check("key", key.as_ref(), names::KEY))
}

fn check_size(value: &Value) -> Result<(), Error> {
    match value.bytes.len() {
        ..=VALUE_BYTES_MAX => Ok(()),
        bytes => Err(Error::TooLarge(bytes)),
    }
}

fn check(what: &'static str, name: &str, rule: names::Rule) -> Result<(), Error> {
    if rule.allows(name) { Ok(()) } else { Err(Error::Name { what, rule: rule.says }) }
}
