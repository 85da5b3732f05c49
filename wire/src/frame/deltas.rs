//! The hottest frame, written by hand: `Down{deltas}` around entries that were encoded once for all followers.
//!
//! Equal to the generated code byte for byte, which a test proves.

use bytes::Bytes;

use super::{epoch_to_idl, seq_to_idl};
use crate::idl;
use crate::limits::TAG_BYTES;

/// One delta of a frame.
#[derive(Clone, Copy, Debug)]
pub struct DeltaParts<'a> {
    /// Own, alias, topic or all.
    pub queue_kind: idl::QueueKind,
    /// Set for alias and topic only.
    pub queue_name: Option<&'a str>,
    /// Below 2^31.
    pub epoch: u32,
    /// The first seq that is covered.
    pub from: u64,
    /// The last seq that is covered.
    pub to: u64,
    /// Proof that we gave (epoch, to).
    pub tag: [u8; TAG_BYTES],
    /// Set if `from` does not continue what the device stated.
    pub jump: Option<idl::JumpReason>,
    /// At most [`CONTAINER_ITEMS_MAX`](crate::limits::CONTAINER_ITEMS_MAX), each from
    /// [`encode_entry`](super::encode_entry), by ascending seq.
    pub entries: &'a [Bytes],
    /// The number of the registration's key; set if any entry is sealed.
    pub key_number: Option<u32>,
    /// [`WRAPPED_KEY_BYTES`](crate::seal::WRAPPED_KEY_BYTES) for each sealed entry of a shared queue.
    pub wrapped_keys: &'a [u8],
}

