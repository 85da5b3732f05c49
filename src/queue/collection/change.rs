//! One change of one item, and when and by whom it was made.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    base::ids::RegId,
    queue::{entry::bytes_field, position::Seq},
};

/// The largest value of an item, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// The longest key of an item, in bytes.
pub const KEY_BYTES_MAX: usize = 256;

/// A hybrid clock: 48 bits of milliseconds since 1970, then 16 bits that count within one.
///
/// Whoever makes a change takes a time after all that it has seen, so that the order of the
/// clocks never contradicts who knew of what.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The first time of a millisecond.
    pub const fn at(unix_ms: u64) -> Self {
        Self(unix_ms << 16)
    }

    /// The millisecond that it names.
    pub const fn unix_ms(self) -> u64 {
        self.0 >> 16
    }

    /// The next time of a clock that stands here when it is `unix_ms`: later than both.
    pub fn next(self, unix_ms: u64) -> Self {
        Self::at(unix_ms).max(Self(self.0.saturating_add(1)))
    }
}

/// Who made a change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum Origin {
    /// The app's servers, which count as one.
    #[default]
    Server,
    /// A device.
    Device {
        /// By which registration.
        regid: RegId,
        /// The number that the registration gave it: 1, 2, 3…
        cseq: u64,
    },
}

impl Origin {
    /// Whether one party made both, this one later: then it knew of the other.
    pub fn follows(self, other: Self) -> bool {
        match (self, other) {
            (Self::Server, Self::Server) => true,
            (Self::Device { regid, cseq }, Self::Device { regid: other, cseq: earlier }) => {
                regid == other && cseq > earlier
            }
            (Self::Server, Self::Device { .. }) | (Self::Device { .. }, Self::Server) => false,
        }
    }
}

/// When and by whom: no two changes have the same, and all nodes order them alike.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Stamp {
    /// When.
    pub clock: Hlc,
    /// By whom.
    pub origin: Origin,
}

/// What a change does to its item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The item was not there.
    New,
    /// The item gets another value.
    Update,
    /// The item is no more.
    Delete,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A JSON document.
    #[default]
    Json,
    /// A Thrift struct of the app's own.
    Thrift,
}

/// What an item is: a document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// How it is written.
    pub format: Format,
    /// The document.
    #[serde(with = "bytes_field")]
    pub bytes: Bytes,
}

impl Value {
    /// A JSON document.
    pub fn json(text: impl Into<Bytes>) -> Self {
        Self { format: Format::Json, bytes: text.into() }
    }
}

/// What somebody wants to do to an item.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// When and by whom.
    pub stamp: Stamp,
    /// Up to where its maker had seen the queue; `None`: it means whatever is there.
    pub base: Option<Seq>,
    /// The new value; `None` deletes.
    pub value: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_later_than_what_it_saw_and_not_behind_the_time() {
        assert_eq!(Hlc::at(5).next(9), Hlc::at(9));
        assert_eq!(Hlc::at(9).next(5), Hlc(Hlc::at(9).0 + 1), "a clock that was set back");
        assert_eq!(Hlc::at(9).next(5).unix_ms(), 9);
        assert_eq!(Hlc(u64::MAX).next(5), Hlc(u64::MAX), "no overflow");
    }
}
