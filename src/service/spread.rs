//! Broadcasts with a rate: followers see the entry one after the other.
//!
//! Until an entry is visible to a follower, that follower's queue ends before it: for push,
//! heartbeat and resume alike. When that is follows from the entry and the regID alone, so
//! nothing is kept for each follower.

use std::sync::Arc;

use super::{
    Error, Service,
    deliver::{Following, Take},
};
use crate::{
    base::{
        ids::{QueueName, RegId},
        metrics::TargetKind,
    },
    queue::{
        entry::{Body, Entry},
        position::{Position, Seq},
    },
};

/// Entries of a queue, from its head, among which broadcasts that are not yet seen are looked for.
const LOOK_BACK: u64 = 4_096;
/// Those of one look.
const LOOK: Take = Take { entries: 256, bytes: usize::MAX };

/// How long a broadcast to so many followers takes at a rate, in milliseconds.
pub(super) fn over_ms(members: usize, rate_per_s: u32) -> u64 {
    (members as u64).saturating_mul(1_000) / u64::from(rate_per_s.max(1))
}

/// [`over_ms`] for a message of this kind and life, 0 without a rate.
pub(super) fn checked(
    kind: TargetKind,
    members: usize,
    rate_per_s: Option<u32>,
    ttl_s: u64,
) -> Result<u64, Error> {
    let Some(rate) = rate_per_s else { return Ok(0) };
    let wrong = |rule: String| Err(Error::Invalid { field: "max_rate_per_s", rule });
    if rate == 0 {
        return wrong("at least 1".into());
    }
    match kind {
        TargetKind::Regids | TargetKind::Aliases => {
            return wrong("only for a topic, a condition or all".into());
        }
        TargetKind::Topic | TargetKind::Condition | TargetKind::All => {}
    }
    let spread_ms = over_ms(members, rate);
    if spread_ms >= ttl_s.saturating_mul(1_000) {
        let enough = members as u64 / ttl_s.max(1) + 1;
        return wrong(format!(
            "so slowly it expires before all {members} have it: at least {enough}, or a longer ttl_s"
        ));
    }
    Ok(spread_ms)
}

impl Service {
    /// Where `all[at]` ends for its follower now, who stands at `after`: at the head, or before a
    /// broadcast whose turn has not come.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn end_of(&self, all: &[Following], at: usize, after: Position) -> Result<Position, Error> {
        let queue = all[at].queue.id();
        let head = self.head(&queue)?;
        match all[at].queue.name() {
            QueueName::Own(_) | QueueName::Alias(..) => return Ok(head),
            QueueName::Topic(..) | QueueName::All(_) => {}
        }
        let oldest = Seq(head.seq.0.saturating_sub(LOOK_BACK));
        let mut end = if after.seq >= oldest { after } else { Position { seq: oldest, ..head } };
        while end.seq < head.seq {
            let mut entries = self.router.read(&queue, end.seq, LOOK)?;
            let Some(last) = entries.last().map(|entry| entry.position) else { break };
            if cut(&mut entries, all, self.now_ms()).is_some() {
                return Ok(entries.last().map_or(end, |entry| entry.position));
            }
            end = last;
        }
        Ok(head)
    }
}

/// Cuts off what a follower does not see yet. Gives the time from when on it sees the first of it.
pub(super) fn cut(entries: &mut Vec<Arc<Entry>>, all: &[Following], now_ms: u64) -> Option<u64> {
    let is_spread = |entry: &Entry| match &entry.body {
        Body::Message(message) => message.spread_ms > 0,
        Body::Follow { .. } | Body::Unfollow { .. } => false,
        Body::Recall(_) | Body::Change(_) => false,
    };
    if !entries.iter().any(|entry| is_spread(entry)) {
        return None;
    }
    let Some(QueueName::Own(regid)) = all.first().map(|own| own.queue.name()) else { return None };
    // What has expired keeps nobody waiting.
    let is_hidden = |entry: &Entry| entry.body.is_live(now_ms) && visible_ms(entry, regid) > now_ms;
    let at = entries.iter().position(|entry| is_hidden(entry))?;
    let from_ms = visible_ms(&entries[at], regid);
    entries.truncate(at);
    Some(from_ms)
}

/// From when on a follower sees an entry, in milliseconds since 1970.
pub fn visible_ms(entry: &Entry, regid: &RegId) -> u64 {
    match &entry.body {
        Body::Message(message) if message.spread_ms > 0 => {
            entry.at_ms + share_of(message.spread_ms, regid)
        }
        Body::Message(_) | Body::Follow { .. } | Body::Unfollow { .. } => entry.at_ms,
        Body::Recall(_) | Body::Change(_) => entry.at_ms,
    }
}

/// `spread_ms` times a number in [0, 1) that is the regID's own.
fn share_of(spread_ms: u64, regid: &RegId) -> u64 {
    // regIDs are random from their third byte on: as good as a hash of them.
    let [.., a, b, c, d, e, f, g, h] = regid.0;
    let fraction = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    ((u128::from(spread_ms) * u128::from(fraction)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::DeviceId;

    #[test]
    fn followers_come_at_the_rate_and_none_after_the_end() {
        let (members, rate) = (20_000, 500);
        let spread_ms = over_ms(members, rate);
        assert_eq!(spread_ms, 40_000);
        let mut each_second = vec![0_u32; 40];
        for _ in 0..members {
            let at_ms = share_of(spread_ms, &RegId::random(&DeviceId::random()));
            each_second[at_ms as usize / 1_000] += 1;
        }
        // Random places: six deviations of a Poisson number around 500.
        assert!(each_second.iter().all(|n| (366..=634).contains(n)), "{each_second:?}");
        assert_eq!(share_of(spread_ms, &RegId([0; 20])), 0);
        assert_eq!(share_of(spread_ms, &RegId([255; 20])), spread_ms - 1);
    }

    #[test]
    fn a_rate_is_refused_where_it_means_nothing_or_loses_followers() {
        let check = |kind, members, rate, ttl_s| checked(kind, members, Some(rate), ttl_s);
        assert_eq!(check(TargetKind::Topic, 1_000, 10, 101).unwrap(), 100_000);
        assert_eq!(check(TargetKind::All, 0, 1, 1).unwrap(), 0);
        assert!(check(TargetKind::Topic, 1_000, 10, 100).is_err());
        assert!(check(TargetKind::Topic, 1_000, 0, 100).is_err());
        assert!(check(TargetKind::Aliases, 1, 10, 100).is_err());
        assert_eq!(checked(TargetKind::Regids, 1, None, 1).unwrap(), 0);
    }
}
