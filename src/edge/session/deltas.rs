//! Frames of deltas: several queues of one registration in one PUBLISH.

use std::{cell::RefCell, collections::VecDeque, sync::Arc};

use bytes::Bytes;
use carillon_wire::{
    frame::{self, DeltaParts},
    idl,
    limits::FRAME_BYTES_MAX,
    mqtt::Qos,
    seal::Refused,
};

use super::{
    Context, Mode, Output, Session, Want,
    digests::OWED,
    down,
    feeds::Feed,
    feeds::News,
    frames::HEAD_BYTES,
    seals::{self, DeltaSealer, Outcome},
    window::{self, Acked, Cover, InFlight, Note, Stage},
};
use crate::{
    base::{
        ids::{Queue, QueueName, RegId},
        metrics::{SealRefusal, Skipped},
    },
    edge::close::{CloseReason, Ignored},
    queue::{
        entry::{Body, Entry},
        plan::Jump,
        position::{Position, Seq, Tag},
    },
    service::{
        deliver::{Pulled, Take},
        seals::Sealer,
        snapshots::Gather,
    },
};

/// A frame that is being filled.
#[derive(Debug)]
pub struct Draft {
    feed: usize,
    regid: RegId,
    sealer: Option<Arc<Sealer>>,
    deltas: Vec<DraftDelta>,
    entries: usize,
    bytes: usize,
    is_full: bool,
    notes: Vec<Note>,
    digests: Vec<idl::CollectionDigest>,
}

#[derive(Debug)]
struct DraftDelta {
    queue: Queue,
    cover: Cover,
    tag: Tag,
    jump: Option<Jump>,
    entries: Vec<Bytes>,
    at_ms: Vec<u64>,
    key_number: Option<u32>,
    wrapped_keys: Vec<u8>,
}

/// What of a pull fits the frame.
struct Fitted {
    entries: Vec<Bytes>,
    at_ms: Vec<u64>,
    to: Position,
    skipped: Skipped,
    is_cut: bool,
    key_number: Option<u32>,
    wrapped_keys: Vec<u8>,
}

/// Bytes that a frame of deltas may have.
#[derive(Clone, Copy)]
struct Room {
    /// Before this it ends.
    ends: usize,
    /// Unless it has one entry, which may be as large as this.
    most: usize,
}

impl Fitted {
    fn up_to(to: Position) -> Self {
        let (entries, at_ms, wrapped_keys) = (Vec::new(), Vec::new(), Vec::new());
        let skipped = Skipped::default();
        Self { entries, at_ms, to, skipped, is_cut: false, key_number: None, wrapped_keys }
    }
}

impl Session {
    pub(super) fn want_frames(&mut self, cx: &Context<'_>, out: &mut Output) -> Option<Want> {
        loop {
            let Mode::Frames(frames) = &self.mode else { return None };
            if !frames.is_flowing() {
                return None;
            }
            let Some(draft) = &frames.draft else {
                let feed = self.feeds.turns().find(|feed| self.has_room(cx, *feed))?;
                if self.feeds.at(feed).next_lane(true).is_none() {
                    self.ask_chunk(cx, feed, out);
                    return None;
                }
                let Feed { regid, sealer, .. } = self.feeds.at(feed);
                let draft = Draft::new(feed, *regid, sealer.clone());
                self.set_draft(Box::new(draft));
                continue;
            };
            let room = cx.bounds.frame_entries_max.saturating_sub(draft.entries);
            let bytes = self.room(cx, draft).ends.saturating_sub(draft.bytes);
            let lane = self.feeds.at(draft.feed).next_lane(true);
            match lane {
                Some(at)
                    if !draft.is_full && room > 0 && (bytes > 0 || draft.deltas.is_empty()) =>
                {
                    let after = self.feeds.at(draft.feed).lanes[at].pointer.sent();
                    let take = Take { entries: room, bytes: bytes.max(1) };
                    let (regid, feed) = (draft.regid, draft.feed);
                    return Some(Want { regid, feed, at, after, take, is_resend: false });
                }
                Some(_) | None => self.finish(cx, out),
            }
        }
    }

