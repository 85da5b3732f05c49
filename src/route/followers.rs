//! Who on this node follows a queue, and how they are woken.
//!
//! A nudge carries no data: it sets a bit and wakes the task that owns the
//! connection, which then looks at the queues it follows. A lost nudge costs a
//! delay until the next heartbeat, never a message. Crowds are woken by `lanes`.

use std::{
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;
use dashmap::Entry;

use super::lanes::Lanes;
use crate::{
    base::{
        ids::{Queue, QueueId, QueueName},
        maps::{self, Shared},
        metrics::Metrics,
    },
    queue::entry::Priority,
};

/// Why a connection was woken: a set of bits. Above the lowest eight each stands for some of
/// the queues, so that it looks at those only which may have something new: forty for all that
/// is, sixteen for what is urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reasons(pub u64);

impl Reasons {
    /// A queue that it follows has new entries: see [`Reasons::new_in`].
    pub const DELIVER: Self = Self(1);
    /// Another connection of the same device took over.
    pub const TAKEN_OVER: Self = Self(2);
    /// The device's registrations changed behind its back.
    pub const REFRESH: Self = Self(4);
    /// A deadline may have passed.
    pub const TICK: Self = Self(8);
    /// The node is going away.
    pub const DRAIN: Self = Self(16);
    /// The device is no more.
    pub const REVOKED: Self = Self(32);
    /// It was woken by a portion, which waits until it is at work: see [`Followers::served`].
    pub const PACED: Self = Self(64);
    /// The connection is no more.
    const GONE: Self = Self(128);
    /// There is none.
    pub const NONE: Self = Self(0);
    /// Any of its queues may have something new for it.
    pub const ALL_QUEUES: Self = Self(0x0000_FFFF_FFFF_FF00 | Self::DELIVER.0);
    /// Any of these bits: some queue has something urgent.
    const URGENT: Self = Self(0xFFFF_0000_0000_0000);

    /// This queue has new entries, the most urgent of which has this priority.
    pub fn new_in(queue: &QueueId, priority: Priority) -> Self {
        let urgent = match priority {
            Priority::High => Self::urgent_bit_of(queue),
            Priority::Normal | Priority::Low => 0,
        };
        Self(Self::DELIVER.0 | Self::bit_of(queue) | urgent)
    }

    /// Whether a reason is among these.
    pub fn has(self, reason: Self) -> bool {
        self.0 & reason.0 != 0
    }

    /// Whether this queue may have new entries.
    pub fn concern(self, queue: &QueueId) -> bool {
        self.0 & Self::bit_of(queue) != 0
    }

    /// Whether some queue may have something that goes before what is new in others.
    pub fn are_urgent(self) -> bool {
        self.has(Self::URGENT)
    }

    /// Whether this one may.
    pub fn are_urgent_for(self, queue: &QueueId) -> bool {
        self.concern(queue) && self.0 & Self::urgent_bit_of(queue) != 0
    }

    fn bit_of(queue: &QueueId) -> u64 {
        // Ids are hashes: any of their bytes is as good as another.
        let [.., byte] = queue.0;
        1 << (8 + u32::from(byte) % 40)
    }

    fn urgent_bit_of(queue: &QueueId) -> u64 {
        let [.., byte, _] = queue.0;
        1 << (48 + u32::from(byte) % 16)
    }
}

/// The handle by which one connection's task is woken.
#[derive(Debug, Default)]
pub struct Nudge {
    waker: AtomicWaker,
    reasons: AtomicU64,
    /// When it is woken without a reason from outside, as who wakes it counts time; 0: never.
    alarm: AtomicU32,
    opened: u64,
}

impl Nudge {
    /// Of a connection with this place in the order of opening.
    pub fn of(opened: u64) -> Self {
        Self { opened, ..Self::default() }
    }

    /// The connection's place in the order of opening.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// When it is to be woken; 0: never.
    pub fn alarm(&self) -> u32 {
        self.alarm.load(Ordering::Acquire)
    }

    /// When it is to be woken.
    pub fn set_alarm(&self, at: u32) {
        self.alarm.store(at, Ordering::Release);
    }

    /// Adds a reason and wakes the owner.
    pub fn nudge(&self, reason: Reasons) {
        if self.reasons.fetch_or(reason.0, Ordering::AcqRel) & reason.0 != reason.0 {
            self.waker.wake();
        }
    }

    /// The same as one of a portion. Returns whether the portion has to wait for it.
    pub(super) fn nudge_paced(&self, reason: Reasons) -> bool {
        let reason = reason.0 | Reasons::PACED.0;
        let before = self.reasons.fetch_or(reason, Ordering::AcqRel);
        if before & Reasons::GONE.0 != 0 {
            return false;
        }
        if before & reason != reason {
            self.waker.wake();
        }
        before & Reasons::PACED.0 == 0
    }

    /// Keeps reasons that the owner took for when it takes them next. Wakes nobody, and no
    /// portion waits for it again.
    pub fn put_back(&self, reasons: Reasons) {
        self.reasons.fetch_or(reasons.0 & !Reasons::PACED.0, Ordering::AcqRel);
    }

    /// Takes the reasons that came since the last time, of which there may be none.
    pub fn take(&self) -> Reasons {
        Reasons(self.reasons.swap(0, Ordering::AcqRel))
    }

    /// The connection is no more. Returns the reasons that it did not take.
    pub fn leave(&self) -> Reasons {
        Reasons(self.reasons.fetch_or(Reasons::GONE.0, Ordering::AcqRel))
    }

    /// Takes the reasons that came since the last time, or waits for one. Only
    /// the owner polls. Cancel-safe: reasons stay until they are taken.
    pub fn poll_reasons(&self, cx: &mut Context<'_>) -> Poll<Reasons> {
        let take = || match self.take() {
            Reasons(0) => Poll::Pending,
            reasons => Poll::Ready(reasons),
        };
        if let Poll::Ready(reasons) = take() {
            return Poll::Ready(reasons);
        }
        self.waker.register(cx.waker());
        take()
    }

    /// [`Nudge::poll_reasons`] as a future.
    pub async fn reasons(&self) -> Reasons {
        std::future::poll_fn(|cx| self.poll_reasons(cx)).await
    }
}

/// A nudge in a set: itself and no other, however alike. Eight bytes.
#[derive(Clone, Debug)]
pub struct OneOf(pub Arc<Nudge>);

impl PartialEq for OneOf {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for OneOf {}

impl Hash for OneOf {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        // The address is a name, never followed; while it is in a set it is not given to another.
        Arc::as_ptr(&self.0).addr().hash(hasher);
    }
}

/// The followers of every queue that a connection on this node follows.
pub struct Followers {
    queues: Shared<QueueId, Group>,
    lanes: Lanes,
}

// Most queues have one follower on a node: that one costs no allocation.
enum Group {
    One(Arc<Nudge>),
    Many(Box<Many>),
}

struct Many {
    queue: Queue,
    nudges: HashSet<OneOf>,
}

impl Followers {
    /// Nobody follows anything yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { queues: Shared::default(), lanes: Lanes::new(metrics) }
    }

    /// The form of a queue's name that its followers share, if it has several.
    pub fn named(&self, name: &QueueName) -> Queue {
        let fresh = Queue::from(name.clone());
        match self.queues.get(&fresh.id()).as_deref() {
            Some(Group::Many(many)) => many.queue.clone(),
            Some(Group::One(_)) | None => fresh,
        }
    }

    /// From now on `nudge` is woken when the queue grows. Twice is once.
    pub fn add(&self, queue: &Queue, nudge: &Arc<Nudge>) {
        match self.queues.entry(queue.id()) {
            Entry::Vacant(vacant) => {
                vacant.insert(Group::One(nudge.clone()));
            }
            Entry::Occupied(mut occupied) => occupied.get_mut().add(queue, nudge),
        }
    }

    /// No longer.
    pub fn remove(&self, queue: QueueId, nudge: &Arc<Nudge>) {
        if let Entry::Occupied(mut occupied) = self.queues.entry(queue)
            && occupied.get_mut().remove(nudge)
        {
            occupied.remove();
        }
    }

    /// Gives back what a crowd left.
    pub fn shrink(&self) {
        maps::shrink(&self.queues);
    }

    /// Wakes all followers of a queue that grew by something of this priority: one who
    /// follows it alone at once, a crowd in portions, by [`Followers::wake_crowds`].
    pub fn nudge(&self, queue: &QueueId, priority: Priority) {
        let Some(group) = self.queues.get(queue) else { return };
        match (&*group, priority) {
            (Group::One(one), Priority::High | Priority::Normal) => {
                one.nudge(Reasons::new_in(queue, priority));
            }
            (Group::One(_), Priority::Low) | (Group::Many(_), _) => {
                self.lanes.grew(queue, priority);
            }
        }
    }

    /// Gives crowds to the lanes until it is aborted: a task of its own, because a large one
    /// takes milliseconds, for which no owner shall wait.
    pub async fn wake_crowds(self: Arc<Self>) {
        loop {
            for (queue, priority) in self.lanes.grown().await {
                self.wake_crowd(&queue, priority);
            }
        }
    }

    fn wake_crowd(&self, queue: &QueueId, priority: Priority) {
        let all = || match self.queues.get(queue).as_deref() {
            Some(Group::One(one)) => vec![one.clone()],
            Some(Group::Many(many)) => many.nudges.iter().map(|one| one.0.clone()).collect(),
            None => Vec::new(),
        };
        self.lanes.add(queue, priority, all);
    }

    /// A connection takes these reasons up, or ends with them.
    pub fn served(&self, reasons: Reasons) {
        if reasons.has(Reasons::PACED) {
            self.lanes.served();
        }
    }

    /// For once a second: wakes the next portion if nobody of the last one does anything.
    pub fn look(&self) {
        self.lanes.look();
    }
}

impl Group {
    fn add(&mut self, queue: &Queue, nudge: &Arc<Nudge>) {
        match self {
            Self::One(one) if Arc::ptr_eq(one, nudge) => {}
            Self::One(one) => {
                let nudges = HashSet::from([OneOf(one.clone()), OneOf(nudge.clone())]);
                *self = Self::Many(Box::new(Many { queue: queue.clone(), nudges }));
            }
            Self::Many(many) => {
                many.nudges.insert(OneOf(nudge.clone()));
            }
        }
    }

    /// Returns whether nobody is left.
    fn remove(&mut self, nudge: &Arc<Nudge>) -> bool {
        match self {
            Self::One(one) => Arc::ptr_eq(one, nudge),
            Self::Many(many) => {
                many.nudges.remove(&OneOf(nudge.clone()));
                shrink(&mut many.nudges);
                many.nudges.is_empty()
            }
        }
    }
}

/// Gives back what a set held when it was eight times as large.
pub fn shrink(set: &mut HashSet<OneOf>) {
    if set.capacity() > 64 && set.len() < set.capacity() / 8 {
        set.shrink_to(set.len() * 2);
    }
}
