//! Reading queues: the newest entries from memory, the rest from the store.

use std::sync::Arc;

use super::store::Store;

/// Reads what is durable. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    store: Arc<dyn Store>,
}

impl Reader {
    /// The store behind it, for records that are not queues.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}
