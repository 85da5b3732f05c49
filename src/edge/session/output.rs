//! What comes out of a session's steps, collected over one turn of a connection.

use bytes::BytesMut;
use carillon_wire::mqtt::{self, Packet, Version};

use super::{Call, Effect, window::Acked};
use crate::{
    base::metrics::{Label, SealRefusal, SealedIn, Skipped},
    edge::close::{CloseReason, Ignored},
};

/// What one connection did, for the metrics and its last log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Deltas or messages sent.
    pub pushes: u64,
    /// Of these, sent again.
    pub redeliveries: u64,
    /// Of these, acknowledged.
    pub acks: u64,
    /// Uplink frames.
    pub uplinks: u64,
}

/// Frames that went out packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// How many.
    pub frames: u64,
    /// Their bytes before.
    pub plain_bytes: u64,
    /// Their bytes as sent.
    pub packed_bytes: u64,
}

impl Packed {
    pub(super) fn of(plain_bytes: usize, packed_bytes: usize) -> Self {
        Self { frames: 1, plain_bytes: plain_bytes as u64, packed_bytes: packed_bytes as u64 }
    }

    pub(super) fn add(&mut self, more: Self) {
        self.frames += more.frames;
        self.plain_bytes += more.plain_bytes;
        self.packed_bytes += more.packed_bytes;
    }
}

/// What the clocks say during one turn of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Seconds since the edge was made.
    pub s: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

/// What came out of one or more steps.
#[derive(Debug, Default)]
pub struct Output {
    /// The time of the turn: clocks are read once for all its steps.
    pub now: Now,
    /// To be written.
    pub bytes: BytesMut,
    /// To be done, in order.
    pub effects: Vec<Effect>,
    /// To be asked, after the effects; its answer is the next input.
    pub call: Option<Call>,
    /// The connection ends once the bytes are written.
    pub close: Option<CloseReason>,
    /// What was done.
    pub tally: Tally,
    /// What is known of the messages that are acknowledged now.
    pub acked: Acked,
    /// When the messages that are pushed now were accepted, in milliseconds since 1970.
    pub pushed_at_ms: Vec<u64>,
    /// How many entries were sealed, by the kind of their queue.
    pub sealed: [u32; SealedIn::ALL.len()],
    /// What was refused for the sake of sealing.
    pub seal_refusals: Vec<SealRefusal>,
    /// What was dropped or skipped.
    pub ignored: Vec<Ignored>,
    /// Uplink frames that were none, or of no known kind.
    pub unknown_ups: u32,
    /// What was packed.
    pub packed: Packed,
    pub(super) scratch: Vec<u8>,
    pub(super) packed_scratch: Vec<u8>,
}

impl Output {
    /// Empties it, keeping its buffers.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.effects.clear();
        (self.call, self.close, self.tally, self.unknown_ups) = (None, None, Tally::default(), 0);
        self.acked.at_ms.clear();
        self.acked.pushed_ms.clear();
        self.pushed_at_ms.clear();
        self.acked.notes.clear();
        self.acked.skipped = Skipped::default();
        self.ignored.clear();
        self.packed = Packed::default();
        self.sealed = Default::default();
        self.seal_refusals.clear();
    }

    /// Holds no more memory than what is still to be written takes.
    pub fn keep_unwritten(&mut self) {
        self.bytes = BytesMut::from(&self.bytes[..]);
        (self.scratch, self.packed_scratch) = (Vec::new(), Vec::new());
    }

    pub(super) fn packet(&mut self, version: Version, packet: &Packet) {
        let encoded = mqtt::encode(version, packet, &mut self.bytes);
        assert!(encoded.is_ok(), "our own packets can be encoded");
    }
}
