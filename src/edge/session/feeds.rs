//! The registrations of a connected device and how far each of their queues is.
//!
//! A feed is one registration; a lane is one queue that it follows. Feeds take
//! turns, so that one slow app does not block the others. In a feed what is urgent goes
//! first, then the own queue, then the others in rotation.

use std::sync::Arc;

pub use super::standing::{Begin, Standing, Use};
use super::{
    Effect, Output,
    marks::Marks,
    snapshots::Gathering,
    window::{Moved, Window},
};
use crate::{
    base::{
        ids::{QueueId, QueueName, RegId},
        metrics::ResumeReason,
    },
    queue::{
        plan::Jump,
        pointer::Pointer,
        position::{Epoch, Position, Seq},
    },
    service::{
        allowance::Delivered,
        deliver::{Following, Start},
        seals::{Sealer, Sealing},
        snapshots::Gather,
    },
};

/// Whether a queue may have something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// It has nothing.
    None,
    /// It may have.
    Some,
    /// It may have, and goes before the others.
    Urgent,
    /// A snapshot comes before that. Plain use has none.
    Snapshot,
}

/// One queue of a feed.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    /// How far it is. Of `Watch`, `sent` alone means something.
    pub pointer: Pointer,
    /// The epoch of what was sent last.
    pub epoch: Epoch,
    /// To be told with the next delta.
    pub jump: Option<Jump>,
    /// What is done with it.
    pub usage: Use,
    /// Whether there may be something new.
    pub news: News,
    /// Whether the stored pointer is elsewhere, and when digests are due.
    pub marks: Marks,
}

/// One registration.
#[derive(Clone, Debug)]
pub struct Feed {
    /// Its name.
    pub regid: RegId,
    /// Set if its messages are sealed.
    pub sealer: Option<Arc<Sealer>>,
    /// Control entries up to this one are in `followings` already.
    pub control: Seq,
    /// Its own queue first.
    pub followings: Vec<Following>,
    /// One for each following.
    pub lanes: Vec<Lane>,
    /// It may be held: whether it is, is asked at each look.
    pub is_gated: bool,
    rotor: u16,
}

/// All registrations of the device.
#[derive(Clone, Debug, Default)]
pub struct Feeds {
    pub(super) list: Vec<Feed>,
    turn: u16,
    /// Lanes that are given snapshots. Absent while there are none.
    #[expect(clippy::box_collection, reason = "most connections have none")]
    pub(super) gathering: Option<Box<Vec<Gathering>>>,
}

impl Lane {
    fn at(start: Start, usage: Use) -> Self {
        Self {
            pointer: Pointer::at(start.after.seq),
            epoch: start.after.epoch,
            jump: start.jump,
            usage,
            news: if usage == Use::Off { News::None } else { News::Some },
            marks: Marks::new(start.jump.is_some()),
        }
    }

    fn is_urgent(&self) -> bool {
        self.news == News::Urgent
    }

    fn at_position(at: Position, usage: Use) -> Self {
        let reason = ResumeReason::Stored;
        let start = Start { after: at, jump: None, reason, is_stored: false, gather: None };
        Self::at(start, usage)
    }
}

impl Feed {
    /// Whether the device knows that it follows this queue, so that it may be sent.
    pub(super) fn is_open(&self, lane: usize) -> bool {
        self.followings[lane].control <= self.lanes[0].pointer.sent()
    }

    /// The lane to be looked at next. `gated` waits for control entries to be sent first.
    pub fn next_lane(&self, gated: bool) -> Option<usize> {
        let ready = |lane: &usize| match self.lanes[*lane].news {
            News::None => false,
            News::Snapshot if gated => false,
            News::Some | News::Urgent | News::Snapshot => !gated || self.is_open(*lane),
        };
        let urgent = |lane: &usize| self.lanes[*lane].is_urgent() && ready(lane);
        if let Some(lane) = (0..self.lanes.len()).find(urgent) {
            return Some(lane);
        }
        if ready(&0) {
            return Some(0);
        }
        let others = self.lanes.len().saturating_sub(1);
        (0..others).map(|i| 1 + (usize::from(self.rotor) + i) % others).find(ready)
    }

