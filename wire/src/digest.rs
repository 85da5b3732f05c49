//! The digest of positions: one number that says where a device stands in all queues of all its registrations.
//!
//! Both ends keep it up to date in O(1) per moved position, and a resume compares the two. It is no proof of anything:
//! a device that lies about it only misleads itself. The algorithm and its test vectors are in docs/PROTOCOL.md.

use crate::idl;

/// The wrapping sum of [`position_hash`] over all positions, or of [`item_hash`] over all items of a collection. The
/// digest of nothing is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(u64);

impl Digest {
    /// The digest of no positions.
    pub const fn new() -> Self {
        Self(0)
    }

    /// Counts one more position in.
    pub fn add(&mut self, position: u64) {
        self.0 = self.0.wrapping_add(position);
    }

    /// Takes a position out that was counted in before.
    pub fn remove(&mut self, position: u64) {
        self.0 = self.0.wrapping_sub(position);
    }

    /// A pointer moved: takes the old position out and counts the new one in.
    pub fn replace(&mut self, old: u64, new: u64) {
        self.remove(old);
        self.add(new);
    }

    /// The digest as a number.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The digest as `Resume.digest` carries it: the same 64 bits, read as a signed number.
    pub const fn to_idl(self) -> i64 {
        self.0.cast_signed()
    }

    /// Reads `Resume.digest`.
    pub const fn from_idl(digest: i64) -> Self {
        Self(digest.cast_unsigned())
    }
}

impl From<u64> for Digest {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl FromIterator<u64> for Digest {
    fn from_iter<I: IntoIterator<Item = u64>>(positions: I) -> Self {
        let mut digest = Self::new();
        positions.into_iter().for_each(|position| digest.add(position));
        digest
    }
}

/// The hash of one position: FNV-1a 64 over regid, 0x00, kind, name, 0x00, epoch (LE), seq (LE), then murmur3's fmix64.
///
/// `kind` is 1 own, 2 alias, 3 topic, 4 all; `name` is empty for 1 and 4.
pub fn position_hash(regid: &str, kind: u8, name: &str, epoch: u32, seq: u64) -> u64 {
    let mut hash = FNV_OFFSET;
    hash = fnv1a(hash, regid.as_bytes());
    hash = fnv1a(hash, &[0, kind]);
    hash = fnv1a(hash, name.as_bytes());
    hash = fnv1a(hash, &[0]);
    hash = fnv1a(hash, &epoch.to_le_bytes());
    hash = fnv1a(hash, &seq.to_le_bytes());
    fmix64(hash)
}

/// The hash of one item of a collection, for the digest of what a replica holds of it: as [`position_hash`], over
/// collection, 0x00, key, 0x00, seq (LE). `seq` is that of the change that made the item what it is.
pub fn item_hash(collection: &str, key: &str, seq: u64) -> u64 {
    let mut hash = FNV_OFFSET;
    hash = fnv1a(hash, collection.as_bytes());
    hash = fnv1a(hash, &[0]);
    hash = fnv1a(hash, key.as_bytes());
    hash = fnv1a(hash, &[0]);
    hash = fnv1a(hash, &seq.to_le_bytes());
    fmix64(hash)
}

/// The `kind` of [`position_hash`] for a queue kind of the IDL; `None` for a kind that does not exist.
pub fn kind_byte(kind: idl::QueueKind) -> Option<u8> {
    match kind {
        idl::QueueKind::OWN => Some(1),
        idl::QueueKind::ALIAS => Some(2),
        idl::QueueKind::TOPIC => Some(3),
        idl::QueueKind::ALL => Some(4),
        _ => None,
    }
}

fn fnv1a(mut hash: u64, bytes: &[u8]) -> u64 {
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
    }
    hash
}

fn fmix64(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
