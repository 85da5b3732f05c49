//! The heart: ordered, contiguous, durable queues and the pointers into them.
//!
//! Pure code (`position`, `entry`, `log`, `plan`, `pointer`) and one task type
//! (`shard`) that owns many queues. It knows no device, no MQTT and no HTTP.

pub mod entry;
pub mod log;
pub mod plan;
pub mod pointer;
pub mod position;
pub mod reader;
pub mod retention;
pub mod shard;
pub mod store;
pub mod writer;
