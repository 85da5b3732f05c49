//! The heart: ordered, contiguous, durable queues and the pointers into them.
//!
//! Pure code ([`position`], [`entry`], [`log`], [`plan`], [`mod@pointer`], [`collection`]); the task
//! that owns queues ([`shard`], with [`txn`]); the one [`writer`] of the
//! [`store`]; and the [`reader`] of what is durable ([`view`]). It knows no
//! device, no MQTT and no HTTP.

pub mod position;

pub mod collection;
pub mod condition;
pub mod entry;
pub mod filter;
pub mod log;
pub mod plan;
pub mod pointer;

pub mod shard;
pub mod txn;

pub mod reader;
pub mod view;

pub mod epochs;
pub mod retention;
pub mod store;
pub mod unfolded;
pub mod writer;
