//! Which shard owns a queue, and who on this node follows it.
//!
//! Upper floors reach queues only through [`Router`]; that a queue could live
//! on another node stays hidden here.

pub mod followers;
mod lanes;
pub mod router;

pub use followers::{Followers, Nudge, OneOf, Reasons, shrink};
pub use router::Router;