    /// The next turn begins behind this lane.
    pub fn rotate(&mut self, lane: usize) {
        self.rotor = u16::try_from(lane).unwrap_or(0);
    }

    /// Every queue may have something new: it may have been opened.
    fn touch(&mut self) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.usage != Use::Off) {
            lane.news = lane.news.max(News::Some);
        }
    }

    /// The lane of a queue.
    pub fn lane_of(&self, queue: &QueueId) -> Option<usize> {
        self.followings.iter().position(|following| following.queue.id() == *queue)
    }
}

impl Feeds {
    /// How many registrations there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// A feed by its place.
    pub fn at(&self, index: usize) -> &Feed {
        &self.list[index]
    }

    /// The same, to be changed.
    pub fn at_mut(&mut self, index: usize) -> &mut Feed {
        &mut self.list[index]
    }

    /// All feeds.
    pub fn iter(&self) -> impl Iterator<Item = &Feed> {
        self.list.iter()
    }

    /// The place of a registration's feed.
    pub fn index_of(&self, regid: &RegId) -> Option<usize> {
        self.list.iter().position(|feed| feed.regid == *regid)
    }

    /// The feeds in the order of their turns, from the first that has something urgent.
    pub fn turns(&self) -> impl Iterator<Item = usize> + use<> {
        let (turn, count) = (usize::from(self.turn), self.list.len());
        let urgent = |feed: &usize| self.list[*feed].lanes.iter().any(Lane::is_urgent);
        let first = || (0..count).map(|i| (turn + i) % count).find(urgent);
        let turn = if count > 1 { first().unwrap_or(turn) } else { turn };
        (0..count).map(move |i| (turn + i) % count)
    }

    /// A feed had its turn.
    pub fn pass(&mut self, index: usize) {
        self.turn = u16::try_from(index + 1).unwrap_or(0);
    }

    /// Every queue may have something new.
    pub fn touch(&mut self) {
        self.touch_some(News::Some, |_| true);
    }

    /// These queues may have something new.
    pub fn touch_some(&mut self, news: News, is_new: impl Fn(&QueueId) -> bool) {
        for feed in &mut self.list {
            for (following, lane) in feed.followings.iter().zip(&mut feed.lanes) {
                if lane.usage != Use::Off && lane.news < news && is_new(&following.queue.id()) {
                    lane.news = news;
                }
            }
        }
    }

    /// The queues of which the connection hears.
    pub fn heard(&self) -> impl Iterator<Item = QueueId> {
        let heard = |(following, lane): (&Following, &Lane)| {
            (lane.usage != Use::Off).then_some(following.queue.id())
        };
        self.list
            .iter()
            .flat_map(move |feed| feed.followings.iter().zip(&feed.lanes).filter_map(heard))
    }

    /// The acknowledged prefix of a queue reaches `to`.
    pub fn acknowledge(&mut self, moved: Moved, out: &mut Output) {
        let Moved { regid, queue, to: position, messages } = moved;
        let Some(index) = self.index_of(&regid) else { return };
        let feed = &mut self.list[index];
        let Some(at) = feed.lane_of(&queue) else { return };
        let lane = &mut feed.lanes[at];
        let is_unstored = lane.marks.take_unstored();
        if lane.pointer.ack(position.seq) || is_unstored {
            let delivered = Delivered::of(&feed.followings, at, messages);
            out.effects.push(Effect::Acknowledge { regid, queue, position, delivered });
        }
    }