    pub(super) fn fed_frames(
        &mut self,
        cx: &Context<'_>,
        want: Want,
        pulled: Option<Pulled>,
        out: &mut Output,
    ) {
        let Some(mut draft) = self.take_draft() else { return };
        let queue = self.followings(want.feed)[want.at].queue.clone();
        let room = self.room(cx, &draft);
        let lane = &mut self.feeds.at_mut(want.feed).lanes[want.at];
        let Some(pulled) = pulled else {
            lane.news = News::None;
            let (jump, owes) = (lane.jump.take(), lane.marks.digests_in() == OWED);
            if jump.is_some() || owes {
                let at = Position { epoch: lane.epoch, seq: want.after };
                if owes {
                    lane.marks.set_digests_in(0);
                }
                draft.add(cx, queue.clone(), want.after, Fitted::up_to(at), jump);
                if owes {
                    self.add_digests(cx, want, &queue, at, &[], &mut draft);
                }
            }
            return self.set_draft(draft);
        };
        if pulled.is_torn && draft.sealer.is_none() {
            lane.jump = Some(Jump::Overflow);
            let gather = Gather { reason: Jump::Overflow, place: None };
            self.feeds.gather(want.feed, want.at, gather);
            return self.set_draft(draft);
        }
        let fitted = draft.fit(cx, &queue, want.after, &pulled, room, out);
        let Ok(fitted) = fitted else {
            // It goes out sealed or not at all.
            out.seal_refusals.push(SealRefusal::Cipher);
            return self.close(CloseReason::Unavailable, out);
        };
        let Some(fitted) = fitted else {
            draft.is_full = true;
            return self.set_draft(draft);
        };
        if fitted.key_number.is_some() {
            let sealed = &mut out.sealed[seals::kind_of(queue.name()) as usize];
            *sealed += u32::try_from(fitted.at_ms.len()).unwrap_or(u32::MAX);
        }
        let lane = &mut self.feeds.at_mut(want.feed).lanes[want.at];
        // A device takes a new epoch only where it is told to.
        let turn = (lane.epoch != fitted.to.epoch).then_some(Jump::EpochChanged);
        let jump = lane.jump.take().or(turn);
        lane.pointer.send(fitted.to.seq);
        lane.epoch = fitted.to.epoch;
        draft.is_full |= fitted.is_cut;
        if pulled.is_all && !fitted.is_cut {
            lane.news = News::None;
        }
        let to = fitted.to;
        let sent = to.seq;
        draft.add(cx, queue.clone(), want.after, fitted, jump);
        self.add_digests(cx, want, &queue, to, &pulled.entries, &mut draft);
        self.feeds.at_mut(want.feed).rotate(want.at);
        self.set_draft(draft);
        for entry in pulled.entries.iter().take_while(|entry| entry.position.seq <= sent) {
            self.apply(cx, want.feed, entry, out);
        }
    }

    /// Sends the frame that is being filled, if it holds anything.
    pub(super) fn finish(&mut self, cx: &Context<'_>, out: &mut Output) {
        let Some(draft) = self.take_draft() else { return };
        self.feeds.pass(draft.feed);
        if draft.deltas.is_empty() {
            return;
        }
        let mut frame = std::mem::take(&mut out.scratch);
        frame.clear();
        let regid = draft.regid.to_string();
        frame::encode_deltas(&regid, &draft.parts(), &draft.digests, &mut frame);
        let packet_id = self.next_down_id();
        // What is sealed gets no smaller.
        let is_sent = match draft.sealer {
            None => self.publish_entries(cx, packet_id, &frame, out),
            Some(_) => self.publish_down(packet_id, &frame, out),
        };
        out.scratch = frame;
        if is_sent {
            out.tally.pushes += 1;
        }
        let item = draft.into_item(packet_id, out.now.unix_ms);
        if is_sent && item.at_ms != 0 {
            out.pushed_at_ms.push(item.at_ms);
            out.pushed_at_ms.extend_from_slice(&item.more_at_ms);
        }
        // What is above the client's bound although it was cut to it counts as handled.
        let is_lost = !is_sent && packet_id != 0;
        self.window.push(item);
        if is_lost {
            let mut acked = Acked::default();
            let mut moved = self.window.ack(packet_id, &mut acked).unwrap_or_default();
            moved.iter_mut().for_each(|moved| moved.messages = 0);
            out.acked.skipped.add(acked.skipped);
            self.moved(moved, out);
        }
    }

    /// Whether a registration has something to look at, and its share of the window room for it.
    fn has_room(&self, cx: &Context<'_>, feed: usize) -> bool {
        let of = self.feeds.at(feed);
        let Mode::Frames(frames) = &self.mode else { return false };
        let has_credit = frames.qos() == Some(Qos::AtMostOnce) || self.credit() > 0;
        has_credit
            && self.window.len() < usize::from(cx.bounds.window)
            && self.window.of(&of.regid) < usize::from(cx.bounds.window_per_registration)
            && (of.next_lane(true).is_some() || self.feeds.next_chunk(feed, cx.unix_ms).is_some())
            && !self.is_held(cx, feed)
    }

