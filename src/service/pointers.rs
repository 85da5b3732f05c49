//! Pointers that are newer than the disk.

use dashmap::DashMap;

use super::records::Positions;
use crate::base::ids::RegId;

/// Changed positions, written lazily: all of a registration as one record.
#[derive(Default)]
pub struct Pointers {
    pub(super) changed: DashMap<RegId, Positions>,
}