    /// Takes what was read over. What is delivered already goes on where it is, unless
    /// everything begins anew. Returns the registrations that are no more.
    pub fn merge(
        &mut self,
        standings: Vec<Standing>,
        usage: &dyn Fn(&RegId, &QueueName) -> Use,
        begin: Begin,
        window: &mut Window,
        out: &mut Output,
    ) -> Vec<RegId> {
        if matches!(begin, Begin::Reset | Begin::Stated) {
            window.forget_all();
        }
        let mut old = std::mem::replace(&mut self.list, Vec::with_capacity(standings.len()));
        for standing in standings {
            let begin = match (begin, standing.is_named) {
                (Begin::Restated, true) => {
                    window.forget(&standing.regid);
                    Begin::Stated
                }
                (Begin::Restated, false) => Begin::Stored,
                (other, _) => other,
            };
            let index = old.iter().position(|feed| feed.regid == standing.regid);
            let before = index.map(|index| old.swap_remove(index));
            let was_gated = before.as_ref().is_some_and(|feed| feed.is_gated);
            let mut gathers = Vec::new();
            let mut merged = merge_one(before, standing, usage, begin, (window, &mut gathers), out);
            if was_gated || merged.is_gated {
                merged.touch();
            }
            self.list.push(merged);
            for (at, gather) in gathers {
                self.gather(self.list.len() - 1, at, gather);
            }
        }
        let gone = old.iter().map(|feed| feed.regid).collect();
        for feed in old {
            window.forget(&feed.regid);
            feed.followings.iter().for_each(|f| out.effects.push(Effect::Unfollow(f.queue.id())));
        }
        self.sweep_gathering();
        gone
    }

    /// A control entry of the own queue says that one more queue is followed.
    pub fn follow(
        &mut self,
        index: usize,
        following: Following,
        usage: Use,
        window: &mut Window,
        out: &mut Output,
    ) {
        let feed = &mut self.list[index];
        let lane = Lane::at_position(following.since, usage);
        if usage != Use::Off {
            out.effects.push(Effect::Follow(following.queue.clone()));
        }
        match feed.lane_of(&following.queue.id()) {
            Some(at) => {
                window.forget_queue(&feed.regid, &following.queue.id());
                feed.followings[at] = following;
                feed.lanes[at] = lane;
            }
            None => {
                feed.followings.reserve_exact(1);
                feed.followings.push(following);
                feed.lanes.reserve_exact(1);
                feed.lanes.push(lane);
            }
        }
    }

    /// A control entry of the own queue says that a queue is no longer followed.
    pub fn unfollow(
        &mut self,
        index: usize,
        queue: &QueueId,
        window: &mut Window,
        out: &mut Output,
    ) {
        let feed = &mut self.list[index];
        let Some(at) = feed.lane_of(queue).filter(|at| *at != 0) else { return };
        window.forget_queue(&feed.regid, queue);
        feed.followings.remove(at);
        feed.lanes.remove(at);
        out.effects.push(Effect::Unfollow(*queue));
    }

    /// Goes on with what a parked window holds: those ranges count as sent.
    pub fn restore(&mut self, window: &mut Window) {
        for feed in &mut self.list {
            for (following, lane) in feed.followings.iter().zip(&mut feed.lanes) {
                let (regid, queue) = (&feed.regid, &following.queue.id());
                window.drop_up_to(regid, queue, lane.pointer.acked());
                // A following that began anew has nothing older than itself in the window.
                let goes_on = matches!(lane.jump, None | Some(Jump::New));
                let fits = lane.usage == Use::Deliver
                    && goes_on
                    && window.covers_of(regid, queue).all(|cover| cover.to.epoch == lane.epoch);
                if !fits {
                    window.forget_queue(regid, queue);
                    continue;
                }
                if let Some(last) = window.covers_of(regid, queue).last() {
                    lane.pointer.send(last.to.seq);
                }
            }
        }
    }
}