    /// Bytes that a frame of several things may have.
    pub(super) fn budget(&self) -> usize {
        self.frame_bytes_max().min(SEVERAL_BYTES_MAX)
    }

    /// What a frame with the deltas of this draft may have.
    fn room(&self, cx: &Context<'_>, draft: &Draft) -> Room {
        let is_packed = !draft.is_sealed() && self.packs(cx, SEVERAL_BYTES_MAX);
        let ends = if is_packed { SEVERAL_BYTES_MAX } else { UNPACKED_BYTES_MAX };
        let most = self.frame_bytes_max();
        Room { ends: ends.min(most), most }
    }

    fn frame_bytes_max(&self) -> usize {
        (self.terms.max_packet_bytes as usize).saturating_sub(HEAD_BYTES).min(FRAME_BYTES_MAX)
    }

    fn take_draft(&mut self) -> Option<Box<Draft>> {
        match &mut self.mode {
            Mode::Frames(frames) => frames.draft.take(),
            Mode::Plain(_) | Mode::Undecided => None,
        }
    }

    fn set_draft(&mut self, draft: Box<Draft>) {
        if let Mode::Frames(frames) = &mut self.mode {
            frames.draft = Some(draft);
        }
    }
}

impl Draft {
    /// Adds digests, if the frame has room for all of them.
    pub(super) fn add_digests(
        &mut self,
        digests: Vec<idl::CollectionDigest>,
        budget: usize,
    ) -> bool {
        let bytes: usize = digests.iter().map(frame::digest_bytes_upper_bound).sum();
        let fits = self.bytes + bytes <= budget;
        if fits {
            self.bytes += bytes;
            self.digests.extend(digests);
        }
        fits
    }

    /// Whether its entries go out sealed.
    pub(super) fn is_sealed(&self) -> bool {
        self.sealer.is_some()
    }

    fn new(feed: usize, regid: RegId, sealer: Option<Arc<Sealer>>) -> Self {
        let bytes = frame::frame_overhead_bytes(&regid.to_string());
        Self {
            feed,
            regid,
            sealer,
            deltas: Vec::new(),
            entries: 0,
            bytes,
            is_full: false,
            notes: Vec::new(),
            digests: Vec::new(),
        }
    }

    /// As many entries as the frame still takes. `None` if not even the first one fits
    /// beside what is there already.
    ///
    /// # Errors
    /// An entry cannot be sealed.
    fn fit(
        &mut self,
        cx: &Context<'_>,
        queue: &Queue,
        after: Seq,
        pulled: &Pulled,
        room: Room,
        out: &mut Output,
    ) -> Result<Option<Fitted>, Refused> {
        let is_empty = self.deltas.is_empty();
        let fixed = self.bytes + frame::delta_overhead_bytes(down::queue_name(queue.name()));
        let mut fitted = Fitted::up_to(pulled.to);
        let sealer = self.sealer.clone();
        let sealer = sealer.as_deref();
        let mut sealing =
            sealer.map(|by| DeltaSealer::new(by, &self.regid, queue.name(), pulled.to.epoch));
        let mut bytes = fixed;
        for entry in &pulled.entries {
            let before = sealing.as_ref().map_or(0, |sealing| sealing.wrapped.len());
            let ready = ready(queue.name(), entry, &self.regid, sealing.as_mut())?;
            let encoded = match ready {
                Ok(encoded) => encoded,
                Err(why) => {
                    out.ignored.push(why);
                    continue;
                }
            };
            let wrapped = sealing.as_ref().map_or(0, |sealing| sealing.wrapped.len());
            let encoded_bytes = encoded.len() + wrapped - before;
            if bytes + encoded_bytes > room.ends {
                let is_first = is_empty && fitted.entries.is_empty();
                if let Some(sealing) = &mut sealing
                    && (!is_first || bytes + encoded_bytes > room.most)
                {
                    sealing.wrapped.truncate(before);
                }
                if !is_first {
                    fitted.is_cut = true;
                    fitted.to = Position { epoch: pulled.to.epoch, seq: entry.position.seq.prev() };
                    break;
                }
                if bytes + encoded_bytes > room.most {
                    out.ignored.push(Ignored::Oversize);
                    continue;
                }
            }
            bytes += encoded_bytes;
            fitted.entries.push(encoded);
            if let Body::Message(message) = &entry.body {
                fitted.at_ms.push(entry.at_ms);
                if message.wants_receipt {
                    let (message, regid) = (message.id, self.regid);
                    self.notes.push(Note { message, regid, pushed_ms: cx.unix_ms });
                }
            }
        }
        if fitted.to.seq <= after {
            return Ok(None);
        }
        fitted.skipped = window::skipped_in(&pulled.skipped, after, fitted.to.seq);
        if let Some(sealing) = sealing {
            (fitted.key_number, fitted.wrapped_keys) = (sealing.number(), sealing.wrapped);
        }
        Ok(Some(fitted))
    }

