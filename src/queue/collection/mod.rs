//! Collections: items that app servers and devices change, kept in an alias's queue.
//!
//! Pure code: what a change is ([`change`]), what is known of an item without its value
//! ([`head`]), which of two changes wins ([`rule`]), and what is stored beside the entries
//! ([`item`]). [`append`] writes changes in a transaction of the queue's owner.

pub mod append;
pub mod change;
pub mod head;
pub mod item;
pub mod rule;
