//! Notes become rows and events: the flusher's part.

use std::{collections::HashMap, sync::Arc};

use super::{
    Asked, COMMIT_NOTES, Event, EventKind, Note, Row, What,
    log::{Endpoint, EndpointId},
    row_key,
};
use crate::{
    base::{
        clock::day_of,
        ids::{MessageId, RegId},
        metrics::ReceiptKind,
    },
    crash_point,
    queue::store::{Batch, encode},
    service::{Error, Service, send::messages_of},
};

impl Service {
    /// Makes all notes durable. The flusher alone calls this, after it has read the pointers
    /// that it is going to write.
    pub(in crate::service) async fn write_receipts(&self) -> Result<(), Error> {
        if self.receipts.is_empty() {
            return Ok(());
        }
        let mut taken = self.receipts.take();
        let mut known = HashMap::new();
        while taken.done < taken.notes.len() {
            let left = &taken.notes[taken.done..];
            let count = left.len().min(COMMIT_NOTES);
            let mut writing = Writing::default();
            for note in &left[..count] {
                match self.write_note(note, &mut writing, &mut known) {
                    // One damaged record does not keep the pointers from the disk.
                    Err(error) if error.is_damage() => {
                        self.metrics.receipts.dropped.increment(1);
                        tracing::error!(%error, "a receipt cannot be written");
                    }
                    written => written?,
                }
            }
            crash_point!("receipts::before_write");
            self.commit_notes(writing).await?;
            taken.done += count;
        }
        self.receipts.flushed.send_replace(taken.take);
        Ok(())
    }

    fn write_note(
        &self,
        note: &Note,
        writing: &mut Writing,
        known: &mut HashMap<MessageId, Asked>,
    ) -> Result<(), Error> {
        let Note { message, regid, at_ms, what } = *note;
        let asked = match known.get(&message) {
            Some(asked) => *asked,
            None => {
                let asked = self.record_of(&message)?.map(|record| record.asked);
                *known.entry(message).or_insert(asked.unwrap_or_default())
            }
        };
        let is_held = day_of(message.unix_ms()) >= self.router.oldest_day();
        if !asked.wants_rows() || !is_held {
            return Ok(());
        }
        let key = (message, regid);
        let before = match writing.rows.get(&key) {
            Some(row) => *row,
            None => self.row(&message, &regid)?.unwrap_or_default(),
        };
        let (row, kind, written) = match what {
            What::Acked { pushed_ms } if before.acked_ms.is_none() => {
                let row = Row { pushed_ms, acked_ms: Some(at_ms), ..before };
                (row, EventKind::Acked, ReceiptKind::Acked)
            }
            What::Clicked if before.clicked_ms.is_none() => {
                let row = Row { clicked_ms: Some(at_ms), ..before };
                (row, EventKind::Clicked, ReceiptKind::Clicked)
            }
            // It is written already: the device was not told, or somebody clicks twice.
            What::Acked { .. } | What::Clicked => return Ok(()),
        };
        writing.rows.insert(key, row);
        self.metrics.receipts.written.of(written).increment(1);
        if let Some(endpoint) = asked.wants(kind)
            && let Some(endpoint) = self.receipts.log.known(&endpoint)
        {
            let event = Event { kind, message, regid: regid.to_string(), at_ms };
            let (_, events) =
                writing.events.entry(endpoint.id).or_insert_with(|| (endpoint, Vec::new()));
            events.push(event);
        }
        Ok(())
    }

    async fn commit_notes(&self, writing: Writing) -> Result<(), Error> {
        let mut batch = Batch::default();
        for ((message, regid), row) in writing.rows {
            batch.put(messages_of(&message), row_key(&message, &regid), encode(&row));
        }
        self.commit_events(batch, writing.events.into_values().collect()).await
    }
}

/// What one commit writes.
#[derive(Default)]
struct Writing {
    rows: HashMap<(MessageId, RegId), Row>,
    events: HashMap<EndpointId, (Arc<Endpoint>, Vec<Event>)>,
}
