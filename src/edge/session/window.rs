//! What was sent and is not yet acknowledged: packet ids, and the ranges they stand for.
//!
//! Acknowledgements may come in any order; a pointer moves over the contiguous
//! acknowledged prefix of its queue only. Everything that is held, also what was
//! acknowledged out of order, counts against the window, so it is bounded.

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::{
    base::{
        ids::{MessageId, QueueId, RegId},
        metrics::{Skip, Skipped},
    },
    queue::position::{Position, Seq},
};

/// `(after..to]` of one queue, covered by one PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cover {
    /// The queue.
    pub queue: QueueId,
    /// What came before it.
    pub after: Seq,
    /// The message itself (plain use): what a resend looks for.
    pub seq: Seq,
    /// The position that its acknowledgement reaches.
    pub to: Position,
    /// What of it was skipped.
    pub skipped: Skipped,
    /// How many messages it carries.
    pub messages: u32,
}

/// Where one PUBLISH is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Taken over from a parked session, not yet sent on this connection.
    Resend,
    /// On its way.
    Sent,
    /// Acknowledged; an older one of the same queue is not.
    Acked,
}

/// One PUBLISH in the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// 0 for QoS 0, which counts as acknowledged once it was written.
    pub packet_id: u16,
    /// Whose entries it carries.
    pub regid: RegId,
    /// Where it is.
    pub stage: Stage,
    /// The first or only range.
    pub cover: Option<Cover>,
    /// The other ranges of a frame.
    pub more: Vec<Cover>,
    /// When its (first) message was accepted, in milliseconds since 1970; 0 if there is none.
    pub at_ms: u64,
    /// The same for the other messages of a frame.
    pub more_at_ms: Vec<u64>,
    /// When it was pushed on this connection, in milliseconds since 1970; 0 if that was another.
    pub pushed_ms: u64,
    /// What it carries that asks for receipts. Absent if nothing does: most pay these 8 bytes alone.
    pub notes: Option<Box<Vec<Note>>>,
}

/// A message on its way that asks for a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Which.
    pub message: MessageId,
    /// For whom.
    pub regid: RegId,
    /// When it was first pushed on this session, in milliseconds since 1970.
    pub pushed_ms: u64,
}

/// What acknowledgements bring besides moved pointers.
#[derive(Debug, Default)]
pub struct Acked {
    /// When the acknowledged messages were accepted, in milliseconds since 1970.
    pub at_ms: Vec<u64>,
    /// When the PUBLISHes that carried messages were pushed, in milliseconds since 1970.
    pub pushed_ms: Vec<u64>,
    /// Those of them that ask for receipts.
    pub notes: Vec<Note>,
    /// What was skipped on the way, now that the pointers have passed it.
    pub skipped: Skipped,
}

/// How far a pointer moves after an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Whose pointer.
    pub regid: RegId,
    /// In which queue.
    pub queue: QueueId,
    /// Everything up to here is acknowledged.
    pub to: Position,
    /// So many messages are behind it now.
    pub messages: u32,
}

/// All that is in flight on one connection, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Absent while nothing is in flight.
    #[expect(clippy::box_collection, reason = "most connections are idle and have none")]
    items: Option<Box<VecDeque<InFlight>>>,
    last_id: u16,
}

impl InFlight {
    fn covers(&self) -> impl Iterator<Item = &Cover> {
        self.cover.iter().chain(&self.more)
    }

    fn covers_mut(&mut self) -> impl Iterator<Item = &mut Cover> {
        self.cover.iter_mut().chain(&mut self.more)
    }

    fn drop_covers(&mut self, queue: &QueueId) {
        self.cover.take_if(|cover| cover.queue == *queue);
        self.more.retain(|cover| cover.queue != *queue);
    }

    fn has_cover(&self) -> bool {
        self.cover.is_some() || !self.more.is_empty()
    }
}

