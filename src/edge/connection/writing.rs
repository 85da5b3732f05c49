//! Writing to a socket that may take little.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context as Task, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::time::{Instant, timeout_at};

use super::{Carrier, Connection};
use crate::{
    edge::{close::CloseReason, session::Output},
    route::Reasons,
};

impl<S: Carrier> Connection<S> {
    /// Writes all output. A timer exists only while the socket takes nothing.
    pub(super) async fn write(&mut self, out: &mut Output) -> Result<(), CloseReason> {
        if out.bytes.is_empty() {
            return Ok(());
        }
        let bytes = out.bytes.len() as u64;
        let at_once = poll_fn(|cx| Poll::Ready(self.poll_write_all(cx, &mut out.bytes))).await;
        match at_once {
            Poll::Ready(written) => written?,
            Poll::Pending => {
                // This may last, and there may be many.
                out.keep_unwritten();
                Box::pin(self.write_slowly(&mut out.bytes)).await?;
            }
        }
        self.bytes_out += bytes;
        self.edge().metrics.edge.bytes_out.increment(bytes);
        Ok(())
    }

    async fn write_slowly(&mut self, bytes: &mut BytesMut) -> Result<(), CloseReason> {
        let patience = Duration::from_millis(self.edge().config().write_timeout_ms);
        let mut held = Reasons::NONE;
        let mut leaves: Option<(Instant, CloseReason)> = None;
        loop {
            let (until, why) =
                leaves.unwrap_or_else(|| (Instant::now() + patience, CloseReason::WriteTimeout));
            let written = timeout_at(until, self.write_some(bytes, &mut held)).await;
            if written.unwrap_or(Err(why))? {
                break;
            }
            // A socket that takes nothing at this moment may be a busy machine's: who must leave
            // is told why if it takes what is begun.
            let must = || Some((Instant::now() + LAST_WORDS.min(patience), must_leave(held)?));
            leaves = leaves.or_else(must);
        }
        // Nudges that came meanwhile are for the next turn.
        self.nudge().put_back(held);
        Ok(())
    }

    /// Completes when the device has taken something, or must leave; whether all is written.
    async fn write_some(
        &mut self,
        bytes: &mut BytesMut,
        held: &mut Reasons,
    ) -> Result<bool, CloseReason> {
        let before = bytes.len();
        poll_fn(|cx| {
            if let Poll::Ready(reasons) = self.poll_reasons(cx) {
                let was_leaving = must_leave(*held).is_some();
                held.0 |= reasons.0;
                if !was_leaving && must_leave(*held).is_some() {
                    return Poll::Ready(Ok(false));
                }
            }
            match self.poll_write_all(cx, bytes) {
                Poll::Pending if bytes.len() < before => Poll::Ready(Ok(false)),
                written => written.map_ok(|()| true),
            }
        })
        .await
    }

    fn poll_write_all(
        &mut self,
        cx: &mut Task<'_>,
        bytes: &mut BytesMut,
    ) -> Poll<Result<(), CloseReason>> {
        while !bytes.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, bytes)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(CloseReason::Reset)),
                Ok(count) => bytes.advance(count),
            }
        }
        Pin::new(&mut self.stream).poll_flush(cx).map_err(|_| CloseReason::Reset)
    }
}

/// Why a connection ends that has these reasons, whatever is still to be written.
fn must_leave(reasons: Reasons) -> Option<CloseReason> {
    if reasons.has(Reasons::TAKEN_OVER) {
        return Some(CloseReason::TakenOver);
    }
    reasons.has(Reasons::DRAIN).then_some(CloseReason::Draining)
}

/// For the device to take what is begun, before it is left without a word. Its next connection
/// waits for so long at most.
const LAST_WORDS: Duration = Duration::from_millis(100);
