//! How much each app may send: rates by GCRA in memory, quotas of the day on disk.
//!
//! The rate is asked first and counts what a request states, right or wrong, so that an app that
//! sends too much costs little. A send is refused when what was delivered today has reached the
//! quota; what was accepted is delivered all the same. A delivery is counted by the flush that
//! writes the pointer behind it, in the same batch, and so once. What is accepted in a day has a
//! bound of its own, for what waits for devices that are away. Rates begin anew with the process.

use std::time::Duration;

use dashmap::mapref::one::RefMut;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Error, Service, deliver::Following, send::Target};
use crate::{
    base::{
        clock::{DAY_MS, day_of},
        ids::{AppId, QueueName},
        maps::{Owned, Shared},
        metrics::Unsent,
    },
    config,
    queue::store::{Batch, Space, decode, encode},
};

/// What each app has used.
pub struct Allowances {
    began: Instant,
    apps: Shared<AppId, Used>,
}

impl Default for Allowances {
    fn default() -> Self {
        Self { began: Instant::now(), apps: Shared::default() }
    }
}

/// What one app has used: of the day, by kind; and when what it took will be paid for.
#[derive(Clone, Debug, Default)]
struct Used {
    day: u32,
    counts: Counts,
    paid_ns: [u64; 2],
    is_unwritten: bool,
}

/// What an app has used of a day, as it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    accepted: [u64; 2],
    delivered: [u64; 2],
}

/// The two kinds of sends, each with bounds of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To regIDs and aliases.
    Targets = 0,
    /// To topics, as conditions say, and to everybody.
    Broadcasts = 1,
}

impl Kind {
    /// Which kind of sends a queue is for.
    pub fn of(queue: &QueueName) -> Self {
        match queue {
            QueueName::Own(_) | QueueName::Alias(..) => Self::Targets,
            QueueName::Topic(..) | QueueName::All(_) => Self::Broadcasts,
        }
    }
}

/// Messages that a registration has handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Whose they are.
    pub app: AppId,
    /// Of which kind of queue.
    pub kind: Kind,
    /// How many.
    pub messages: u32,
}

impl Delivered {
    /// So many messages of `all[at]` to who follows `all`; `None` if there are none.
    pub fn of(all: &[Following], at: usize, messages: u32) -> Option<Self> {
        // Every registration follows a queue that bears its app's name: `all`.
        let app = all.iter().find_map(|following| following.queue.name().app())?;
        let kind = Kind::of(all[at].queue.name());
        (messages > 0).then(|| Self { app: app.clone(), kind, messages })
    }
}

/// What one registration has handled since the last flush.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    app: Option<AppId>,
    counts: [u32; 2],
}

impl Sums {
    /// These too.
    pub(super) fn add(&mut self, delivered: Delivered) {
        let count = &mut self.counts[delivered.kind as usize];
        *count = count.saturating_add(delivered.messages);
        self.app = Some(delivered.app);
    }

    /// These are counted.
    pub(super) fn subtract(&mut self, counted: &Self) {
        for (count, counted) in self.counts.iter_mut().zip(counted.counts) {
            *count = count.saturating_sub(counted);
        }
    }
}

/// What a send takes.
fn price(target: &Target) -> (Kind, u64) {
    match target {
        Target::Regids(all) | Target::Aliases(all) => (Kind::Targets, all.len() as u64),
        Target::Topic(_) | Target::Condition(_) | Target::All => (Kind::Broadcasts, 1),
    }
}

/// One bound and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its name in the answer.
    pub name: &'static str,
    /// All of it.
    pub quota: u64,
    /// In so many seconds.
    pub window_s: u64,
    /// What is left now.
    pub left: u64,
    /// When it will be whole again, in seconds.
    pub reset_s: u64,
}

/// The bounds of a kind, from the configuration.
struct Bounds {
    per_s: u64,
    burst: u64,
    per_day: u64,
    deliveries_per_day: u64,
}

impl Bounds {
    fn of(config: &config::Allowance, kind: Kind) -> Self {
        match kind {
            Kind::Targets => Self {
                per_s: config.targets_per_s.into(),
                burst: config.targets_burst.into(),
                per_day: config.targets_per_day,
                deliveries_per_day: config.deliveries_per_day,
            },
            Kind::Broadcasts => Self {
                per_s: config.broadcasts_per_s.into(),
                burst: config.broadcasts_burst.into(),
                per_day: config.broadcasts_per_day,
                deliveries_per_day: config.broadcast_deliveries_per_day,
            },
        }
    }

    /// What one costs, and what may be owed, in nanoseconds.
    fn rate(&self) -> Option<(u64, u64)> {
        let cost_ns = SECOND_NS.checked_div(self.per_s)?.max(1);
        Some((cost_ns, cost_ns.saturating_mul(self.burst)))
    }

