//! Items from a seed: those of the byte table in docs/SYNC.md, as an app would keep them.
#![allow(dead_code, reason = "others use more of it")]

#[path = "../../../wire/examples/corpus/dice.rs"]
mod dice;
#[path = "../../../wire/examples/corpus/document.rs"]
mod document;
#[path = "../../../wire/examples/corpus/missed.rs"]
mod missed;
#[path = "../../../wire/examples/corpus/prose.rs"]
mod prose;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What every collection of the corpus is.
pub const COLLECTIONS: [&str; 2] = ["notes", "contacts"];

/// An item as the app made it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Item {
    pub collection: String,
    pub key: String,
    pub value: Value,
}

/// Items by number, with other values in each edition.
pub struct Corpus(missed::Items);

impl Corpus {
    pub fn new() -> Self {
        Self(missed::Items::new())
    }

    pub fn item(&self, number: usize, edition: usize) -> Item {
        let (collection, key, document) = self.0.item(number as u64, edition as u64);
        let value = document.json(document::Names::Long);
        Item { collection: collection.to_owned(), key, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_keeps_its_name_and_gets_another_value() {
        let corpus = Corpus::new();
        let (first, same) = (corpus.item(7, 0), corpus.item(7, 0));
        assert_eq!(first.value, same.value);
        let (second, other) = (corpus.item(7, 1), corpus.item(8, 0));
        assert_eq!((&first.collection, &first.key), (&second.collection, &second.key));
        assert_ne!(first.value, second.value);
        assert_ne!(first.key, other.key);
        for number in 0..100 {
            let item = corpus.item(number, 0);
            assert!(COLLECTIONS.contains(&item.collection.as_str()), "{item:?}");
        }
    }
}
