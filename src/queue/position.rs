//! Places in a queue, and the tags that prove that a place was ours.

use std::{fmt, hash::Hasher};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use crate::base::{ids::QueueId, keys::NodeKeys};

/// Which life of a shard's queues a number belongs to. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub u32);

/// An entry's number: 1, 2, 3… in each queue, without a hole; 0 is "before all".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Seq(pub u64);

impl Seq {
    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number before this one; before 0 there is only 0.
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// A place in a queue: everything up to and including `seq` is behind it.
/// `seq` compares only inside one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The epoch in which the entry at `seq` was appended.
    pub epoch: Epoch,
    /// The newest entry behind this place.
    pub seq: Seq,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch.0, self.seq.0)
    }
}

/// Eight keyed bytes over (queue, epoch, to), equal for all followers: what
/// makes a position a proof. SipHash-2-4 (Aumasson and Bernstein, 2012).
pub type Tag = [u8; 8];

/// The tag of a position of a queue.
pub fn tag(keys: &NodeKeys, queue: &QueueId, position: Position) -> Tag {
    let mut hasher = SipHasher24::new_with_key(keys.tag_key());
    hasher.write(queue.as_bytes());
    hasher.write(&position.epoch.0.to_le_bytes());
    hasher.write(&position.seq.0.to_le_bytes());
    hasher.finish().to_le_bytes()
}
