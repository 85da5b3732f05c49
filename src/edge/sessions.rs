//! Persistent plain sessions between two connections of a device.
//!
//! A session is live while its connection is, parked afterwards, and gone when its
//! expiry has passed. A newer connection that takes over waits for the older one to
//! park. Bounded; what finds no room is not parked, which costs a redelivery with
//! new packet ids.

use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::{DashMap, Entry};
use tokio::sync::oneshot;

use super::session::Parked;
use crate::base::{ids::DeviceId, maps};

/// Which connection a live session belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub u64);

/// What a new connection finds.
#[derive(Debug)]
pub enum Claim {
    /// Nothing: session present 0.
    Nothing,
    /// A parked session.
    Found(Box<Parked>),
    /// The older connection is ending; it answers here, or drops it.
    Ending(oneshot::Receiver<Box<Parked>>),
}

enum Slot {
    Live(Token),
    Claimed(Token, oneshot::Sender<Box<Parked>>),
    Parked { session: Box<Parked>, expires_s: u64 },
}

/// All persistent sessions of a node.
pub struct Sessions {
    slots: DashMap<DeviceId, Slot>,
    parked: AtomicUsize,
    parked_max: usize,
}

impl Sessions {
    /// With room for so many parked sessions.
    pub fn new(parked_max: usize) -> Self {
        Self { slots: DashMap::new(), parked: AtomicUsize::new(0), parked_max }
    }

    /// A new connection wants to go on with what is there.
    pub fn claim(&self, device: DeviceId, now_s: u64) -> Claim {
        let Entry::Occupied(mut occupied) = self.slots.entry(device) else { return Claim::Nothing };
        match occupied.get() {
            Slot::Parked { .. } => {
                self.parked.fetch_sub(1, Ordering::Relaxed);
                match occupied.remove() {
                    Slot::Parked { session, expires_s } if now_s < expires_s => {
                        Claim::Found(session)
                    }
                    Slot::Parked { .. } | Slot::Live(_) | Slot::Claimed(..) => Claim::Nothing,
                }
            }
            Slot::Live(token) | Slot::Claimed(token, _) => {
                let (answer, claim) = oneshot::channel();
                let token = *token;
                occupied.insert(Slot::Claimed(token, answer));
                Claim::Ending(claim)
            }
        }
    }

    /// A connection with a persistent session begins. What was there is gone.
    pub fn begin(&self, device: DeviceId, token: Token) {
        if let Some(Slot::Parked { .. }) = self.slots.insert(device, Slot::Live(token)) {
            self.parked.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A connection begins that wants nothing kept.
    pub fn discard(&self, device: &DeviceId) {
        if let Some((_, Slot::Parked { .. })) = self.slots.remove(device) {
            self.parked.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A connection with a persistent session ends, leaving something behind or not.
    pub fn end(&self, device: DeviceId, token: Token, left: Option<Parked>, expires_s: u64) {
        let Entry::Occupied(mut occupied) = self.slots.entry(device) else { return };
        match occupied.get() {
            Slot::Live(owner) if *owner == token => {}
            Slot::Claimed(owner, _) if *owner == token => {
                if let (Slot::Claimed(_, answer), Some(session)) = (occupied.remove(), left) {
                    // The claimant may have gone; then nobody wants it.
                    drop(answer.send(Box::new(session)));
                }
                return;
            }
            Slot::Live(_) | Slot::Claimed(..) | Slot::Parked { .. } => return,
        }
        match left {
            Some(session) if self.parked.load(Ordering::Relaxed) < self.parked_max => {
                self.parked.fetch_add(1, Ordering::Relaxed);
                occupied.insert(Slot::Parked { session: Box::new(session), expires_s });
            }
            Some(_) | None => {
                occupied.remove();
            }
        }
    }

    /// Drops what has expired.
    pub fn sweep(&self, now_s: u64) {
        let mut dropped = 0;
        self.slots.retain(|_, slot| match slot {
            Slot::Parked { expires_s, .. } if *expires_s <= now_s => {
                dropped += 1;
                false
            }
            Slot::Parked { .. } | Slot::Live(_) | Slot::Claimed(..) => true,
        });
        self.parked.fetch_sub(dropped, Ordering::Relaxed);
        maps::shrink(&self.slots);
    }

    /// How many are parked.
    #[cfg(test)]
    pub fn parked(&self) -> usize {
        self.parked.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceId = DeviceId([7; 10]);

    fn parked() -> Parked {
        Parked { subscriptions: Vec::new(), items: Vec::new(), last_id: 9 }
    }

    #[test]
    fn a_parked_session_is_found_once_and_until_it_expires() {
        let sessions = Sessions::new(10);
        sessions.begin(DEVICE, Token(1));
        sessions.end(DEVICE, Token(1), Some(parked()), 100);
        assert_eq!(sessions.parked(), 1);
        assert!(matches!(sessions.claim(DEVICE, 99), Claim::Found(_)));
        assert!(matches!(sessions.claim(DEVICE, 99), Claim::Nothing));
        sessions.begin(DEVICE, Token(2));
        sessions.end(DEVICE, Token(2), Some(parked()), 100);
        sessions.sweep(100);
        assert_eq!((sessions.parked(), sessions.slots.len()), (0, 0));
    }

    #[test]
    fn who_takes_over_gets_what_the_older_connection_parks() {
        let sessions = Sessions::new(10);
        sessions.begin(DEVICE, Token(1));
        let Claim::Ending(mut claim) = sessions.claim(DEVICE, 0) else { panic!("must wait") };
        sessions.end(DEVICE, Token(1), Some(parked()), 100);
        assert_eq!(claim.try_recv().map(|p| p.last_id), Ok(9));
    }

    #[test]
    fn a_late_end_of_an_older_connection_disturbs_nobody() {
        let sessions = Sessions::new(10);
        sessions.begin(DEVICE, Token(1));
        sessions.begin(DEVICE, Token(2));
        sessions.end(DEVICE, Token(1), Some(parked()), 100);
        assert_eq!(sessions.parked(), 0);
        sessions.end(DEVICE, Token(2), Some(parked()), 100);
        assert_eq!(sessions.parked(), 1);
    }

    #[test]
    fn what_finds_no_room_is_not_parked() {
        let sessions = Sessions::new(0);
        sessions.begin(DEVICE, Token(1));
        sessions.end(DEVICE, Token(1), Some(parked()), 100);
        assert_eq!((sessions.parked(), sessions.slots.len()), (0, 0));
    }
}
