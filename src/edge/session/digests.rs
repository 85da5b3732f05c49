//! Digests of collections: with the last frame of a resume, and now and then.

use std::sync::Arc;

use carillon_wire::{
    frame::{epoch_to_idl, seq_to_idl},
    idl,
};

use super::{Context, Session, Want, deltas::Draft, down};
use crate::{
    base::ids::{Queue, QueueName},
    queue::{
        collection::item::Totals,
        entry::{Body, Entry},
        position::Position,
    },
};

impl Session {
    /// Adds the digests of a queue to the frame that brings the device to `to`, where they are
    /// due and are those of that place: nothing of its collections has changed since.
    pub(super) fn add_digests(
        &mut self,
        cx: &Context<'_>,
        want: Want,
        queue: &Queue,
        to: Position,
        entries: &[Arc<Entry>],
        draft: &mut Draft,
    ) {
        // Sealed registrations are not given changes.
        if draft.is_sealed() || !matches!(queue.name(), QueueName::Alias(..)) {
            return;
        }
        let budget = self.budget();
        let lane = &mut self.feeds.at_mut(want.feed).lanes[want.at];
        let mut sent = entries.iter().take_while(|entry| entry.position.seq <= to.seq);
        if sent.any(|entry| matches!(entry.body, Body::Change(_))) {
            lane.marks.set_digests_in(less(lane.marks.digests_in()));
        }
        if lane.marks.digests_in() > 0 && lane.marks.digests_in() != OWED {
            return;
        }
        let totals = (cx.totals)(&queue.id()).unwrap_or_default();
        if totals.collections.iter().all(|total| total.last <= to.seq)
            && draft.add_digests(digests(queue, to, &totals), budget)
        {
            lane.marks.set_digests_in(PERIOD);
        }
    }
}

/// One frame fewer to go.
fn less(frames: u8) -> u8 {
    if frames == OWED { 0 } else { frames.saturating_sub(1) }
}

fn digests(queue: &Queue, to: Position, totals: &Totals) -> Vec<idl::CollectionDigest> {
    let name = down::queue_name(queue.name()).map(str::to_owned);
    let queue = idl::Queue { kind: down::queue_kind(queue.name()), name };
    let digest = |total: &crate::queue::collection::item::Total| idl::CollectionDigest {
        queue: queue.clone(),
        epoch: epoch_to_idl(to.epoch.0),
        collection: total.collection.to_string(),
        seq: seq_to_idl(total.last.0),
        items: seq_to_idl(total.items),
        digest: total.digest.cast_signed(),
    };
    totals.collections.iter().map(digest).collect()
}

/// Frames with changes from one digest to the next.
const PERIOD: u8 = 64;
/// Digests are due even where nothing is new: a snapshot has ended.
pub const OWED: u8 = 127;
