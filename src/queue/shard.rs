//! The task that owns many queues.

use super::store;

/// What the owner of a shard can answer instead of a result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The owner is gone: the node stops.
    #[error("the node is stopping")]
    Stopped,
}

/// How others reach the task. Cheap to clone.
#[derive(Clone)]
pub struct Handle {}
