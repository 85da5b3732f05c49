//! Snapshots of collections: a lane's device is given chunks before deltas.
//!
//! A chunk is asked for when there is room for it, and nothing is kept of it once it is sent: the
//! next one goes on where it ended, on this connection or on another. Only the last one moves the
//! stored pointer.

use carillon_wire::{
    frame::{self, epoch_to_idl, seq_to_idl},
    idl,
};

use super::{
    Call, Context, Effect, Mode, Output, Session,
    digests::OWED,
    down,
    feeds::{Feed, Feeds, News},
    window::{Cover, InFlight, Stage},
};
use crate::{
    base::{
        ids::{Queue, QueueId, RegId},
        metrics::Skipped,
    },
    queue::{
        plan::Jump,
        position::{Position, Seq},
    },
    service::{
        deliver::Following,
        snapshots::{Chunk, Gather, Part, Place, Rest},
    },
};

/// A chunk that a session has room for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Whose.
    pub regid: RegId,
    /// What it follows, its own queue first.
    pub followings: Vec<Following>,
    /// The place of the queue in it.
    pub at: usize,
    /// Where the device stands.
    pub after: Position,
    /// Which snapshot, and where it goes on.
    pub gather: Gather,
    /// Bytes that its items may take.
    pub room: usize,
}

/// A lane whose device is given a snapshot.
#[derive(Clone, Debug)]
pub struct Gathering {
    regid: RegId,
    queue: QueueId,
    gather: Gather,
    /// Milliseconds since 1970: not before that.
    not_before_ms: u64,
    tries: u32,
}

/// A chunk that went out, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Why, if it was the first.
    pub began: Option<Jump>,
    /// Its bytes as they are, not packed.
    pub bytes: usize,
}

impl Feeds {
    /// A lane is given a snapshot before deltas.
    pub fn gather(&mut self, index: usize, at: usize, gather: Gather) {
        let feed = &mut self.list[index];
        let (regid, queue) = (feed.regid, feed.followings[at].queue.id());
        feed.lanes[at].news = News::Snapshot;
        self.forget_gathering(&regid, &queue);
        let one = Gathering { regid, queue, gather, not_before_ms: 0, tries: 0 };
        self.gathering.get_or_insert_default().push(one);
    }

    fn forget_gathering(&mut self, regid: &RegId, queue: &QueueId) {
        if let Some(gathering) = &mut self.gathering {
            gathering.retain(|one| (one.regid, one.queue) != (*regid, *queue));
        }
        self.gathering.take_if(|gathering| gathering.is_empty());
    }

    /// Forgets what no lane waits for any more.
    pub(super) fn sweep_gathering(&mut self) {
        let list = &self.list;
        if let Some(gathering) = &mut self.gathering {
            gathering.retain(|one| {
                let feed = list.iter().find(|feed| feed.regid == one.regid);
                let lane = feed.and_then(|feed| Some(&feed.lanes[feed.lane_of(&one.queue)?]));
                lane.is_some_and(|lane| lane.news == News::Snapshot)
            });
        }
        self.gathering.take_if(|gathering| gathering.is_empty());
    }

    fn gathering_of(&self, regid: &RegId, queue: &QueueId) -> Option<&Gathering> {
        let mut all = self.gathering.iter().flat_map(|all| all.iter());
        all.find(|one| (one.regid, one.queue) == (*regid, *queue))
    }

    fn gathering_mut(&mut self, regid: &RegId, queue: &QueueId) -> Option<&mut Gathering> {
        let mut all = self.gathering.iter_mut().flat_map(|all| all.iter_mut());
        all.find(|one| (one.regid, one.queue) == (*regid, *queue))
    }

    /// A lane of a feed whose next chunk may be asked for now.
    pub(super) fn next_chunk(&self, index: usize, unix_ms: u64) -> Option<(usize, &Gathering)> {
        self.gathering.as_ref()?;
        let feed = self.at(index);
        let is_next = |at: &usize| feed.lanes[*at].news == News::Snapshot && feed.is_open(*at);
        (0..feed.lanes.len()).filter(is_next).find_map(|at| {
            let gathering = self.gathering_of(&feed.regid, &feed.followings[at].queue.id())?;
            (gathering.not_before_ms <= unix_ms).then_some((at, gathering))
        })
    }
}

impl Session {
    /// Asks for the next chunk of a feed.
    pub(super) fn ask_chunk(&self, cx: &Context<'_>, index: usize, out: &mut Output) {
        if out.call.is_some() {
            return;
        }
        let Some((at, gathering)) = self.feeds.next_chunk(index, cx.unix_ms) else { return };
        let Feed { regid, followings, lanes, .. } = self.feeds.at(index);
        let after = Position { epoch: lanes[at].epoch, seq: lanes[at].pointer.sent() };
        let (regid, followings, gather) = (*regid, followings.clone(), gathering.gather);
        let name = down::queue_name(followings[at].queue.name());
        let fixed = frame::frame_overhead_bytes(&regid.to_string())
            + frame::delta_overhead_bytes(name)
            + CHUNK_BYTES;
        let room = self.budget().saturating_sub(fixed);
        let asked = Asked { regid, followings, at, after, gather, room };
        out.call = Some(Call::Chunk(Box::new(asked)));
    }

