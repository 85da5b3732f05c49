//! What is known of an item without its value: what conflict rules decide on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::change::{Stamp, Wish};
use crate::queue::position::Seq;

/// The newest state of an item. It stays when the item is deleted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ItemHead {
    /// The change that made it so.
    pub seq: Seq,
    /// When and by whom that was made.
    pub stamp: Stamp,
    /// The change that created the item in its present life, or in its last one.
    pub born: Seq,
    /// Whether that change deleted it.
    pub is_deleted: bool,
    /// The newest change of an app server that won.
    pub last_server: Seq,
    /// The newest change of a device that won.
    pub last_device: Seq,
    /// When and by whom the greatest change of devices was made.
    pub device: Option<Stamp>,
    /// With merged fields: who set each.
    pub registers: Option<Box<Registers>>,
    /// With both kept: copies that were made of changes that lost.
    pub siblings: Vec<Sibling>,
}

/// Who set each top-level field of a merged document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Registers {
    /// The newest delete of the whole item; fields that are not newer are no more.
    pub deleted: Option<Stamp>,
    /// The newest change that was no delete.
    pub changed: Stamp,
    /// By field. A field that was removed has its stamp here and no value in the document.
    pub fields: BTreeMap<Box<str>, Stamp>,
}

/// A copy of a change that lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sibling {
    /// The copy's key.
    pub key: Box<str>,
    /// When and by whom the change was made.
    pub stamp: Stamp,
    /// Where it stood under the item's own key; `None` if it never did.
    pub original: Option<Seq>,
    /// The entry that made the copy.
    pub copied: Seq,
}

impl ItemHead {
    /// Whether the maker of a change knew this state.
    pub fn was_seen_by(&self, wish: &Wish) -> bool {
        wish.base.is_none_or(|base| base >= self.seq)
            || wish.stamp.origin.follows(self.stamp.origin)
    }
}

impl Sibling {
    /// Whether the maker of a change knew what it is a copy of, but not the copy: then the
    /// change stands for both.
    pub fn is_replaced_by(&self, wish: &Wish) -> bool {
        let Some(base) = wish.base else { return false };
        let knew = self.original.is_some_and(|seq| base >= seq)
            || wish.stamp.origin.follows(self.stamp.origin);
        knew && base < self.copied
    }
}
