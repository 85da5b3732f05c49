//! How long messages take on their way, for the histograms; what never comes and what is sealed, for the counters.

use std::time::Duration;

use super::Connection;
use crate::{
    base::metrics::{Label, PackedBytes, SealedIn},
    edge::session::{Output, Packed},
};

impl<S> Connection<S> {
    /// Notes what was pushed and acknowledged in this turn.
    pub(super) fn record_times(&self, out: &mut Output) {
        let metrics = &self.edge().metrics;
        let now_ms = out.now.unix_ms;
        let since = |at_ms: u64| Duration::from_millis(now_ms.saturating_sub(at_ms));
        for at_ms in out.pushed_at_ms.drain(..) {
            metrics.engine.durable_to_pushed_seconds.record(since(at_ms));
        }
        for at_ms in out.acked.at_ms.drain(..) {
            metrics.edge.durable_to_acked_seconds.record(since(at_ms));
        }
        for pushed_ms in out.acked.pushed_ms.drain(..) {
            metrics.engine.pushed_to_acked_seconds.record(since(pushed_ms));
        }
        for (why, count) in std::mem::take(&mut out.acked.skipped).each() {
            metrics.queue.skips.of(why).increment(count.into());
        }
        for (kind, count) in SealedIn::ALL.iter().zip(std::mem::take(&mut out.sealed)) {
            if count > 0 {
                metrics.seals.entries.of(*kind).increment(count.into());
            }
        }
        let Packed { frames, plain_bytes, packed_bytes } = std::mem::take(&mut out.packed);
        if frames > 0 {
            metrics.packing.frames.increment(frames);
            metrics.packing.bytes.of(PackedBytes::Plain).increment(plain_bytes);
            metrics.packing.bytes.of(PackedBytes::Packed).increment(packed_bytes);
        }
        for reason in out.seal_refusals.drain(..) {
            metrics.seals.refusals.of(reason).increment(1);
        }
    }
}
