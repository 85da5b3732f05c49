//! The one way to queues and stored records: which owner, on which node.

use std::sync::Arc;

use bytes::Bytes;

use super::Followers;
use crate::queue::{
    reader::Reader,
    shard,
    store::{self, Range, Record, Space},
};

/// What upper floors hold. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    pub(crate) owners: Arc<[shard::Handle]>,
    pub(crate) reader: Reader,
    pub(crate) followers: Arc<Followers>,
}

impl Router {
    /// A stored record.
    ///
    /// # Errors
    /// [`store::Error`].
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, store::Error> {
        self.reader.store().get(space, key)
    }

    /// Stored records of a range.
    ///
    /// # Errors
    /// [`store::Error`].
    pub fn scan(&self, space: Space, range: &Range, limit: usize) -> Result<Vec<Record>, store::Error> {
        self.reader.store().scan(space, range, limit)
    }
}