/// Appends `Down{deltas}` to `out`. That it fits a frame is the caller's bound: see [`deltas_bytes_upper_bound`].
///
/// # Panics
/// If an epoch or seq does not fit the wire.
pub fn encode_deltas(
    regid: &str,
    deltas: &[DeltaParts<'_>],
    digests: &[idl::CollectionDigest],
    out: &mut Vec<u8>,
) {
    let digests_bytes: usize = digests.iter().map(digest_bytes_upper_bound).sum();
    out.reserve(deltas_bytes_upper_bound(regid, deltas) + digests_bytes);
    out.push(field(2, STRUCT)); // Down.deltas
    out.push(field(1, BINARY)); // Deltas.regid
    put_binary(regid.as_bytes(), out);
    out.push(field(1, LIST)); // Deltas.deltas
    put_list_header(deltas.len(), out);
    for delta in deltas {
        put_delta(delta, out);
    }
    if !digests.is_empty() {
        out.push(field(1, LIST)); // Deltas.digests
        put_list_header(digests.len(), out);
        digests.iter().for_each(|digest| put_digest(digest, out));
    }
    out.extend_from_slice(&[STOP, STOP]);
}

/// At least as many bytes as [`encode_deltas`] appends for these.
pub fn deltas_bytes_upper_bound(regid: &str, deltas: &[DeltaParts<'_>]) -> usize {
    let deltas_bytes: usize = deltas
        .iter()
        .map(|delta| {
            delta_overhead_bytes(delta.queue_name)
                + delta.entries.iter().map(Bytes::len).sum::<usize>()
                + delta.wrapped_keys.len()
        })
        .sum();
    frame_overhead_bytes(regid) + deltas_bytes
}

/// What a frame costs without any delta, at most, in bytes.
pub fn frame_overhead_bytes(regid: &str) -> usize {
    // headers of deltas, regid and list; two varints of at most 5 bytes; the list's own header; two stops
    3 + 5 + regid.len() + 1 + 5 + 2
}

/// What a delta costs without any entry, at most, in bytes.
pub fn delta_overhead_bytes(queue_name: Option<&str>) -> usize {
    let queue = 1 + (1 + 5) + queue_name.map_or(0, |name| 1 + 5 + name.len()) + 1;
    let numbers = (1 + 5) + 2 * (1 + 10);
    let tag = 1 + 1 + TAG_BYTES;
    let list = 1 + 1 + 5;
    let jump = 1 + 5;
    let seal = (1 + 5) + (2 + 5);
    queue + numbers + tag + list + jump + seal + 1
}

/// What a digest costs, at most, in bytes; the first one's list included.
pub fn digest_bytes_upper_bound(digest: &idl::CollectionDigest) -> usize {
    let queue = 1 + (1 + 5) + digest.queue.name.as_ref().map_or(0, |name| 1 + 5 + name.len()) + 1;
    let numbers = (1 + 5) + 3 * (1 + 10);
    queue + numbers + (1 + 5 + digest.collection.len()) + 1 + (1 + 1 + 5)
}

fn put_digest(digest: &idl::CollectionDigest, out: &mut Vec<u8>) {
    out.extend_from_slice(&[field(1, STRUCT), field(1, I32)]); // CollectionDigest.queue, Queue.kind
    put_i32(digest.queue.kind.0, out);
    if let Some(name) = &digest.queue.name {
        out.push(field(1, BINARY)); // Queue.name
        put_binary(name.as_bytes(), out);
    }
    out.extend_from_slice(&[STOP, field(1, I32)]); // CollectionDigest.epoch
    put_i32(digest.epoch, out);
    out.push(field(1, BINARY)); // CollectionDigest.collection
    put_binary(digest.collection.as_bytes(), out);
    for number in [digest.seq, digest.items, digest.digest] {
        out.push(field(1, I64));
        put_i64(number, out);
    }
    out.push(STOP);
}

fn put_delta(delta: &DeltaParts<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&[field(1, STRUCT), field(1, I32)]); // Delta.queue, Queue.kind
    put_i32(delta.queue_kind.0, out);
    if let Some(name) = delta.queue_name {
        out.push(field(1, BINARY)); // Queue.name
        put_binary(name.as_bytes(), out);
    }
    out.extend_from_slice(&[STOP, field(1, I32)]); // Delta.epoch
    put_i32(epoch_to_idl(delta.epoch), out);
    out.push(field(1, I64)); // Delta.from_seq
    put_i64(seq_to_idl(delta.from), out);
    out.push(field(1, I64)); // Delta.to_seq
    put_i64(seq_to_idl(delta.to), out);
    out.push(field(1, BINARY)); // Delta.tag
    put_binary(&delta.tag, out);
    out.push(field(1, LIST)); // Delta.entries
    put_list_header(delta.entries.len(), out);
    for entry in delta.entries {
        out.extend_from_slice(entry);
    }
    let mut last = 6;
    if let Some(jump) = delta.jump {
        out.push(field(1, I32)); // Delta.jump
        put_i32(jump.0, out);
        last = 7;
    }
    if !delta.wrapped_keys.is_empty() {
        out.push(field(8 - last, BINARY)); // Delta.wrapped_keys
        put_binary(delta.wrapped_keys, out);
        last = 8;
    }
    if let Some(number) = delta.key_number {
        out.push(field(9 - last, I32)); // Delta.key_number
        put_i32(epoch_to_idl(number), out);
    }
    out.push(STOP);
}

const fn field(id_delta: u8, kind: u8) -> u8 {
    id_delta << 4 | kind
}

fn put_list_header(count: usize, out: &mut Vec<u8>) {
    if count < 15 {
        out.push((count as u8) << 4 | STRUCT);
        return;
    }
    out.push(0xF0 | STRUCT);
    put_varint(count as u64, out);
}

fn put_binary(bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_i32(value: i32, out: &mut Vec<u8>) {
    put_varint(u64::from((value << 1 ^ value >> 31).cast_unsigned()), out);
}

fn put_i64(value: i64, out: &mut Vec<u8>) {
    put_varint((value << 1 ^ value >> 63).cast_unsigned(), out);
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7F {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

const STOP: u8 = 0x00;
const I32: u8 = 0x05;
const I64: u8 = 0x06;
const BINARY: u8 = 0x08;
const LIST: u8 = 0x09;
const STRUCT: u8 = 0x0C;
