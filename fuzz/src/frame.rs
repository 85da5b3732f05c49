//! Thrift frames: decoding anything, and what was decoded comes back; of what is sealed only what was sealed opens.
//!
//! Input: the frame.

use carillon_wire::{frame, idl};

use super::sealed;

pub fn run(data: &[u8]) {
    if let Ok(up) = frame::decode_up(data) {
        let mut bytes = Vec::new();
        frame::encode_up(&up, &mut bytes).expect("what was read can be written");
        assert_eq!(frame::decode_up(&bytes).ok(), Some(up), "it comes back the same");
        // Names and lists have bounds: a frame cannot be a seed of something larger.
        assert!(bytes.len() <= data.len() + SLACK, "{} bytes of {}", bytes.len(), data.len());
    }
    if let Ok(down) = frame::decode_down(data) {
        let mut bytes = Vec::new();
        frame::encode_down(&down, &mut bytes).expect("what was read can be written");
        assert_eq!(frame::decode_down(&bytes).as_ref().ok(), Some(&down), "it comes back the same");
        sealed::judge(&down);
        if let Some(packed) = &down.packed {
            unpack(packed);
        }
    }
    // What a stranger writes as zstd reaches it whatever frame is around.
    let packed = idl::Packed { dictionary: frame::DICTIONARY, bytes: ROOM, zstd: data.to_vec() };
    unpack(&packed);
}

fn unpack(packed: &idl::Packed) {
    if let Ok(inner) = frame::unpack(packed) {
        assert!(inner.packed.is_none(), "no packed frame in a packed one");
        let mut bytes = Vec::new();
        frame::encode_down(&inner, &mut bytes).expect("what was read can be written");
    }
}

const ROOM: i32 = 4_096;

/// Fields may be written in a longer form than they were read.
const SLACK: usize = 4_096;
