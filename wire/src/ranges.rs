//! How two ends find what differs between their copies of a collection, for bytes in proportion to the difference.
//!
//! A range of keys is one count and one digest. The device states ranges; the gateway compares each with what it holds
//! there and answers by nothing, by the items, or by smaller ranges, of which the device states those that differ. Pure:
//! whoever calls brings the items, in the order of their keys.

use crate::digest::{Digest, item_hash};
use crate::frame::{Error, seq_from_idl, seq_to_idl};
use crate::idl;

/// Keys from `first` on and before `before`, in the order of their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first key that may be there.
    pub first: String,
    /// The first key behind; `None`: all up to the last.
    pub before: Option<String>,
}

/// What one end holds within bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// Where.
    pub bounds: Bounds,
    /// How many items are there.
    pub items: u64,
    /// The sum of their hashes.
    pub digest: Digest,
}

/// What the gateway answers to a stated range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: both hold the same.
    Equal,
    /// All items that it holds there.
    Items,
    /// The parts of [`KeyRange::split`].
    Parts,
}

impl Bounds {
    /// A whole collection.
    pub fn everything() -> Self {
        Self { first: String::new(), before: None }
    }

    /// One key and no other.
    pub fn one(key: &str) -> Self {
        Self { first: key.to_owned(), before: Some(format!("{key}\0")) }
    }

    /// Whether a key is inside.
    pub fn contains(&self, key: &str) -> bool {
        key >= self.first.as_str() && self.before.as_deref().is_none_or(|before| key < before)
    }
}

/// The ranges of one [`idl::Repair`].
///
/// # Errors
/// [`Error::Invalid`]: more than [`STATED_MAX`], not in order, overlapping, or one of [`KeyRange::from_idl`].
pub fn stated_from_idl(stated: Vec<idl::KeyRange>) -> Result<Vec<KeyRange>, Error> {
    if stated.len() > STATED_MAX {
        return Err(Error::Invalid("ranges: at most 16"));
    }
    let ranges = stated.into_iter().map(KeyRange::from_idl).collect::<Result<Vec<_>, _>>()?;
    let follows = |pair: &[KeyRange]| {
        pair[0].bounds.before.as_ref().is_some_and(|before| *before <= pair[1].bounds.first)
    };
    match ranges.windows(2).all(follows) {
        true => Ok(ranges),
        false => Err(Error::Invalid("ranges: in order, not overlapping")),
    }
}

impl KeyRange {
    /// What these items, all of them within the bounds, come to.
    pub fn of<K: AsRef<str>>(
        collection: &str,
        bounds: Bounds,
        items: impl IntoIterator<Item = (K, u64)>,
    ) -> Self {
        let mut range = Self { bounds, items: 0, digest: Digest::new() };
        for (key, seq) in items {
            range.add(collection, key.as_ref(), seq);
        }
        range
    }

    /// States what nobody holds: whatever is held there differs from it, also nothing.
    pub fn unlike_any(bounds: Bounds) -> Self {
        Self { bounds, items: 0, digest: Digest::from_idl(1) }
    }

    /// What the gateway, which holds this, answers to a device that states that.
    pub fn answer(&self, stated: &Self) -> Answer {
        let is_equal = (self.items, self.digest) == (stated.items, stated.digest);
        match self.items {
            _ if is_equal => Answer::Equal,
            ..=ITEMS_MAX => Answer::Items,
            // Nothing there can be left out.
            ..=ALL_ITEMS_MAX if stated.items == 0 => Answer::Items,
            _ => Answer::Parts,
        }
    }

    /// At most [`PARTS_MAX`] parts of about as many items each, in order and without gaps between them. `items` are those
    /// that this range was made of.
    pub fn split<K: AsRef<str>>(
        &self,
        collection: &str,
        items: impl IntoIterator<Item = (K, u64)>,
    ) -> Vec<Self> {
        let share = self.items.div_ceil(PARTS_MAX).max(1);
        let mut parts = Vec::new();
        let mut part = Self::of(collection, self.bounds.clone(), NOTHING);
        for (key, seq) in items {
            if part.items == share {
                let rest = Bounds { first: key.as_ref().to_owned(), ..part.bounds.clone() };
                part.bounds.before = Some(rest.first.clone());
                parts.push(part);
                part = Self::of(collection, rest, NOTHING);
            }
            part.add(collection, key.as_ref(), seq);
        }
        parts.push(part);
        parts
    }

    /// For the wire.
    ///
    /// # Panics
    /// More items than a queue can have entries.
    pub fn to_idl(&self) -> idl::KeyRange {
        idl::KeyRange {
            first: self.bounds.first.clone(),
            before: self.bounds.before.clone(),
            items: seq_to_idl(self.items),
            digest: self.digest.to_idl(),
        }
    }

    /// From the wire.
    ///
    /// # Errors
    /// [`Error::Invalid`]: bounds that end before they begin or are longer than a key can make them, or a negative count.
    pub fn from_idl(range: idl::KeyRange) -> Result<Self, Error> {
        let idl::KeyRange { first, before, items, digest } = range;
        let longest = before.as_ref().map_or(first.len(), |before| before.len().max(first.len()));
        if longest > BOUND_BYTES_MAX {
            return Err(Error::Invalid("ranges: bounds of at most 257 bytes"));
        }
        if before.as_ref().is_some_and(|before| *before <= first) {
            return Err(Error::Invalid("before"));
        }
        let items = seq_from_idl(items).map_err(|_| Error::Invalid("items"))?;
        Ok(Self { bounds: Bounds { first, before }, items, digest: Digest::from_idl(digest) })
    }

    /// At least as many bytes as this costs in a frame.
    pub fn bytes_upper_bound(&self) -> usize {
        let before = self.bounds.before.as_ref().map_or(0, |before| 6 + before.len());
        6 + self.bounds.first.len() + before + 2 * 11 + 1
    }

    fn add(&mut self, collection: &str, key: &str, seq: u64) {
        self.items += 1;
        self.digest.add(item_hash(collection, key, seq));
    }
}

/// A key of 256 bytes and what separates it from the next one.
const BOUND_BYTES_MAX: usize = 257;
/// Into how many parts a range is split.
pub const PARTS_MAX: u64 = 16;
/// So many ranges, in order and not overlapping, are stated at once.
pub const STATED_MAX: usize = 16;
/// Up to so many items are given rather than split further.
pub const ITEMS_MAX: u64 = 8;
/// The same for a range where the device has nothing.
pub const ALL_ITEMS_MAX: u64 = 256;
const NOTHING: [(&str, u64); 0] = [];
