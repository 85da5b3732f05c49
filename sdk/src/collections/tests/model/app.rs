//! What the app does and hears, and what damage does to its device.

use std::collections::BTreeMap;

use super::World;
use crate::collections::Happening;

impl World {
    /// The device's copy becomes another one than the gateway's.
    pub(super) fn spoil(&mut self) {
        if self.desk.position().is_none() {
            return;
        }
        let key = self.any_key();
        let value = (self.below(2) == 0).then_some("spoilt");
        self.desk.spoil(&key, value);
        // Nobody tells the app of damage; it reads again.
        self.hear();
        self.heard = self.visible();
    }

    /// The app wants to be sure.
    pub(super) fn distrust(&mut self) {
        let shelf = self.desk.shelf();
        let asked = match self.below(2) {
            0 => shelf.compare("notes"),
            _ => shelf.fetch("notes"),
        };
        asked.unwrap();
    }

    pub(super) fn visible(&self) -> BTreeMap<String, String> {
        let items = self.desk.shelf().items("notes").unwrap().into_iter();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        items.map(|item| (item.key, text(&item.value.bytes))).collect()
    }

    /// The app keeps what it hears.
    pub(super) fn hear(&mut self) {
        let text = |value: crate::items::Value| String::from_utf8(value.bytes.to_vec()).unwrap();
        while let Ok(happening) = self.changes.try_recv() {
            match happening {
                Happening::Changed(change) => {
                    let old = self.heard.get(&change.key).cloned();
                    assert_eq!(old, change.old.map(text), "of {}", change.key);
                    match change.new {
                        Some(new) => drop(self.heard.insert(change.key, text(new))),
                        None => drop(self.heard.remove(&change.key)),
                    }
                }
                Happening::Settled { number, outcome, .. } => {
                    self.settled.insert(number, outcome);
                }
                Happening::Skipped { .. }
                | Happening::Refused { .. }
                | Happening::Compared { .. } => {}
                Happening::Replaced { .. } | Happening::Forgotten { .. } => panic!("{happening:?}"),
            }
        }
    }
}