    /// What came of it.
    pub(super) fn chunk(&mut self, cx: &Context<'_>, asked: Asked, part: Part, out: &mut Output) {
        let queue = asked.followings[asked.at].queue.clone();
        let id = queue.id();
        let Some(index) = self.feeds.index_of(&asked.regid) else { return };
        let Some(at) = self.feeds.at(index).lane_of(&id) else { return };
        let Some(gathering) = self.feeds.gathering_mut(&asked.regid, &id) else { return };
        // The registrations may have been read again meanwhile.
        if gathering.gather != asked.gather {
            return;
        }
        match part {
            Part::Later if gathering.tries < TRIES_MAX => {
                let wait_ms = WAIT_MS << gathering.tries.min(WAIT_SHIFT_MAX);
                gathering.tries += 1;
                gathering.not_before_ms = cx.unix_ms + wait_ms;
                out.effects.push(Effect::Wake(gathering.not_before_ms));
            }
            // What it lacks then, digests find.
            Part::Later => {
                out.effects.push(Effect::GaveUp);
                self.end_chunks(index, at, &id);
            }
            Part::Deltas => self.end_chunks(index, at, &id),
            Part::Chunk(chunk) => {
                gathering.tries = 0;
                self.send_chunk(cx, (index, at), &queue, chunk, out);
            }
        }
    }

    fn end_chunks(&mut self, index: usize, at: usize, queue: &QueueId) {
        let feed = self.feeds.at_mut(index);
        feed.lanes[at].news = News::Some;
        let regid = feed.regid;
        self.feeds.forget_gathering(&regid, queue);
    }

    fn send_chunk(
        &mut self,
        cx: &Context<'_>,
        (index, at): (usize, usize),
        queue: &Queue,
        chunk: Chunk,
        out: &mut Output,
    ) {
        let (id, regid) = (queue.id(), self.feeds.at(index).regid);
        let Chunk { reason, at: position, begins, rest, .. } = chunk;
        let down = to_idl(&regid, queue, chunk, (cx.tag)(&id, position));
        let mut encoded = Vec::new();
        let packet_id = self.next_down_id();
        let is_sent = frame::encode_down(&down, &mut encoded).is_ok()
            && self.publish_entries(cx, packet_id, &encoded, out);
        if !is_sent {
            return self.end_chunks(index, at, &id);
        }
        out.tally.pushes += 1;
        let began = begins.then_some(reason);
        out.effects.push(Effect::Gave(Given { began, bytes: encoded.len() }));
        let lane = &mut self.feeds.at_mut(index).lanes[at];
        lane.pointer.send(position.seq);
        (lane.epoch, lane.jump) = (position.epoch, None);
        let cover = match rest {
            Rest::Before(before) => {
                let place = Some(Place { at: position, before });
                if let Some(gathering) = self.feeds.gathering_mut(&regid, &id) {
                    gathering.gather = Gather { reason, place };
                }
                None
            }
            Rest::Until(_) => {
                lane.marks.set_unstored();
                lane.marks.set_digests_in(OWED);
                self.end_chunks(index, at, &id);
                let (after, seq, to) = (position.seq, position.seq, position);
                let skipped = Skipped::default();
                Some(Cover { queue: id, after, seq, to, skipped, messages: 0 })
            }
        };
        self.window.push(InFlight {
            packet_id,
            regid,
            stage: Stage::Sent,
            cover,
            more: Vec::new(),
            at_ms: 0,
            more_at_ms: Vec::new(),
            pushed_ms: out.now.unix_ms,
            notes: None,
        });
        self.feeds.pass(index);
    }

    /// A control entry says that a queue is followed, whose items the device does not have.
    pub(super) fn gather_followed(&mut self, cx: &Context<'_>, index: usize, queue: &QueueId) {
        let feed = self.feeds.at(index);
        let is_frames = matches!(self.mode, Mode::Frames(_));
        let has_items = || {
            let totals = (cx.totals)(queue).unwrap_or_default();
            totals.collections.iter().any(|total| total.items > 0)
        };
        if is_frames
            && feed.sealer.is_none()
            && let Some(at) = feed.lane_of(queue)
            && has_items()
        {
            self.feeds.gather(index, at, Gather { reason: Jump::New, place: None });
        }
    }
}

fn to_idl(regid: &RegId, queue: &Queue, chunk: Chunk, tag: [u8; 8]) -> idl::Down {
    let Chunk { reason, at, begins, items, rest } = chunk;
    let name = down::queue_name(queue.name()).map(str::to_owned);
    let (cursor, until_seq) = match rest {
        Rest::Before(before) => (Some(Gather::cursor(reason, before)), None),
        Rest::Until(Seq(until)) => (None, Some(seq_to_idl(until))),
    };
    let chunk = idl::SnapshotChunk {
        regid: regid.to_string(),
        queue: idl::Queue { kind: down::queue_kind(queue.name()), name },
        jump: down::jump(reason),
        epoch: epoch_to_idl(at.epoch.0),
        at_seq: seq_to_idl(at.seq.0),
        tag: tag.to_vec(),
        items: items.into_iter().map(down::item).collect(),
        cursor,
        until_seq,
        begins: begins.then_some(true),
    };
    idl::Down { snapshot: Some(chunk), ..idl::Down::default() }
}

/// What a chunk has besides what a delta without entries has, at most, in bytes.
const CHUNK_BYTES: usize = 64;
/// To wait first where long-term storage has not come so far; then twice as long, and so on.
const WAIT_MS: u64 = 100;
const WAIT_SHIFT_MAX: u32 = 4;
/// After so many tries, about half a minute, a device goes on without.
const TRIES_MAX: u32 = 24;