impl Window {
    /// A window that goes on where a parked one stopped; everything unacknowledged is to be sent again.
    pub fn restored(items: Vec<InFlight>, last_id: u16) -> Self {
        let again = |mut item: InFlight| {
            item.pushed_ms = 0;
            if item.stage == Stage::Sent {
                item.stage = Stage::Resend;
            }
            item
        };
        let items: VecDeque<InFlight> = items.into_iter().map(again).collect();
        Self { items: (!items.is_empty()).then(|| Box::new(items)), last_id }
    }

    /// What must outlive the connection: the items, and the newest packet id given.
    pub fn into_parts(self) -> (Vec<InFlight>, u16) {
        let items = self.items.map(|items| *items).unwrap_or_default();
        let kept = items.into_iter().filter(|item| item.packet_id != 0).collect();
        (kept, self.last_id)
    }

    /// A packet id that is not in use. They go round, so that a late acknowledgement of a
    /// forgotten one meets nobody.
    pub fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let id = self.last_id;
            if id != 0 && !self.iter().any(|item| item.packet_id == id) {
                return id;
            }
        }
    }

    /// Notes a PUBLISH that goes out.
    pub fn push(&mut self, item: InFlight) {
        self.items.get_or_insert_default().push_back(item);
    }

    /// All that is held.
    pub fn len(&self) -> usize {
        self.items.as_ref().map_or(0, |items| items.len())
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.items.is_none()
    }

    /// What is held for one registration.
    pub fn of(&self, regid: &RegId) -> usize {
        self.iter().filter(|item| item.regid == *regid).count()
    }

    /// On its way and unacknowledged: what the client's Receive Maximum counts.
    pub fn unacknowledged(&self) -> usize {
        self.iter().filter(|item| item.stage == Stage::Sent && item.packet_id != 0).count()
    }

    /// The oldest one that is still to be sent again, of a registration that may be sent to.
    pub fn first_resend(&self, may_send: impl Fn(&RegId) -> bool) -> Option<&InFlight> {
        self.iter().find(|item| item.stage == Stage::Resend && may_send(&item.regid))
    }

    /// The one with this packet id is on its way now.
    pub fn resent(&mut self, packet_id: u16, at_ms: u64) {
        if let Some(item) = self.iter_mut().find(|item| item.packet_id == packet_id) {
            item.stage = Stage::Sent;
            item.at_ms = at_ms;
        }
    }

    /// The device acknowledges a packet id. `None` if it is not in use. What is known of its
    /// messages goes to `acked`.
    pub fn ack(&mut self, packet_id: u16, acked: &mut Acked) -> Option<Vec<Moved>> {
        let sent = |item: &InFlight| item.packet_id == packet_id && item.stage != Stage::Acked;
        let index = self.iter().position(sent)?;
        Some(self.ack_at(index, acked))
    }

    /// Everything of QoS 0 has reached the socket.
    pub fn written(&mut self, acked: &mut Acked) -> Vec<Moved> {
        let mut moved = Vec::new();
        let unwritten = |item: &InFlight| item.packet_id == 0 && item.stage == Stage::Sent;
        loop {
            let index = self.iter().position(unwritten);
            let Some(index) = index else { return moved };
            moved.append(&mut self.ack_at(index, acked));
        }
    }

    /// The range behind the newest one of a queue held nothing to send. Returns whether
    /// that one takes it along; otherwise nothing of the queue is in flight.
    pub fn extend(
        &mut self,
        regid: &RegId,
        queue: &QueueId,
        to: Position,
        skipped: Skipped,
    ) -> bool {
        let newest = self
            .iter_mut()
            .rev()
            .filter(|item| item.regid == *regid)
            .flat_map(InFlight::covers_mut)
            .find(|cover| cover.queue == *queue);
        match newest {
            Some(cover) => {
                cover.to = to;
                cover.skipped.add(skipped);
                true
            }
            None => false,
        }
    }

    /// Acknowledgements no longer move the pointer of this queue. The packet ids stay in use.
    pub fn forget_queue(&mut self, regid: &RegId, queue: &QueueId) {
        for item in self.iter_mut().filter(|item| item.regid == *regid) {
            item.drop_covers(queue);
        }
        self.sweep();
    }

    /// The same for all queues of a registration.
    pub fn forget(&mut self, regid: &RegId) {
        for item in self.iter_mut().filter(|item| item.regid == *regid) {
            item.cover = None;
            item.more.clear();
        }
        self.sweep();
    }

    /// The same for all registrations.
    pub fn forget_all(&mut self) {
        for item in self.iter_mut() {
            item.cover = None;
            item.more.clear();
        }
        self.sweep();
    }

    /// The ranges of one queue that are held, oldest first.
    pub fn covers_of(&self, regid: &RegId, queue: &QueueId) -> impl Iterator<Item = &Cover> {
        let (regid, queue) = (*regid, *queue);
        self.iter()
            .filter(move |item| item.regid == regid)
            .flat_map(InFlight::covers)
            .filter(move |cover| cover.queue == queue)
    }

    /// Drops what a restored window holds of a queue up to `acked`.
    pub fn drop_up_to(&mut self, regid: &RegId, queue: &QueueId, acked: Seq) {
        for item in self.iter_mut().filter(|item| item.regid == *regid) {
            item.cover.take_if(|cover| cover.queue == *queue && cover.to.seq <= acked);
        }
        self.sweep();
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &InFlight> {
        self.items.iter().flat_map(|items| items.iter())
    }

    fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut InFlight> {
        self.items.iter_mut().flat_map(|items| items.iter_mut())
    }

    fn ack_at(&mut self, index: usize, acked: &mut Acked) -> Vec<Moved> {
        let Some(item) = self.iter_mut().nth(index) else { return Vec::new() };
        item.stage = Stage::Acked;
        if item.at_ms != 0 {
            acked.at_ms.push(item.at_ms);
            acked.pushed_ms.extend(Some(item.pushed_ms).filter(|at| *at != 0));
        }
        acked.at_ms.append(&mut item.more_at_ms);
        if let Some(mut notes) = item.notes.take() {
            acked.notes.append(&mut notes);
        }
        let regid = item.regid;
        let queues: SmallVec<[QueueId; 4]> = item.covers().map(|cover| cover.queue).collect();
        let moved =
            queues.into_iter().filter_map(|queue| self.settle(&regid, queue, acked)).collect();
        self.sweep();
        moved
    }

    /// Takes the acknowledged prefix of a queue out and returns where it ends.
    fn settle(&mut self, regid: &RegId, queue: QueueId, acked: &mut Acked) -> Option<Moved> {
        let (mut newest, mut messages) = (None, 0);
        for item in self.iter_mut().filter(|item| item.regid == *regid) {
            let Some(to) = item.covers().filter(|c| c.queue == queue).last().map(|c| c.to) else {
                continue;
            };
            if item.stage != Stage::Acked {
                break;
            }
            newest = Some(to);
            for cover in item.covers().filter(|cover| cover.queue == queue) {
                acked.skipped.add(cover.skipped);
                messages += cover.messages;
            }
            item.drop_covers(&queue);
        }
        newest.map(|to| Moved { regid: *regid, queue, to, messages })
    }

    /// Removes what stands for nothing more. An unacknowledged packet id stays in use; one
    /// that was never sent on this connection does not.
    fn sweep(&mut self) {
        let Some(items) = &mut self.items else { return };
        items.retain(|item| match item.stage {
            Stage::Sent => true,
            Stage::Acked | Stage::Resend => item.has_cover(),
        });
        if items.is_empty() {
            self.items = None;
        }
    }
}

