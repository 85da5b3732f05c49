//! Thrift frames: one struct `Up` or `Down` in the payload of one PUBLISH, compact protocol.
//!
//! The only place that builds Thrift protocols, so that no decoder runs without limits. It must never know what the
//! kinds mean.

mod deltas;
mod guard;
mod many;
mod packed;

use bytes::Bytes;
use thrift::protocol::{TCompactOutputProtocol, TSerializable};

use crate::idl;
use crate::limits::{FRAME_BYTES_MAX, FRAMES_MAX};

pub use deltas::{
    DeltaParts, delta_overhead_bytes, deltas_bytes_upper_bound, digest_bytes_upper_bound,
    encode_deltas, frame_overhead_bytes,
};
pub use many::{FRAMES_TYPE, put_frame, split_frames};
pub use packed::{DICTIONARY, dictionary, open_down, pack, unpack};

/// Why bytes are not a frame, or a value cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No bytes at all.
    #[error("empty frame")]
    Empty,
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("frame of {bytes} bytes exceeds the maximum of {FRAME_BYTES_MAX}")]
    TooLarge {
        /// The frame's length.
        bytes: usize,
    },
    /// Not compact Thrift, a required field is missing, or a limit inside the frame is exceeded.
    #[error("not a valid frame")]
    Malformed(#[source] thrift::Error),
    /// Bytes behind the struct's end.
    #[error("{bytes} bytes behind the frame")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A body of several frames ends inside one.
    #[error("the last frame is cut short")]
    Cut,
    /// More than [`FRAMES_MAX`] frames in one body.
    #[error("more than {FRAMES_MAX} frames")]
    TooMany,
    /// A number out of its range; the text names the field.
    #[error("{0} is out of range")]
    Invalid(&'static str),
    /// A packed frame that needs another dictionary than we have.
    #[error("dictionary {number} is not known")]
    UnknownDictionary {
        /// Which.
        number: i32,
    },
    /// A packed frame that is damaged, or longer than it claims.
    #[error("a packed frame cannot be unpacked")]
    Unpacking(#[source] std::io::Error),
}

/// An `Up` of no kind, to be filled. The generated default says `request` 0 instead.
pub fn empty_up() -> idl::Up {
    idl::Up { request: None, ..idl::Up::default() }
}

/// The answer to a request with this code and nothing else, to be filled: what is generated has no default.
pub fn bare_result(request: i64, code: idl::ResultCode) -> idl::Result {
    idl::Result {
        request,
        code,
        message: None,
        regid: None,
        seal: None,
        edits: None,
        ranges: None,
        next_cseq: None,
    }
}

/// Decodes what a device published to `up`.
///
/// # Errors
/// Everything that is not exactly one valid `Up` within the limits. Never panics, and allocates in proportion to
/// `bytes`, whatever sizes they claim.
pub fn decode_up(bytes: &[u8]) -> Result<idl::Up, Error> {
    decode(bytes)
}

/// Decodes what the gateway published on `down`.
///
/// # Errors
/// As [`decode_up`].
pub fn decode_down(bytes: &[u8]) -> Result<idl::Down, Error> {
    decode(bytes)
}

/// Appends a frame to `out`.
///
/// # Errors
/// [`Error::TooLarge`]; `out` is then as before.
pub fn encode_up(up: &idl::Up, out: &mut Vec<u8>) -> Result<(), Error> {
    encode(up, out)
}

/// Appends a frame to `out`.
///
/// # Errors
/// [`Error::TooLarge`]; `out` is then as before.
pub fn encode_down(down: &idl::Down, out: &mut Vec<u8>) -> Result<(), Error> {
    encode(down, out)
}

/// An entry encoded once as a compact Thrift struct, spliced into the deltas of every follower.
///
/// Whether it fits a frame is the caller's bound: a payload is at most
/// [`STRING_BYTES_MAX`](crate::limits::STRING_BYTES_MAX).
pub fn encode_entry(entry: &idl::Entry) -> Bytes {
    let mut out = Vec::with_capacity(entry.payload.as_ref().map_or(0, Vec::len) + 64);
    let written = entry.write_to_out_protocol(&mut TCompactOutputProtocol::new(&mut out));
    assert!(written.is_ok(), "writing a struct of four levels to memory cannot fail");
    out.into()
}

/// What of a message is sealed, as bytes. Equal contents give equal bytes.
pub fn encode_content(content: &idl::Content) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.payload.as_ref().map_or(0, Vec::len) + 64);
    let written = content.write_to_out_protocol(&mut TCompactOutputProtocol::new(&mut out));
    assert!(written.is_ok(), "writing a struct of two levels to memory cannot fail");
    out
}

/// Reads what [`encode_content`] wrote, once it has been opened.
///
/// # Errors
/// As [`decode_up`].
pub fn decode_content(bytes: &[u8]) -> Result<idl::Content, Error> {
    decode(bytes)
}

/// A device's `seq`, which must not be negative.
///
/// # Errors
/// [`Error::Invalid`].
pub fn seq_from_idl(seq: i64) -> Result<u64, Error> {
    u64::try_from(seq).map_err(|_| Error::Invalid("seq"))
}

/// A device's `epoch`, which must not be negative.
///
/// # Errors
/// [`Error::Invalid`].
pub fn epoch_from_idl(epoch: i32) -> Result<u32, Error> {
    u32::try_from(epoch).map_err(|_| Error::Invalid("epoch"))
}

/// A device's `tag`.
///
/// # Errors
/// [`Error::Invalid`] if it is not 8 bytes.
pub fn tag_from_idl(tag: &[u8]) -> Result<[u8; crate::limits::TAG_BYTES], Error> {
    tag.try_into().map_err(|_| Error::Invalid("tag"))
}

/// `seq` for the wire.
///
/// # Panics
/// Above `i64::MAX`, which no queue reaches.
pub fn seq_to_idl(seq: u64) -> i64 {
    i64::try_from(seq).expect("a queue has less than 2^63 entries")
}

/// `epoch` for the wire.
///
/// # Panics
/// Above `i32::MAX`: epochs are given out one by one.
pub fn epoch_to_idl(epoch: u32) -> i32 {
    i32::try_from(epoch).expect("epochs stay below 2^31")
}

fn decode<T: TSerializable>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(Error::TooLarge { bytes: bytes.len() });
    }
    let (value, left) = guard::read(bytes).map_err(Error::Malformed)?;
    match left {
        0 => Ok(value),
        bytes => Err(Error::Trailing { bytes }),
    }
}

fn encode<T: TSerializable>(value: &T, out: &mut Vec<u8>) -> Result<(), Error> {
    let start = out.len();
    let written = value.write_to_out_protocol(&mut TCompactOutputProtocol::new(&mut *out));
    assert!(written.is_ok(), "writing a struct of few levels to memory cannot fail");
    let bytes = out.len() - start;
    if bytes > FRAME_BYTES_MAX {
        out.truncate(start);
        return Err(Error::TooLarge { bytes });
    }
    Ok(())
}