    fn add(
        &mut self,
        cx: &Context<'_>,
        queue: Queue,
        after: Seq,
        fitted: Fitted,
        jump: Option<Jump>,
    ) {
        let Fitted { entries, at_ms, to, skipped, is_cut: _, key_number, wrapped_keys } = fitted;
        let id = queue.id();
        self.bytes += frame::delta_overhead_bytes(down::queue_name(queue.name()));
        self.bytes += entries.iter().map(Bytes::len).sum::<usize>() + wrapped_keys.len();
        self.entries += entries.len();
        let messages = u32::try_from(at_ms.len()).unwrap_or(u32::MAX);
        let cover = Cover { queue: id, after, seq: to.seq, to, skipped, messages };
        let tag = (cx.tag)(&id, to);
        let delta =
            DraftDelta { queue, cover, tag, jump, entries, at_ms, key_number, wrapped_keys };
        self.deltas.push(delta);
    }

    fn parts<'a>(&'a self) -> Vec<DeltaParts<'a>> {
        let part = |delta: &'a DraftDelta| {
            let DraftDelta { queue, cover, tag, jump, entries, .. } = delta;
            DeltaParts {
                queue_kind: down::queue_kind(queue.name()),
                queue_name: down::queue_name(queue.name()),
                epoch: cover.to.epoch.0,
                from: cover.after.next().0,
                to: cover.to.seq.0,
                tag: *tag,
                jump: jump.map(down::jump),
                entries,
                key_number: delta.key_number,
                wrapped_keys: &delta.wrapped_keys,
            }
        };
        self.deltas.iter().map(part).collect()
    }

    fn into_item(self, packet_id: u16, pushed_ms: u64) -> InFlight {
        let regid = self.regid;
        let mut covers = self.deltas.iter().map(|delta| delta.cover);
        let mut at_ms = self.deltas.iter().flat_map(|delta| delta.at_ms.iter().copied());
        InFlight {
            packet_id,
            regid,
            stage: Stage::Sent,
            cover: covers.next(),
            more: covers.collect(),
            at_ms: at_ms.next().unwrap_or(0),
            more_at_ms: at_ms.collect(),
            pushed_ms,
            notes: (!self.notes.is_empty()).then(|| Box::new(self.notes)),
        }
    }
}

/// An entry as it goes to this registration, or why it does not.
fn ready(
    queue: &QueueName,
    entry: &Arc<Entry>,
    to: &RegId,
    sealing: Option<&mut DeltaSealer<'_>>,
) -> Result<Result<Bytes, Ignored>, Refused> {
    let Some(sealing) = sealing else { return Ok(Ok(encode(queue, entry, to))) };
    Ok(match sealing.seal(entry)? {
        Outcome::Sealed(bytes) => Ok(bytes),
        Outcome::Oversize => Err(Ignored::Oversize),
        Outcome::Unsealed => Err(Ignored::Unsealed),
        Outcome::Control => Ok(encode(queue, entry, to)),
    })
}

/// An entry as it goes into a frame. One that many follow is encoded once for all of them who
/// are served by this thread.
fn encode(queue: &QueueName, entry: &Arc<Entry>, to: &RegId) -> Bytes {
    let fresh = |to| frame::encode_entry(&down::entry(entry, to));
    match queue {
        QueueName::Own(_) | QueueName::Alias(..) => fresh(Some(to)),
        QueueName::Topic(..) | QueueName::All(_) => ENCODED.with_borrow_mut(|recent| {
            if let Some((_, bytes)) = recent.iter().find(|(known, _)| Arc::ptr_eq(known, entry)) {
                return bytes.clone();
            }
            let bytes = fresh(None);
            recent.truncate(ENCODED_MAX - 1);
            recent.push_front((entry.clone(), bytes.clone()));
            bytes
        }),
    }
}

thread_local! {
    /// Newest first.
    static ENCODED: RefCell<VecDeque<(Arc<Entry>, Bytes)>> = const { RefCell::new(VecDeque::new()) };
}

/// Entries that are fanned out at the same time.
const ENCODED_MAX: usize = 8;

/// A frame of several things ends before this, unless the first alone is larger. Packed, entries
/// take a half or less of it.
const SEVERAL_BYTES_MAX: usize = 96 << 10;

/// The same of entries that are not packed: who does not read makes the gateway hold them all.
const UNPACKED_BYTES_MAX: usize = 32 << 10;
