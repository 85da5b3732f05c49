//! How many bytes the corpus takes, written in each way, in frames of so many entries.

use std::io::Write;

use carillon_wire::{
    frame,
    idl::{Down, Item, JumpReason, Queue, QueueKind, SnapshotChunk, ValueFormat},
};
use flate2::{Compression, write::GzEncoder};

use super::dice::Dice;
use super::document::{self, Field, Missed, Names, What, base32, base64};
use super::missed::{Items, QUEUE, SEED};

/// What the gateway puts into one frame: 256 (`edge.frame_entries_max`), but no more than 96 KiB, which are so many of these around
/// JSON documents.
pub const FRAME_ENTRIES: usize = 160;

/// Bytes of all frames.
#[derive(Debug, Default)]
pub struct Sizes {
    pub frames: usize,
    pub json: usize,
    pub json_gzip: usize,
    pub short_json: usize,
    pub short_json_gzip: usize,
    pub thrift: usize,
    pub thrift_zstd: usize,
    pub thrift_packed: usize,
    /// Thrift around documents that stay JSON.
    pub mixed: usize,
    pub mixed_packed: usize,
}

/// What the corpus is.
#[derive(Debug, Default)]
pub struct Nature {
    /// Random bytes.
    pub random: usize,
    /// The same as JSON writes them.
    pub random_in_json: usize,
    /// Sentences and names.
    pub text: usize,
    /// All sentences and names together, by gzip -9.
    pub text_gzip: usize,
}

pub fn sizes(missed: &[Missed], entries_each: usize) -> Sizes {
    let mut sizes = Sizes::default();
    let mut dice = Dice(SEED + 1);
    let regid = base32(&dice.bytes(15));
    for part in missed.chunks(entries_each) {
        let tag = dice.bytes(8);
        let json =
            |names| document::json_frame(part, QUEUE, &regid, &tag, names).to_string().into_bytes();
        let thrift = |format| {
            let entries = part.iter().map(|one| one.entry(format)).collect();
            encoded(&document::frame(entries, QUEUE, &regid, tag.clone()))
        };
        let (long, short) = (json(Names::Long), json(Names::Short));
        let (thrift, mixed) = (thrift(ValueFormat::THRIFT), thrift(ValueFormat::JSON));
        sizes.frames += 1;
        sizes.json += long.len();
        sizes.json_gzip += gzip(&long, 6);
        sizes.short_json += short.len();
        sizes.short_json_gzip += gzip(&short, 6);
        sizes.thrift += thrift.len();
        sizes.thrift_zstd += zstd::bulk::compress(&thrift, 6).expect("zstd").len();
        sizes.thrift_packed += packed(&thrift);
        sizes.mixed += mixed.len();
        sizes.mixed_packed += packed(&mixed);
    }
    sizes
}

/// The frames of deltas.
pub fn frames(missed: &[Missed], entries_each: usize, format: ValueFormat) -> Vec<Vec<u8>> {
    let frame = |part: &[Missed]| {
        let entries = part.iter().map(|one| one.entry(format)).collect();
        encoded(&document::frame(entries, QUEUE, &"7".repeat(24), vec![7; 8]))
    };
    missed.chunks(entries_each).map(frame).collect()
}

/// A thousand items as chunks of a snapshot.
pub fn chunks(items_each: usize) -> Vec<Vec<u8>> {
    let items = Items::new();
    let chunk = |from: usize| {
        let item = |number: usize| {
            let (collection, key, document) = items.item(number as u64, 0);
            Item {
                collection: collection.to_owned(),
                key,
                seq: 73_000 - number as i64,
                value: document.json(Names::Long).to_string().into_bytes(),
                format: None,
                clock: Some((1_790_000_000_000 - number as i64 * 1_000) << 16),
            }
        };
        let queue = Queue { kind: QueueKind::ALIAS, name: Some(QUEUE.to_owned()) };
        let chunk = SnapshotChunk {
            regid: "7".repeat(24),
            queue,
            jump: JumpReason::NEW,
            epoch: 3,
            at_seq: 73_000,
            tag: vec![7; 8],
            items: (from..from + items_each).map(item).collect(),
            cursor: Some(vec![7; 16]),
            until_seq: None,
            begins: None,
        };
        encoded(&Down { snapshot: Some(chunk), ..Down::default() })
    };
    (0..1_000).step_by(items_each).map(chunk).collect()
}

pub fn nature(missed: &[Missed]) -> Nature {
    let mut nature = Nature::default();
    let mut text = String::new();
    let mut random = |count: usize, written: usize| {
        nature.random += count;
        nature.random_in_json += written;
    };
    for one in missed {
        match &one.what {
            // 9 bytes of an id are random, 6 are the time; of a key all.
            What::Message { .. } => random(9, 9 * 8 / 5),
            What::Change { key, .. } => random(16, key.len()),
        }
        for (_, field) in one.document.iter().flat_map(|document| &document.0) {
            match field {
                Field::Random(bytes) => random(bytes.len(), base64(bytes).len()),
                Field::Text(words) => {
                    text.push_str(words);
                    text.push('\n');
                }
                Field::Number(_) | Field::Flag(_) | Field::List(_) => {}
            }
        }
    }
    (nature.text, nature.text_gzip) = (text.len(), gzip(text.as_bytes(), 9));
    nature
}

fn encoded(down: &Down) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_down(down, &mut bytes).expect("a frame");
    bytes
}

/// As it goes out: packed if that is smaller.
fn packed(bytes: &[u8]) -> usize {
    let mut out = Vec::new();
    if !frame::pack(bytes, &mut out) {
        return bytes.len();
    }
    let opened = frame::open_down(&out).expect("what was packed");
    assert_eq!(encoded(&opened), bytes, "it comes back the same");
    out.len()
}

pub fn gzip(bytes: &[u8], level: u32) -> usize {
    let mut out = GzEncoder::new(Vec::new(), Compression::new(level));
    out.write_all(bytes).expect("written to memory");
    out.finish().expect("written to memory").len()
}
