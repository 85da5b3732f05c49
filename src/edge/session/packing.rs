//! Frames of entries on their way out: packed where the device can unpack them and it saves bytes.
//!
//! What is packed is acknowledged by the PUBACK of its PUBLISH, as any frame is. No connection holds a compressor.

use carillon_wire::frame;

use super::{Context, Mode, Output, Session, output::Packed};

impl Session {
    /// The device said which dictionary it has.
    pub(super) fn set_dictionary(&mut self, newest: Option<i32>) {
        if let Mode::Frames(frames) = &mut self.mode {
            frames.can_unpack = newest.is_some_and(|newest| newest >= frame::DICTIONARY);
        }
    }

    /// Publishes a frame that others may be like: of entries, in clear.
    pub(super) fn publish_entries(
        &mut self,
        cx: &Context<'_>,
        packet_id: u16,
        plain: &[u8],
        out: &mut Output,
    ) -> bool {
        if !self.packs(cx, plain.len()) {
            return self.publish_down(packet_id, plain, out);
        }
        let mut packed = std::mem::take(&mut out.packed_scratch);
        packed.clear();
        let is_packed = frame::pack(plain, &mut packed);
        let is_sent = self.publish_down(packet_id, if is_packed { &packed } else { plain }, out);
        if is_packed && is_sent {
            out.packed.add(Packed::of(plain.len(), packed.len()));
        }
        out.packed_scratch = packed;
        is_sent
    }

    /// Whether a frame of this many bytes in clear is packed.
    pub(super) fn packs(&self, cx: &Context<'_>, bytes: usize) -> bool {
        let bound = cx.bounds.pack_bytes_min;
        bound > 0
            && bytes >= bound
            && matches!(&self.mode, Mode::Frames(frames) if frames.can_unpack)
    }
}
