//! For simulations: everything on the caller's thread, a given clock, and a look at what is held.

use std::path::Path;
use std::sync::Arc;

use super::{Collections, Error, Inner};
use crate::items::{Item, Side, Steps, Value, What};
use crate::names::RegId;

/// An item as a device holds it, below its edits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// In its collection.
    pub key: String,
    /// The change that made it so.
    pub seq: u64,
    /// What it is.
    pub value: Value,
}

impl Collections {
    /// In memory: what has the same name is the same, as a file would be, while somebody has it open.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn simulated(
        name: &str,
        now_ms: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let path = format!("file:{name}?mode=memory&cache=shared");
        let mut inner = Inner::open(Path::new(&path), now_ms, "OFF")?;
        inner.is_simulated = true;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What is held of a collection, in the order of its keys.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn held(&self, regid: &RegId, alias: &str, collection: &str) -> Result<Vec<Held>, Error> {
        self.read(|tables| {
            let Some(shelf) = tables.shelf(regid.as_str(), alias)? else { return Ok(Vec::new()) };
            let rows = tables.items(shelf.copy(Side::Items), collection)?.into_iter();
            Ok(rows.map(|row| Held { key: row.key, seq: row.seq, value: row.value }).collect())
        })
    }

    /// Makes an item one that no change made, or none, behind everybody's back. False if nothing is held of the alias yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn damage(
        &self,
        (regid, alias): (&RegId, &str),
        (collection, key): (&str, &str),
        value: Option<Value>,
    ) -> Result<bool, Error> {
        self.transact(|work| {
            let Some(shelf) = work.tables.shelf(regid.as_str(), alias)? else { return Ok(false) };
            let (copy, seq) = (shelf.copy(Side::Items), 0);
            if shelf.at.is_none() {
                return Ok(false);
            }
            match value {
                Some(value) => {
                    let (collection, key) = (collection.to_owned(), key.to_owned());
                    work.tables.put(copy, &Item { collection, key, seq, value, clock: 0 })?;
                }
                None => work.tables.delete(copy, collection, key, 0)?,
            }
            Ok(true)
        })
    }
}

impl Steps {
    /// The same without items, as a device keeps it that moves its positions first.
    #[must_use]
    pub fn without_items(&self) -> Self {
        let steps = self.0.iter().filter(|step| !matches!(step.what, What::Changed { .. }));
        Self(steps.cloned().collect())
    }
}
