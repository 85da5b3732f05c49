//! The app's handle of the collections of one alias, and edits.

use std::collections::BTreeMap;

use super::tables::{EditRow, Flag, ItemRow};
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
            Ok(view(item, tables.edit_of(shelf.id, collection, key)?))
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
            let mut both: BTreeMap<String, (Option<ItemRow>, Option<EditRow>)> = BTreeMap::new();
            for item in tables.items(shelf.copy(Side::Items), collection)? {
                let key = item.key.clone();
                both.entry(key).or_default().0 = Some(item);
            }
            for edit in tables.edits_in(shelf.id, collection)? {
                let key = edit.key.clone();
                both.entry(key).or_default().1 = Some(edit);
            }
            Ok(both.into_values().filter_map(|(item, edit)| view(item, edit)).collect())
        })
    }

    /// Changes an item, or makes it: here at once, and at the gateway as soon as it can be reached. The number says
    /// which [`Settled`](super::Happening::Settled) belongs to it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn put(&self, collection: &str, key: &str, value: Value) -> Result<u64, Error> {
        if value.bytes.len() > VALUE_BYTES_MAX {
            return Err(Error::TooLarge(value.bytes.len()));
        }
        self.edit(collection, key, Some(value))
    }

    /// Deletes an item in the same way.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn delete(&self, collection: &str, key: &str) -> Result<u64, Error> {
        self.edit(collection, key, None)
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

    fn edit(&self, collection: &str, key: &str, value: Option<Value>) -> Result<u64, Error> {
        name("collection", collection, COLLECTION_BYTES_MAX)?;
        name("key", key, KEY_BYTES_MAX)?;
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

/// The newest edit hides the item.
fn view(item: Option<ItemRow>, edit: Option<EditRow>) -> Option<ItemView> {
    match edit {
        Some(EditRow { key, value, .. }) => {
            Some(ItemView { key, value: value?, is_pending: true, is_skipped: false })
        }
        None => item.map(|ItemRow { key, value, flag, .. }| ItemView {
            key,
            value,
            is_pending: false,
            is_skipped: flag == Flag::Skipped,
        }),
    }
}

/// A hybrid clock after all that was seen, and not behind the time: 48 bits of milliseconds, 16 that count.
fn next_clock(last: u64, now_ms: u64) -> u64 {
    (now_ms << 16).max(last.saturating_add(1))
}

fn name(what: &'static str, name: &str, bytes_max: usize) -> Result<(), Error> {
    let is_good = (1..=bytes_max).contains(&name.len()) && !name.chars().any(char::is_control);
    if is_good { Ok(()) } else { Err(Error::Name(what, bytes_max)) }
}

/// The longest name of a collection.
const COLLECTION_BYTES_MAX: usize = 64;
/// The longest key.
const KEY_BYTES_MAX: usize = 256;