    /// Takes `count` at once; more than the burst are taken as the burst. Gives when they are
    /// paid for.
    fn take(&self, paid_ns: u64, now_ns: u64, count: u64) -> Result<u64, Duration> {
        let Some((cost_ns, burst_ns)) = self.rate() else { return Ok(paid_ns) };
        let owed = paid_ns.saturating_sub(now_ns).min(burst_ns);
        let price = cost_ns.saturating_mul(count).min(burst_ns);
        match (owed + price).checked_sub(burst_ns) {
            None | Some(0) => Ok(now_ns + owed + price),
            Some(over) => Err(Duration::from_nanos(over)),
        }
    }
}

impl Service {
    /// Takes a send from its app's rate.
    pub(super) fn allow(&self, app: &AppId, target: &Target) -> Result<(), Error> {
        let (kind, count) = price(target);
        let bounds = Bounds::of(&self.limits.load().allowance_of(app.as_str()), kind);
        let now_ns = self.elapsed_ns();
        let mut used = self.used(app)?;
        let paid = &mut used.paid_ns[kind as usize];
        let (what, bound) = match kind {
            Kind::Targets => ("the app sends to more targets than its rate", Unsent::Rate),
            Kind::Broadcasts => ("the app broadcasts more than its rate", Unsent::BroadcastRate),
        };
        *paid = bounds.take(*paid, now_ns, count).map_err(|after| Error::Allowance {
            what,
            bound,
            after,
        })?;
        Ok(())
    }

    /// Counts a send, which is about to be accepted, against its app's day, unless what was
    /// delivered or accepted today is all that may be.
    pub(super) fn count(&self, app: &AppId, target: &Target) -> Result<(), Error> {
        let (kind, count) = price(target);
        let bounds = Bounds::of(&self.limits.load().allowance_of(app.as_str()), kind);
        let mut used = self.used(app)?;
        let refused = |what, bound| {
            let after = Duration::from_secs(self.day_left_s());
            Err(Error::Allowance { what, bound, after })
        };
        let delivered = used.counts.delivered[kind as usize];
        if bounds.deliveries_per_day > 0 && delivered >= bounds.deliveries_per_day {
            return match kind {
                Kind::Targets => {
                    refused("the app's deliveries of the day are used up", Unsent::Quota)
                }
                Kind::Broadcasts => refused(
                    "the app's deliveries of broadcasts of the day are used up",
                    Unsent::BroadcastQuota,
                ),
            };
        }
        let sum = used.counts.accepted[kind as usize].saturating_add(count);
        if bounds.per_day > 0 && sum > bounds.per_day {
            return match kind {
                Kind::Targets => {
                    refused("more targets than the app may send to in a day", Unsent::DayTargets)
                }
                Kind::Broadcasts => {
                    refused("more broadcasts than the app may send in a day", Unsent::DayBroadcasts)
                }
            };
        }
        used.counts.accepted[kind as usize] = sum;
        used.is_unwritten = true;
        Ok(())
    }

