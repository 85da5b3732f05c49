//! Collections: items that app servers and devices change, kept in an alias's queue.
//!
//! Pure code: what a change is ([`change`]), what is known of an item without its value
//! ([`head`]), and which of two changes wins ([`rule`]). It reads and writes nothing.

pub mod change;
pub mod head;
pub mod rule;
