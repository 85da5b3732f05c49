//! Frames inside frames, made smaller by zstd with a dictionary that both ends have.
//!
//! A compressor is held by each thread that packs, none by a connection. What is unpacked never takes more than it claims, and that is
//! bounded as every frame is.

use std::{cell::RefCell, io, sync::LazyLock};

use zstd::{
    bulk::{Compressor, Decompressor},
    dict::{DecoderDictionary, EncoderDictionary},
};

use super::{Error, decode_down, encode_down};
use crate::{
    idl,
    limits::{FRAME_BYTES_MAX, STRING_BYTES_MAX},
};

/// The newest dictionary, as `Resume` and `Packed` number it. All from 1 on are known.
pub const DICTIONARY: i32 = 1;

/// The bytes of a dictionary, if its number is known.
pub fn dictionary(number: i32) -> Option<&'static [u8]> {
    (number == DICTIONARY).then_some(BYTES)
}

/// Appends a `Down` that carries `frame` packed, if that is smaller than `frame`, and says whether. The device must know [`DICTIONARY`].
pub fn pack(frame: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(bytes) = i32::try_from(frame.len()) else { return false };
    if frame.len() > FRAME_BYTES_MAX {
        return false;
    }
    // Without room for as many bytes it is given up early.
    let room = frame.len().saturating_sub(OVERHEAD_BYTES).min(STRING_BYTES_MAX);
    let Ok(zstd) = compress(frame, room) else { return false };
    let packed = idl::Packed { dictionary: DICTIONARY, bytes, zstd };
    let down = idl::Down { packed: Some(packed), ..idl::Down::default() };
    encode_down(&down, out).is_ok()
}

/// What was packed, which is never packed itself.
///
/// # Errors
/// An unknown dictionary, a length out of bounds, bytes that are not what zstd made of a frame of that length, and all errors of
/// [`decode_down`](super::decode_down). Allocates at most [`FRAME_BYTES_MAX`] for what comes out, whatever the bytes claim.
pub fn unpack(packed: &idl::Packed) -> Result<idl::Down, Error> {
    if packed.dictionary != DICTIONARY {
        return Err(Error::UnknownDictionary { number: packed.dictionary });
    }
    let bytes = usize::try_from(packed.bytes).unwrap_or(0);
    if bytes == 0 || bytes > FRAME_BYTES_MAX {
        return Err(Error::Invalid("the length of a packed frame"));
    }
    let frame = decompress(&packed.zstd, bytes).map_err(Error::Unpacking)?;
    if frame.len() != bytes {
        return Err(Error::Invalid("the length of a packed frame"));
    }
    match decode_down(&frame)? {
        idl::Down { packed: Some(_), .. } => Err(Error::Invalid("a packed frame in a packed one")),
        down => Ok(down),
    }
}

/// Decodes what the gateway published on `down`, packed or not.
///
/// # Errors
/// As [`decode_down`](super::decode_down) and [`unpack`].
pub fn open_down(bytes: &[u8]) -> Result<idl::Down, Error> {
    match decode_down(bytes)? {
        idl::Down { packed: Some(packed), .. } => unpack(&packed),
        down => Ok(down),
    }
}

fn compress(frame: &[u8], room: usize) -> io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(Compressor::with_prepared_dictionary(&ENCODER)?),
        };
        let mut zstd = Vec::with_capacity(room);
        compressor.compress_to_buffer(frame, &mut zstd)?;
        Ok(zstd)
    })
}

fn decompress(zstd: &[u8], bytes: usize) -> io::Result<Vec<u8>> {
    let mut frame = Vec::with_capacity(bytes);
    let mut decompressor = Decompressor::with_prepared_dictionary(&DECODER)?;
    decompressor.decompress_to_buffer(zstd, &mut frame)?;
    Ok(frame)
}

static BYTES: &[u8] = include_bytes!("../../dictionary/1.bin");
static ENCODER: LazyLock<EncoderDictionary<'static>> =
    LazyLock::new(|| EncoderDictionary::copy(BYTES, LEVEL));
static DECODER: LazyLock<DecoderDictionary<'static>> =
    LazyLock::new(|| DecoderDictionary::copy(BYTES));

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
}

/// zstd's own scale.
const LEVEL: i32 = 7;
/// `Down` and `Packed` around the bytes, at most: four field headers, three numbers, two stops.
const OVERHEAD_BYTES: usize = 4 + 3 * 3 + 2;