    /// What is left to an app, for each bound that there is.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn allowance(&self, app: &AppId) -> Result<Vec<Left>, Error> {
        let (now_ns, limits) = (self.elapsed_ns(), self.limits.load());
        let allowance = limits.allowance_of(app.as_str());
        let used = self.used(app)?.clone();
        let mut all = Vec::with_capacity(6);
        for (kind, rate, accepted, delivered) in [
            (Kind::Targets, "targets", "targets-day", "deliveries-day"),
            (Kind::Broadcasts, "broadcasts", "broadcasts-day", "broadcast-deliveries-day"),
        ] {
            let bounds = Bounds::of(&allowance, kind);
            if let Some((cost_ns, burst_ns)) = bounds.rate() {
                let owed = used.paid_ns[kind as usize].saturating_sub(now_ns).min(burst_ns);
                all.push(Left {
                    name: rate,
                    quota: bounds.burst,
                    window_s: burst_ns.div_ceil(SECOND_NS).max(1),
                    left: (burst_ns - owed) / cost_ns,
                    reset_s: owed.div_ceil(SECOND_NS),
                });
            }
            let Counts { accepted: sent, delivered: taken } = used.counts;
            let days = [
                (delivered, bounds.deliveries_per_day, taken[kind as usize]),
                (accepted, bounds.per_day, sent[kind as usize]),
            ];
            for (name, quota, gone) in days.into_iter().filter(|(_, quota, _)| *quota > 0) {
                let (left, reset_s) = (quota.saturating_sub(gone), self.day_left_s());
                all.push(Left { name, quota, window_s: DAY_MS / 1_000, left, reset_s });
            }
        }
        Ok(all)
    }

    /// Writes what apps have used since the last time.
    pub(super) async fn write_used(&self) -> Result<(), Error> {
        let mut batch = Batch::default();
        let mut written = Vec::new();
        for mut one in self.allowances.apps.iter_mut() {
            if std::mem::take(&mut one.is_unwritten) {
                batch.put(Space::Once(one.day), key(one.key()), encode(&one.counts));
                written.push(one.key().clone());
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let committed = self.router.commit(batch).await;
        if committed.is_err() {
            for app in &written {
                if let Some(mut one) = self.allowances.apps.get_mut(app) {
                    one.is_unwritten = true;
                }
            }
        }
        Ok(committed?)
    }

    /// Puts what was delivered into the batch that writes the pointers behind it. What is given
    /// back is to be counted when that is durable.
    pub(super) fn put_delivered<'a>(
        &self,
        all: impl Iterator<Item = &'a Sums>,
        batch: &mut Batch,
    ) -> Owned<AppId, [u64; 2]> {
        let mut sums: Owned<AppId, [u64; 2]> = Owned::default();
        for Sums { app, counts } in all.filter(|sums| sums.counts != [0; 2]) {
            let Some(app) = app else { continue };
            add(sums.entry(app.clone()).or_default(), counts.map(u64::from));
        }
        for (app, counts) in &sums {
            match self.used(app) {
                Ok(used) => {
                    let mut sum = used.counts;
                    add(&mut sum.delivered, *counts);
                    batch.put(Space::Once(used.day), key(app), encode(&sum));
                }
                // Pointers must not wait for it.
                Err(error) => tracing::warn!(%app, %error, "deliveries are not counted"),
            }
        }
        sums
    }

    /// What was delivered is on disk, with its pointers.
    pub(super) fn count_delivered(&self, sums: Owned<AppId, [u64; 2]>) {
        for (app, counts) in sums {
            if let Ok(mut used) = self.used(&app) {
                add(&mut used.counts.delivered, counts);
            }
        }
    }

    /// What an app has used, of today.
    fn used(&self, app: &AppId) -> Result<RefMut<'_, AppId, Used>, Error> {
        let today = day_of(self.now_ms()).max(self.router.oldest_day());
        let mut used = match self.allowances.apps.get_mut(app) {
            Some(used) => used,
            None => {
                let stored = self.router.get(Space::Once(today), &key(app))?;
                let counts = stored.map_or(Ok(Counts::default()), |bytes| decode(&bytes))?;
                let fresh = Used { day: today, counts, ..Used::default() };
                self.allowances.apps.entry(app.clone()).or_insert(fresh)
            }
        };
        if used.day < today {
            (used.day, used.counts) = (today, Counts::default());
        }
        Ok(used)
    }

    fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.allowances.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn day_left_s(&self) -> u64 {
        (DAY_MS - self.now_ms() % DAY_MS).div_ceil(1_000)
    }
}

/// Beside the day's idempotency keys, whose names are hashes.
fn key(app: &AppId) -> Vec<u8> {
    [b"used.", app.as_str().as_bytes()].concat()
}

fn add(sums: &mut [u64; 2], more: [u64; 2]) {
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

const SECOND_NS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_its_burst_and_then_its_rate() {
        for (per_s, burst) in [(10, 5), (200_000, 1_000), (3, 1)] {
            let bounds = Bounds { per_s, burst, per_day: 0, deliveries_per_day: 0 };
            let (mut paid, mut taken) = (0, 0);
            for now in (0..10 * SECOND_NS).step_by(20_000) {
                for _ in 0..6 {
                    if let Ok(then) = bounds.take(paid, now, 1) {
                        (paid, taken) = (then, taken + 1);
                    }
                }
            }
            let wanted = burst + 10 * per_s;
            assert!((wanted - per_s / 10 - 1..=wanted + 1).contains(&taken), "{per_s}: {taken}");
        }
    }

    #[test]
    fn a_refusal_says_when_and_then_it_is_so() {
        let bounds = Bounds { per_s: 10, burst: 2, per_day: 0, deliveries_per_day: 0 };
        let paid = bounds.take(0, 7, 9).unwrap();
        let after = bounds.take(paid, 7, 1).unwrap_err();
        assert_eq!(after, Duration::from_millis(100));
        let then = 7 + after.as_nanos() as u64;
        assert!(bounds.take(paid, then - 1, 1).is_err());
        assert!(bounds.take(paid, then, 1).is_ok());
        assert_eq!(Bounds { per_s: 0, ..bounds }.take(3, 7, 1 << 40), Ok(3));
    }
}
