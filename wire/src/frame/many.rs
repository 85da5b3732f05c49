//! Several frames behind each other, each behind its length: what a request over HTTPS carries.

use bytes::{Buf, Bytes};

use super::Error;
use crate::limits::{FRAME_BYTES_MAX, FRAMES_MAX};

/// The content type of such a body.
pub const FRAMES_TYPE: &str = "application/vnd.carillon.frames";

/// Appends a frame behind its length, four bytes big-endian.
///
/// # Panics
/// If it is longer than a frame can be: the caller's error.
pub fn put_frame(frame: &[u8], out: &mut Vec<u8>) {
    assert!(frame.len() <= FRAME_BYTES_MAX, "a frame is in its bounds");
    out.extend_from_slice(&(frame.len() as u32).to_be_bytes());
    out.extend_from_slice(frame);
}

/// Takes frames apart, as slices of the body's memory. Whether each is a frame is not looked at.
///
/// # Errors
/// [`Error::Empty`] without any, or where one is empty; [`Error::Cut`], [`Error::TooLarge`], [`Error::TooMany`].
pub fn split_frames(mut body: Bytes) -> Result<Vec<Bytes>, Error> {
    let mut frames = Vec::new();
    while !body.is_empty() {
        if frames.len() == FRAMES_MAX {
            return Err(Error::TooMany);
        }
        let bytes = body.try_get_u32().map_err(|_| Error::Cut)? as usize;
        if bytes > FRAME_BYTES_MAX {
            return Err(Error::TooLarge { bytes });
        }
        if bytes > body.len() {
            return Err(Error::Cut);
        }
        if bytes == 0 {
            return Err(Error::Empty);
        }
        frames.push(body.split_to(bytes));
    }
    if frames.is_empty() {
        return Err(Error::Empty);
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_split_again_and_nothing_else_is() {
        let mut body = Vec::new();
        for frame in [&b"a"[..], b"bc", &[7; FRAME_BYTES_MAX]] {
            put_frame(frame, &mut body);
        }
        let frames = split_frames(body.clone().into()).unwrap();
        let lengths: Vec<_> = frames.iter().map(Bytes::len).collect();
        assert_eq!((lengths, &frames[1][..]), (vec![1, 2, FRAME_BYTES_MAX], &b"bc"[..]));
        for cut in [1, 3, 4, 6, 10, body.len() - 1] {
            let cut = split_frames(Bytes::copy_from_slice(&body[..cut]));
            assert!(matches!(cut, Err(Error::Cut)), "{cut:?}");
        }
    }

    #[test]
    fn bounds_are_kept_before_anything_is_copied() {
        let split = |bytes: &[u8]| split_frames(Bytes::copy_from_slice(bytes));
        assert!(matches!(split(b""), Err(Error::Empty)));
        assert!(matches!(split(&[0; 4]), Err(Error::Empty)));
        assert!(matches!(split(&[255; 8]), Err(Error::TooLarge { bytes: 0xFFFF_FFFF })));
        let mut many = Vec::new();
        (0..FRAMES_MAX).for_each(|_| put_frame(b"x", &mut many));
        assert_eq!(split(&many).unwrap().len(), FRAMES_MAX);
        put_frame(b"x", &mut many);
        assert!(matches!(split(&many), Err(Error::TooMany)));
    }
}
