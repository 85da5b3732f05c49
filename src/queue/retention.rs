//! Retention: days that are too old are dropped whole.

use std::{sync::Arc, time::Duration};

use super::{store::Store, view::Views};
use crate::{
    base::{
        clock::{Clock, day_of},
        metrics::Metrics,
    },
    crash_point,
};

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(60);

/// Drops the days of one store.
pub struct Retention {
    /// What is dropped from.
    pub store: Arc<dyn Store>,
    /// Readers stop looking at a day before it is dropped.
    pub views: Arc<Views>,
    /// Today.
    pub clock: Clock,
    /// Days that are kept besides today.
    pub days: u32,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

impl Retention {
    /// Hides and drops what is too old now.
    pub fn sweep(&self) {
        let oldest = day_of(self.clock.unix_ms()).saturating_sub(self.days);
        self.views.set_oldest_day(oldest);
        for day in self.store.days().into_iter().filter(|day| *day < oldest) {
            crash_point!("retention::before_drop");
            match self.store.drop_day(day) {
                Ok(()) => self.metrics.queue.days_dropped.increment(1),
                // It stays hidden; the next sweep tries again.
                Err(error) => tracing::warn!(%error, day, "cannot drop a day"),
            }
        }
        self.metrics.queue.store_bytes.set(self.store.disk_bytes() as f64);
    }

    /// Sweeps once a minute until it is aborted.
    pub async fn run(self) {
        let this = Arc::new(self);
        let mut tick = tokio::time::interval(PERIOD);
        loop {
            tick.tick().await;
            let this = this.clone();
            crate::base::tasks::blocking(move || this.sweep()).await;
        }
    }
}
