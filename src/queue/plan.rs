//! "I stand at P": the whole rule, as one pure function.

use super::{
    log::Log,
    position::{Position, Seq},
};

/// What a consumer and the gateway know of the consumer's place in one queue.
#[derive(Clone, Copy, Debug)]
pub struct Stand {
    /// What the consumer says.
    pub claim: Claim,
    /// What the gateway stored of it, if anything.
    pub stored: Option<Position>,
    /// Where its following began: it gets nothing at or before it.
    pub since: Position,
}

/// What a consumer says of its place.
#[derive(Clone, Copy, Debug)]
pub enum Claim {
    /// It stands where the gateway stored it.
    Stored,
    /// It has no position.
    Nothing,
    /// It stands here.
    At {
        /// The position.
        position: Position,
        /// Whether it bears our tag: then we gave it.
        is_genuine: bool,
    },
}

/// Why deltas do not continue at the stated position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jump {
    /// The consumer has no position in what it follows now.
    New,
    /// Entries that it had were lost or replaced in a newer epoch.
    EpochChanged,
    /// Its position is older than what is held.
    Overflow,
    /// It has proof of entries that the gateway lost.
    Ahead,
    /// A snapshot is smaller than the changes that it missed: never of a plan, see `snapshots`.
    Smaller,
}

/// The answer to a stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncPlan {
    /// Deltas begin after this number.
    pub after: Seq,
    /// Set if that is not where the consumer stood.
    pub jump: Option<Jump>,
    /// The stated position proves a loss: raise the alarm and a new epoch.
    pub proves_loss: bool,
    /// The stated position was above head without proof: counted, not believed.
    pub is_forged: bool,
}

/// Where deltas begin for a consumer that stands at `stand` of a queue whose
/// oldest held day is `oldest_day`.
///
/// A stated position wins over the stored one. `(e, s)` continues iff the entry
/// at s bears e, otherwise after the last surviving entry of e; never below the
/// floor and never below `since`.
pub fn plan(log: &Log, oldest_day: u32, stand: Stand) -> SyncPlan {
    let floor = log.floor(oldest_day);
    let since = resolve(log, floor, stand.since).0;
    let answer = |(after, jump): (Seq, Option<Jump>)| {
        let jump = if after < floor { Some(Jump::Overflow) } else { jump };
        let after = after.max(floor);
        let jump = if after < since { Some(Jump::New) } else { jump };
        SyncPlan { after: after.max(since), jump, proves_loss: false, is_forged: false }
    };
    let stored = |log| match stand.stored {
        Some(position) => resolve(log, floor, position),
        None => (since, None),
    };
    match stand.claim {
        Claim::Stored => answer(stored(log)),
        Claim::Nothing => answer((since, Some(Jump::New))),
        Claim::At { position, .. } if !is_beyond(log, position) => {
            answer(resolve(log, floor, position))
        }
        Claim::At { position, is_genuine: true } => {
            let (after, _) = resolve(log, floor, position);
            SyncPlan { proves_loss: true, ..answer((after, Some(Jump::Ahead))) }
        }
        Claim::At { is_genuine: false, .. } => {
            let (after, _) = stored(log);
            SyncPlan { is_forged: true, ..answer((after, Some(Jump::New))) }
        }
    }
}

/// Whether a position names an entry that the log never gave.
fn is_beyond(log: &Log, position: Position) -> bool {
    let newest = log.head_position(position.epoch);
    position.seq > Seq(0)
        && (position.seq > newest.seq && position.epoch >= newest.epoch
            || position.epoch > newest.epoch)
}

