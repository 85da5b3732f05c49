//! Frames of clients in any pieces, and those that break the protocol.

use super::*;

/// A frame as a client sends it, masked.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xFA, 0x21, 0x3D];
    let mut bytes = vec![first];
    match payload.len() {
        length @ ..126 => bytes.push(0x80 | length as u8),
        length @ ..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    bytes
}

fn opened(bytes: &[u8]) -> Result<(Vec<u8>, Reader), Broken> {
    let (mut reader, mut bytes) = (Reader::new(70_000), bytes.to_vec());
    let data = reader.open(&mut bytes)?;
    bytes.truncate(data);
    Ok((bytes, reader))
}

/// A generator of numbers; enough to cut bytes anywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

#[test]
fn data_comes_out_whole_however_it_is_framed_and_cut() {
    for seed in 0..100 {
        let mut dice = Dice(seed);
        let (mut sent, mut bytes, mut extras, mut newest) = (Vec::new(), Vec::new(), 0, Vec::new());
        let mut is_in_message = false;
        for _ in 0..1 + dice.below(12) {
            if dice.below(3) == 0 {
                newest = vec![dice.below(256) as u8; dice.below(126)];
                bytes.extend(frame(0x89, &newest));
                extras += 1;
            }
            let length = [0, 1, 125, 126, 300, 65_535, 65_536, 70_000][dice.below(8)];
            let salt = dice.below(256);
            let data: Vec<u8> = (0..length).map(|at| (at * 31 + salt) as u8).collect();
            let is_last = dice.below(2) == 0;
            let first = u8::from(is_last) << 7 | if is_in_message { 0 } else { 2 };
            is_in_message = !is_last;
            extras += u32::from(data.is_empty());
            bytes.extend(frame(first, &data));
            sent.extend(data);
        }
        let (mut reader, mut taken, mut rest) = (Reader::new(70_000), Vec::new(), &mut bytes[..]);
        while !rest.is_empty() {
            let longest = [1, 3, 20, 5_000, 100_000][dice.below(5)];
            let (part, behind) = rest.split_at_mut((1 + dice.below(longest)).min(rest.len()));
            let data = reader.open(part).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            taken.extend_from_slice(&part[..data]);
            rest = behind;
        }
        assert!(taken == sent, "seed {seed}");
        assert_eq!(reader.extras, extras, "seed {seed}");
        let answer = reader.take_answer();
        assert_eq!(answer.get(2..).unwrap_or_default(), newest, "seed {seed}");
    }
}

#[test]
fn any_bytes_end_in_data_or_an_error() {
    for seed in 0..20_000 {
        let mut dice = Dice(seed);
        let mut bytes: Vec<u8> = (0..dice.below(60)).map(|_| dice.below(256) as u8).collect();
        // Most are beginnings that go on.
        if let [first, second, ..] = &mut bytes[..] {
            (*first, *second) = (*first & 0x8F, *second | 0x80);
        }
        let length = bytes.len();
        if let Ok((data, reader)) = opened(&bytes) {
            assert!(data.len() <= length && reader.answer.len() <= 127, "seed {seed}");
        }
    }
}

#[test]
fn what_breaks_the_protocol_is_named() {
    let mut unmasked = frame(0x82, b"x");
    unmasked[1] &= 0x7F;
    let endless = [&[0x82, 0xFF][..], &[0xFF; 12]].concat();
    for (bytes, text) in [
        (unmasked, "a frame is not masked"),
        (frame(0xC2, b"x"), "a reserved bit is set"),
        (frame(0x81, b"x"), "a text message"),
        (frame(0x83, b"x"), "an unknown kind of frame"),
        (frame(0x8B, b"x"), "an unknown kind of frame"),
        (frame(0x80, b"x"), "a message has no beginning"),
        ([frame(0x02, b"x"), frame(0x82, b"y")].concat(), "a message has no end"),
        (frame(0x09, b"x"), "a control frame is too long"),
        (frame(0x89, &[0; 126]), "a control frame is too long"),
        (endless, "a frame is too long"),
        (frame(0x82, &[0; 70_001]), "a frame is too long"),
    ] {
        assert_eq!(opened(&bytes).map(drop), Err(Broken(text)));
    }
}

#[test]
fn an_end_is_answered_with_its_code_and_nothing_behind_it_is_read() {
    let said = [frame(0x82, b"last"), frame(0x88, b"\x03\xE8bye"), frame(0x82, b"more")].concat();
    let (data, mut reader) = opened(&said).unwrap();
    assert_eq!((&data[..], reader.is_over), (&b"last"[..], true));
    assert_eq!(&reader.take_answer()[..], b"\x88\x02\x03\xE8");
    let (_, mut reader) = opened(&frame(0x88, b"")).unwrap();
    assert_eq!(&reader.take_answer()[..], b"\x88\x00");
}

#[test]
fn our_frames_have_the_length_in_as_few_bytes_as_it_takes() {
    for (length, head) in [
        (0, &b"\x82\x00"[..]),
        (125, b"\x82\x7D"),
        (126, b"\x82\x7E\x00\x7E"),
        (65_535, b"\x82\x7E\xFF\xFF"),
        (65_536, b"\x82\x7F\0\0\0\0\0\x01\0\0"),
    ] {
        let frame = binary(&vec![7; length]);
        assert_eq!((&frame[..head.len()], frame.len()), (head, head.len() + length));
    }
}
