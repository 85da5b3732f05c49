//! Packed frames: they come back the same, and nothing that a stranger writes into one hurts.

use carillon_wire::frame::{self, Error};
use carillon_wire::idl;
use carillon_wire::limits::{CONTAINER_ITEMS_MAX, FRAME_BYTES_MAX};
use proptest::prelude::*;
use zstd::bulk::Compressor;

/// A frame of so many bytes at least, with a text over and over.
fn large(bytes: usize) -> (idl::Down, Vec<u8>) {
    let regids = vec!["a device's registration".to_owned(); bytes / 24 + 1];
    let down =
        idl::Down { resumed: Some(idl::Resumed { regids: Some(regids) }), ..idl::Down::default() };
    let frame = encoded(&down);
    (down, frame)
}

fn encoded(down: &idl::Down) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode_down(down, &mut out).expect("a frame");
    out
}

fn packed(bytes: i32, zstd: Vec<u8>) -> idl::Packed {
    idl::Packed { dictionary: frame::DICTIONARY, bytes, zstd }
}

/// What zstd makes of anything, with the dictionary.
fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    let dictionary = frame::dictionary(frame::DICTIONARY).expect("the dictionary");
    let mut compressor = Compressor::with_dictionary(3, dictionary).expect("a compressor");
    compressor.compress(bytes).expect("compressed")
}

#[test]
fn a_packed_frame_comes_back_the_same_and_is_smaller() {
    for bytes in [600, 5_000, 90_000] {
        let (down, plain) = large(bytes);
        let mut out = b"before".to_vec();
        assert!(frame::pack(&plain, &mut out), "{bytes} bytes");
        let out = out.strip_prefix(b"before").expect("it is appended");
        assert!(out.len() < plain.len() / 4, "{} of {}", out.len(), plain.len());
        assert_eq!(frame::open_down(out).expect("a frame"), down);
        assert_eq!(frame::open_down(&plain).expect("a frame"), down, "also when it is not packed");
    }
}

#[test]
fn what_does_not_get_smaller_is_left_alone() {
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let noise: Vec<u8> = (0..20_000).map(|_| byte()).collect();
    let mut out = b"before".to_vec();
    for frame in [&[][..], b"x", &noise] {
        assert!(!frame::pack(frame, &mut out), "{} bytes", frame.len());
    }
    assert!(!frame::pack(&vec![0; FRAME_BYTES_MAX + 1], &mut out), "longer than a frame");
    assert_eq!(out, b"before");
}

#[test]
fn a_dictionary_that_is_not_known_is_named() {
    for number in [0, 2, -1, i32::MAX] {
        assert!(frame::dictionary(number).is_none());
        let packed = idl::Packed { dictionary: number, ..packed(5, zstd_of(b"12345")) };
        let error = frame::unpack(&packed).expect_err("no such dictionary");
        assert!(matches!(error, Error::UnknownDictionary { number: named } if named == number));
    }
}

#[test]
fn a_frame_is_as_long_as_it_claims_or_it_is_none() {
    let (down, plain) = large(5_000);
    let zstd = zstd_of(&plain);
    let right = i32::try_from(plain.len()).expect("a small frame");
    assert_eq!(frame::unpack(&packed(right, zstd.clone())).expect("a frame"), down);
    for claim in [right - 1, right + 1, 0, 1, -1, i32::MIN, i32::MAX, FRAME_BYTES_MAX as i32 + 1] {
        frame::unpack(&packed(claim, zstd.clone())).expect_err("another length");
    }
}

#[test]
fn a_bomb_ends_at_the_bound_of_a_frame() {
    let bomb = zstd_of(&vec![0; 256 << 20]);
    assert!(bomb.len() < 32 << 10, "small: {} bytes", bomb.len());
    for claim in [1, 100_000, FRAME_BYTES_MAX as i32] {
        let error = frame::unpack(&packed(claim, bomb.clone())).expect_err("too long");
        assert!(matches!(error, Error::Unpacking(_)), "{error}");
    }
    // Many frames of zstd behind each other are bounded together.
    let many = zstd_of(&vec![0; FRAME_BYTES_MAX]).repeat(200);
    frame::unpack(&packed(FRAME_BYTES_MAX as i32, many)).expect_err("too long");
    // The longest list that is allowed, in a few bytes.
    let regids = vec![String::new(); CONTAINER_ITEMS_MAX];
    let down =
        idl::Down { resumed: Some(idl::Resumed { regids: Some(regids) }), ..idl::Down::default() };
    let plain = encoded(&down);
    let zstd = zstd_of(&plain);
    assert!(zstd.len() < 64);
    assert_eq!(frame::unpack(&packed(plain.len() as i32, zstd)).expect("a frame"), down);
}

#[test]
fn a_packed_frame_holds_no_packed_frame() {
    let inner =
        encoded(&idl::Down { packed: Some(packed(3, b"any".to_vec())), ..idl::Down::default() });
    let outer = packed(inner.len() as i32, zstd_of(&inner));
    assert!(matches!(frame::unpack(&outer), Err(Error::Invalid(_))));
}

#[test]
fn no_damage_breaks_it() {
    let (_, plain) = large(3_000);
    let zstd = zstd_of(&plain);
    let claim = plain.len() as i32;
    for at in 0..zstd.len() {
        frame::unpack(&packed(claim, zstd[..at].to_vec())).expect_err("cut off");
        for bit in 0..8 {
            let mut damaged = zstd.clone();
            damaged[at] ^= 1 << bit;
            // An error or another frame: both are well.
            let _any = frame::unpack(&packed(claim, damaged));
        }
    }
    frame::unpack(&packed(claim, [&zstd[..], b"more"].concat())).expect_err("trailing bytes");
}

proptest! {
    #[test]
    fn no_bytes_break_it(zstd in prop::collection::vec(any::<u8>(), 0..400), bytes: i32) {
        let _any = frame::unpack(&packed(bytes, zstd.clone()));
        let with_magic = [&[0x28, 0xB5, 0x2F, 0xFD][..], &zstd].concat();
        let _any = frame::unpack(&packed(bytes.rem_euclid(200_000), with_magic));
    }
}