/// The newest entry that the position and the log have in common, and why it is
/// not the position itself.
fn resolve(log: &Log, floor: Seq, position: Position) -> (Seq, Option<Jump>) {
    if position.seq == Seq(0) || log.epoch_at(position.seq) == Some(position.epoch) {
        return (position.seq, None);
    }
    if log.is_forgotten(position) {
        return (position.seq, None);
    }
    if position.epoch > log.head_position(position.epoch).epoch {
        return (log.head().min(position.seq), Some(Jump::EpochChanged));
    }
    match log.last_of(position.epoch) {
        Some(last) => (last.min(position.seq), Some(Jump::EpochChanged)),
        None => (floor.min(position.seq), Some(Jump::Overflow)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::position::Epoch;

    const fn at(epoch: u32, seq: u64) -> Position {
        Position { epoch: Epoch(epoch), seq: Seq(seq) }
    }

    /// Days 1, 1, 2, 2 in epoch 1, then two entries of epoch 2 on day 3.
    fn log() -> Log {
        let mut log = Log::default();
        for (day, epoch) in [(1, 1), (1, 1), (2, 1), (2, 1), (3, 2), (3, 2)] {
            log.append(day, Epoch(epoch));
        }
        log
    }

    fn stated(position: Position, is_genuine: bool, since: Position) -> SyncPlan {
        let claim = Claim::At { position, is_genuine };
        plan(&log(), 1, Stand { claim, stored: None, since })
    }

    fn outcome(plan: SyncPlan) -> (u64, Option<Jump>) {
        (plan.after.0, plan.jump)
    }

    #[test]
    fn a_position_that_the_log_knows_continues_there() {
        assert_eq!(outcome(stated(at(1, 3), false, at(1, 0))), (3, None));
        assert_eq!(outcome(stated(at(2, 6), false, at(1, 0))), (6, None));
        assert_eq!(outcome(stated(at(1, 0), false, at(1, 0))), (0, None));
    }

    #[test]
    fn a_number_that_changed_its_epoch_continues_after_the_last_common_entry() {
        assert_eq!(outcome(stated(at(1, 6), false, at(1, 0))), (4, Some(Jump::EpochChanged)));
        assert_eq!(outcome(stated(at(1, 9), true, at(1, 0))), (4, Some(Jump::EpochChanged)));
    }

    #[test]
    fn a_device_behind_the_floor_gets_what_is_held() {
        let stand = Stand {
            claim: Claim::At { position: at(1, 1), is_genuine: false },
            stored: None,
            since: at(1, 0),
        };
        assert_eq!(outcome(plan(&log(), 2, stand)), (2, Some(Jump::Overflow)));
        assert_eq!(outcome(plan(&log(), 9, stand)), (6, Some(Jump::Overflow)));
    }

    #[test]
    fn a_device_that_stood_at_the_head_of_a_quiet_week_has_missed_nothing() {
        let mut log = Log::default();
        for _ in 0..5 {
            log.append(1, Epoch(1));
        }
        log.append(9, Epoch(1));
        log.trim(2);
        let at = |seq| Stand {
            claim: Claim::At { position: at(1, seq), is_genuine: false },
            stored: None,
            since: at(1, 0),
        };
        assert_eq!(outcome(plan(&log, 2, at(5))), (5, None));
        assert_eq!(outcome(plan(&log, 2, at(4))), (5, Some(Jump::Overflow)));
    }

    #[test]
    fn s5_a_position_above_head_proves_a_loss_only_with_our_tag() {
        let proof = stated(at(2, 9), true, at(1, 0));
        assert!(proof.proves_loss && !proof.is_forged);
        assert_eq!(outcome(proof), (6, Some(Jump::Ahead)));
        let forged = stated(at(2, 9), false, at(1, 3));
        assert!(!forged.proves_loss && forged.is_forged);
        assert_eq!(outcome(forged), (3, Some(Jump::New)));
        assert!(stated(at(7, 2), true, at(1, 0)).proves_loss);
    }

    #[test]
    fn nothing_before_the_following_began_is_delivered() {
        assert_eq!(outcome(stated(at(1, 1), false, at(1, 3))), (3, Some(Jump::New)));
        let fresh = Stand { claim: Claim::Nothing, stored: None, since: at(1, 3) };
        assert_eq!(outcome(plan(&log(), 1, fresh)), (3, Some(Jump::New)));
    }

    #[test]
    fn a_following_that_began_at_lost_entries_begins_after_the_last_survivor() {
        let stand = Stand { claim: Claim::Stored, stored: None, since: at(1, 6) };
        assert_eq!(outcome(plan(&log(), 1, stand)), (4, None));
    }

    #[test]
    fn where_nothing_is_stated_the_stored_pointer_answers() {
        let stand = Stand { claim: Claim::Stored, stored: Some(at(1, 2)), since: at(1, 0) };
        assert_eq!(outcome(plan(&log(), 1, stand)), (2, None));
    }
}
