//! Retention: days that are too old are dropped whole.
//!
//! The oldest day is written before a day is dropped, so that a clock that is
//! set back does not make dropped entries look like lost ones.

use std::{sync::Arc, time::Duration};

use super::{
    store::{Batch, Error, Space, Store},
    unfolded,
    view::Views,
    writer,
};
use crate::{
    base::{
        clock::{Clock, day_of},
        metrics::Metrics,
        tasks,
    },
    crash_point,
};

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(60);
/// The key of the oldest day in `Space::Meta`.
const OLDEST_DAY: &[u8] = b"oldest_day";

/// Drops the days of one store.
pub struct Retention {
    /// What is dropped from.
    pub store: Arc<dyn Store>,
    /// Writes down what is dropped.
    pub writer: writer::Handle,
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
    /// Hides and drops what is too old now, and what was when the node ran last.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be read or written.
    pub async fn sweep(&self) -> Result<(), Error> {
        let stored = self.store.get(Space::Meta, OLDEST_DAY)?;
        let stored =
            stored.and_then(|bytes| bytes.as_ref().try_into().map(u32::from_le_bytes).ok());
        let today = day_of(self.clock.unix_ms());
        let oldest = today.saturating_sub(self.days);
        // What was dropped stays dropped; what is not folded stays, however old.
        let oldest = self.unfolded(oldest).await?.max(stored.unwrap_or(0));
        self.views.set_oldest_day(oldest);
        let old: Vec<u32> = self.store.days().into_iter().filter(|day| *day < oldest).collect();
        if !old.is_empty() {
            let mut batch = Batch::default();
            batch.put(Space::Meta, OLDEST_DAY, oldest.to_le_bytes().to_vec());
            self.writer.commit(batch).await?;
        }
        for day in old {
            crash_point!("retention::before_drop");
            let store = self.store.clone();
            tasks::blocking(move || store.drop_day(day)).await?;
            self.metrics.queue.days_dropped.increment(1);
        }
        // Kept answers are looked for in two days.
        for day in self.store.days().into_iter().filter(|day| day.saturating_add(1) < today) {
            let store = self.store.clone();
            tasks::blocking(move || store.drop_space(Space::Once(day))).await?;
        }
        Ok(())
    }

    /// `oldest`, or an older day that has an entry that is not folded.
    async fn unfolded(&self, oldest: u32) -> Result<u32, Error> {
        if self.store.days().iter().all(|day| *day >= oldest) {
            return Ok(oldest);
        }
        let store = self.store.clone();
        let unfolded = tasks::blocking(move || unfolded::oldest_day(store.as_ref())).await?;
        Ok(unfolded.map_or(oldest, |day| day.min(oldest)))
    }

    /// Sweeps once a minute until it is aborted.
    pub async fn run(self) {
        let mut tick = tokio::time::interval(PERIOD);
        loop {
            tick.tick().await;
            if let Err(error) = self.sweep().await {
                // What is hidden stays hidden; the next sweep tries again.
                tracing::warn!(%error, "cannot drop old days");
            }
            let store = self.store.clone();
            let bytes = tasks::blocking(move || store.disk_bytes()).await;
            self.metrics.queue.store_bytes.set(bytes as f64);
        }
    }
}