fn merge_one(
    before: Option<Feed>,
    standing: Standing,
    usage: &dyn Fn(&RegId, &QueueName) -> Use,
    begin: Begin,
    (window, gathers): (&mut Window, &mut Vec<(usize, Gather)>),
    out: &mut Output,
) -> Feed {
    let Standing { regid, control, followings, starts, heads, is_named: _, is_gated, sealing } =
        standing;
    assert_eq!(followings.len(), starts.len(), "a start for each following");
    let (is_new, is_open) = (before.is_none(), sealing == Sealing::Open);
    let mut lanes = Vec::with_capacity(followings.len());
    for (i, following) in followings.iter().enumerate() {
        let id = following.queue.id();
        let usage = match sealing {
            Sealing::Open | Sealing::Sealed(_) => usage(&regid, following.queue.name()),
            Sealing::Refused => Use::Off,
        };
        let old = before.as_ref().and_then(|feed| {
            let at = feed.lane_of(&id)?;
            Some((&feed.followings[at], feed.lanes[at]))
        });
        if let Some((known, lane)) = old
            && !matches!(begin, Begin::Reset | Begin::Stated)
            && lane.usage == usage
            && (known.since, known.control) == (following.since, following.control)
        {
            lanes.push(lane);
            continue;
        }
        window.forget_queue(&regid, &id);
        let lane = match usage {
            Use::Deliver => delivered(
                starts[i],
                heads.get(i),
                begin,
                is_new && following.control == Seq(0),
                out,
            ),
            Use::Watch => {
                Lane::at_position(Position { epoch: following.since.epoch, seq: control }, usage)
            }
            Use::Off => Lane::at(starts[i], usage),
        };
        // Who lacks a snapshot is where the gateway can tell that it does.
        let gather = starts[i].gather.filter(|_| usage == Use::Deliver && is_open);
        gathers.extend(gather.map(|gather| (i, gather)));
        let start = Start { gather, ..starts[i] };
        if let Some(position) = stored(start, usage, begin, heads.get(i)) {
            out.effects.push(moves(regid, id, position));
        }
        match usage {
            Use::Deliver | Use::Watch => out.effects.push(Effect::Follow(following.queue.clone())),
            Use::Off if old.is_some() => out.effects.push(Effect::Unfollow(id)),
            Use::Off => {}
        }
        lanes.push(lane);
    }
    for known in before.iter().flat_map(|feed| &feed.followings) {
        let id = known.queue.id();
        if !followings.iter().any(|following| following.queue.id() == id) {
            window.forget_queue(&regid, &id);
            out.effects.push(Effect::Unfollow(id));
        }
    }
    Feed { regid, sealer: sealing.into_sealer(), control, followings, lanes, is_gated, rotor: 0 }
}

/// Where the stored pointer moves when a lane begins, if it does.
fn stored(start: Start, usage: Use, begin: Begin, head: Option<&Position>) -> Option<Position> {
    let goes_on = start.jump.is_none() && start.gather.is_none();
    let stored = match (usage, begin, head) {
        (Use::Deliver, Begin::Head, Some(head)) => Some(*head),
        (Use::Deliver, Begin::Stated, _) if goes_on => Some(start.after),
        _ => None,
    };
    stored.filter(|position| !start.is_stored || start.after != *position)
}

/// A pointer moves, and nothing is delivered by that.
fn moves(regid: RegId, queue: QueueId, position: Position) -> Effect {
    Effect::Acknowledge { regid, queue, position, delivered: None }
}

/// A lane that is delivered from now on.
fn delivered(
    start: Start,
    head: Option<&Position>,
    begin: Begin,
    is_announced: bool,
    out: &mut Output,
) -> Lane {
    out.effects.push(Effect::Stands(start.reason));
    match (begin, head) {
        (Begin::Head, Some(head)) => Lane::at_position(*head, Use::Deliver),
        (Begin::Announced, _) if is_announced => {
            let jump = start.jump.or(Some(Jump::New));
            Lane::at(Start { jump, ..start }, Use::Deliver)
        }
        (_, _) => Lane::at(start, Use::Deliver),
    }
}
