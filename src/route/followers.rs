//! Who on this node follows a queue, and how they are woken.
//!
//! A nudge carries no data: it sets a bit and wakes the task that owns the
//! connection, which then looks at the queues it follows. A lost nudge costs a
//! delay until the next heartbeat, never a message.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;
use dashmap::{DashMap, Entry};

use crate::base::ids::QueueId;

/// Why a connection was woken: a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reasons(pub u8);

impl Reasons {
    /// A queue that it follows has new entries.
    pub const DELIVER: Self = Self(1);
    /// Another connection of the same device took over.
    pub const TAKEN_OVER: Self = Self(2);
    /// The device's registrations changed behind its back.
    pub const REFRESH: Self = Self(4);
    /// A deadline may have passed.
    pub const TICK: Self = Self(8);
    /// The node is going away.
    pub const DRAIN: Self = Self(16);

    /// Whether a reason is among these.
    pub fn has(self, reason: Self) -> bool {
        self.0 & reason.0 != 0
    }
}

/// The handle by which one connection's task is woken.
#[derive(Debug, Default)]
pub struct Nudge {
    reasons: AtomicU8,
    waker: AtomicWaker,
}

impl Nudge {
    /// Adds a reason and wakes the owner.
    pub fn nudge(&self, reason: Reasons) {
        if self.reasons.fetch_or(reason.0, Ordering::AcqRel) & reason.0 == 0 {
            self.waker.wake();
        }
    }

    /// Takes the reasons that came since the last time, or waits for one. Only
    /// the owner polls. Cancel-safe: reasons stay until they are taken.
    pub fn poll_reasons(&self, cx: &mut Context<'_>) -> Poll<Reasons> {
        let take = || match self.reasons.swap(0, Ordering::AcqRel) {
            0 => Poll::Pending,
            bits => Poll::Ready(Reasons(bits)),
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

/// The followers of every queue that a connection on this node follows.
#[derive(Default)]
pub struct Followers {
    queues: DashMap<QueueId, Group>,
}

enum Group {
    One(Arc<Nudge>),
    Many(HashMap<usize, Arc<Nudge>>),
}

// The address is a name, never followed; the `Arc` beside it keeps it from being
// given to another nudge.
fn address(nudge: &Arc<Nudge>) -> usize {
    Arc::as_ptr(nudge).addr()
}

impl Followers {
    /// From now on `nudge` is woken when the queue grows. Twice is once.
    pub fn add(&self, queue: QueueId, nudge: &Arc<Nudge>) {
        match self.queues.entry(queue) {
            Entry::Vacant(vacant) => {
                vacant.insert(Group::One(nudge.clone()));
            }
            Entry::Occupied(mut occupied) => occupied.get_mut().add(nudge),
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

    /// Wakes all followers of a queue. Returns how many there are.
    pub fn nudge(&self, queue: &QueueId) -> usize {
        match self.queues.get(queue).as_deref() {
            None => 0,
            Some(Group::One(one)) => {
                one.nudge(Reasons::DELIVER);
                1
            }
            Some(Group::Many(many)) => {
                many.values().for_each(|one| one.nudge(Reasons::DELIVER));
                many.len()
            }
        }
    }
}

impl Group {
    fn add(&mut self, nudge: &Arc<Nudge>) {
        match self {
            Self::One(one) if Arc::ptr_eq(one, nudge) => {}
            Self::One(one) => {
                let pair = [(address(one), one.clone()), (address(nudge), nudge.clone())];
                *self = Self::Many(HashMap::from(pair));
            }
            Self::Many(many) => {
                many.insert(address(nudge), nudge.clone());
            }
        }
    }

    /// Returns whether nobody is left.
    fn remove(&mut self, nudge: &Arc<Nudge>) -> bool {
        match self {
            Self::One(one) => Arc::ptr_eq(one, nudge),
            Self::Many(many) => {
                many.remove(&address(nudge));
                many.is_empty()
            }
        }
    }
}