/// What of `(after..to]` was skipped.
pub fn skipped_in(all: &[(Seq, Skip)], after: Seq, to: Seq) -> Skipped {
    let is_in = |(seq, _): &&(Seq, Skip)| *seq > after && *seq <= to;
    Skipped::of(all.iter().filter(is_in).map(|(_, why)| *why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::position::Epoch;

    const REG: RegId = RegId([1; 20]);
    const QUEUE: QueueId = QueueId([1; 20]);

    fn at(seq: u64) -> Position {
        Position { epoch: Epoch(1), seq: Seq(seq) }
    }

    fn sent(window: &mut Window, queue: QueueId, after: u64, to: u64) -> u16 {
        let packet_id = window.next_id();
        let cover = Cover {
            queue,
            after: Seq(after),
            seq: Seq(to),
            to: at(to),
            skipped: Skipped::default(),
            messages: 1,
        };
        window.push(InFlight {
            packet_id,
            regid: REG,
            stage: Stage::Sent,
            cover: Some(cover),
            more: Vec::new(),
            at_ms: to,
            more_at_ms: Vec::new(),
            pushed_ms: 0,
            notes: None,
        });
        packet_id
    }

    #[test]
    fn a_pointer_moves_over_the_contiguous_acknowledged_prefix_only() {
        let mut window = Window::default();
        let ids: Vec<u16> = (0..4).map(|i| sent(&mut window, QUEUE, i, i + 1)).collect();
        let mut times = Acked::default();
        assert_eq!(window.ack(ids[2], &mut times), Some(vec![]));
        assert_eq!(window.ack(ids[1], &mut times), Some(vec![]));
        assert_eq!((window.len(), window.unacknowledged()), (4, 2));
        let moved = Moved { regid: REG, queue: QUEUE, to: at(3), messages: 3 };
        assert_eq!(window.ack(ids[0], &mut times), Some(vec![moved]));
        assert_eq!(window.len(), 1);
        assert_eq!(window.ack(ids[0], &mut times), None);
        let moved = Moved { regid: REG, queue: QUEUE, to: at(4), messages: 1 };
        assert_eq!(window.ack(ids[3], &mut times), Some(vec![moved]));
        assert!(window.is_empty());
        assert_eq!(times.at_ms, [3, 2, 1, 4]);
    }

    #[test]
    fn queues_of_one_window_do_not_wait_for_each_other() {
        let mut window = Window::default();
        let other = QueueId([2; 20]);
        sent(&mut window, QUEUE, 0, 1);
        let second = sent(&mut window, other, 0, 7);
        let moved = Moved { regid: REG, queue: other, to: at(7), messages: 1 };
        assert_eq!(window.ack(second, &mut Acked::default()), Some(vec![moved]));
    }

    #[test]
    fn packet_ids_go_round_and_skip_those_in_use() {
        let mut window = Window { items: None, last_id: u16::MAX - 1 };
        assert_eq!(sent(&mut window, QUEUE, 0, 1), u16::MAX);
        assert_eq!(sent(&mut window, QUEUE, 1, 2), 1);
        window.last_id = u16::MAX - 1;
        assert_eq!(window.next_id(), 2);
    }

    #[test]
    fn a_skipped_tail_is_acknowledged_with_what_came_before() {
        let mut window = Window::default();
        let skipped = Skipped::of([Skip::Expired, Skip::Expired, Skip::Filtered].into_iter());
        assert!(!window.extend(&REG, &QUEUE, at(9), skipped));
        let id = sent(&mut window, QUEUE, 0, 1);
        assert!(window.extend(&REG, &QUEUE, at(9), skipped));
        let moved = Moved { regid: REG, queue: QUEUE, to: at(9), messages: 1 };
        let mut acked = Acked::default();
        assert_eq!(window.ack(id, &mut acked), Some(vec![moved]));
        assert_eq!(acked.skipped, skipped, "counted once, with the pointer");
    }

    #[test]
    fn what_was_forgotten_keeps_its_packet_id_and_moves_nothing() {
        let mut window = Window::default();
        let id = sent(&mut window, QUEUE, 0, 1);
        window.forget_queue(&REG, &QUEUE);
        assert_eq!(window.len(), 1);
        assert_eq!(window.ack(id, &mut Acked::default()), Some(vec![]));
        assert!(window.is_empty());
    }
}
