//! The task that owns one socket: it waits, lets the session decide, and does what it says.
//!
//! While nothing happens it holds no buffer and no timer. While a business call runs
//! nothing else of the connection is read.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use carillon_wire::mqtt::{Decoder, Version};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Instant, timeout},
};

use super::{
    Admission, Edge,
    close::CloseReason,
    heartbeat::Place,
    perform::{self, Heads},
    pool,
    session::{Answer, Call, Context, Input, Output, Session, Tally, down, frames::Ticket},
    sessions::Token,
};
use crate::{
    base::{
        ids::{DeviceId, QueueId},
        metrics::{Label, Transport, UpKind, UpResult},
    },
    queue::position::Position,
    route::{Nudge, Reasons},
};

/// A device's presence on this node, until it is dropped.
pub(super) struct Arrival {
    edge: Arc<Edge>,
    device: DeviceId,
    nudge: Arc<Nudge>,
    serial: u64,
}

impl Arrival {
    /// The device is here; an older connection of it is told so. `None` if it has
    /// opened a newer one, which is here already.
    pub(super) fn new(edge: &Arc<Edge>, device: DeviceId, serial: u64) -> Option<Self> {
        let nudge = Arc::new(Nudge::default());
        let is_newest = edge.service.arrive(device, &nudge, serial);
        is_newest.then(|| Self { edge: edge.clone(), device, nudge, serial })
    }

    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    pub(super) fn serial(&self) -> u64 {
        self.serial
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.edge.service.leave(&self.device, &self.nudge);
    }
}

/// What is known of a connection besides its session and its stream.
pub(super) struct Device {
    pub(super) arrival: Arrival,
    pub(super) transport: Transport,
    pub(super) at: Instant,
    pub(super) _admission: Admission,
}

/// One established connection.
pub(super) struct Connection<S> {
    stream: S,
    /// Taken when the connection ends.
    session: Option<Session>,
    decoder: Decoder,
    unread: BytesMut,
    /// Nudges that came while a write was blocked.
    reasons: u8,
    place: Place,
    close: Option<CloseReason>,
    tally: Tally,
    bytes_in: u64,
    bytes_out: u64,
    // Dropped last: the device leaves, and then its room is free.
    device: Device,
}

enum Event {
    Nudged(Reasons),
    Read,
    Over(CloseReason),
}

impl<S> Connection<S> {
    pub(super) fn new(
        device: Device,
        stream: S,
        session: Session,
        decoder: Decoder,
        unread: BytesMut,
        bytes_in: u64,
    ) -> Self {
        let edge = &device.arrival.edge;
        edge.metrics.edge.connections_opened.of(device.transport).increment(1);
        edge.metrics.edge.connections.increment(1.0);
        edge.metrics.edge.bytes_in.increment(bytes_in);
        let mut connection = Self {
            stream,
            session: Some(session),
            decoder,
            unread,
            reasons: 0,
            place: Place::default(),
            close: None,
            tally: Tally::default(),
            bytes_in,
            bytes_out: 0,
            device,
        };
        connection.take_place();
        connection
    }

    fn edge(&self) -> &Arc<Edge> {
        &self.device.arrival.edge
    }

    fn nudge(&self) -> &Arc<Nudge> {
        &self.device.arrival.nudge
    }

    /// Takes the place on the wheel where the connection's deadline is.
    fn take_place(&mut self) {
        let Some(session) = &self.session else { return };
        let edge = &self.device.arrival.edge;
        let place = edge.wheel.put(&self.device.arrival.nudge, edge.now_s(), session.deadline_s());
        self.place = place;
        // A drain that passed while it had no place would never reach it.
        if edge.is_draining() {
            self.nudge().nudge(Reasons::DRAIN);
        }
    }

    /// One look of the session at the world as it is now.
    fn look<R>(&mut self, look: impl FnOnce(&mut Session, &Context<'_>) -> R) -> Option<R> {
        let arrival = &self.device.arrival;
        let service = &arrival.edge.service;
        let bounds = arrival.edge.config();
        let tag = |queue: &QueueId, position: Position| service.tag(queue, position);
        let cx = Context {
            bounds: &bounds,
            now_s: arrival.edge.now_s(),
            unix_ms: service.now_ms(),
            dice: (arrival.serial.wrapping_mul(GOLDEN) >> 32) as u32,
            farewell: arrival.edge.farewell.get(),
            tag: &tag,
        };
        self.session.as_mut().map(|session| look(session, &cx))
    }

    fn step(&mut self, input: Input, out: &mut Output) {
        self.look(|session, cx| session.step(cx, input, out));
        self.perform(out);
    }

    fn perform(&mut self, out: &mut Output) {
        for effect in out.effects.drain(..) {
            perform::effect(&self.device.arrival.edge.service, &self.device.arrival.nudge, effect);
        }
    }

    /// Pulls what there is room for. Returns whether there is more than may be written at once.
    fn pull(&mut self, out: &mut Output) -> bool {
        loop {
            if out.bytes.len() >= OUTPUT_BYTES_MAX {
                return true;
            }
            let want = self.look(|session, cx| session.want(cx, out)).flatten();
            self.perform(out);
            let (Some(want), Some(session)) = (want, &self.session) else { return false };
            let followings = session.followings(want.feed);
            let service = &self.device.arrival.edge.service;
            match service.pull(followings, want.at, want.after, want.take) {
                Ok(pulled) => {
                    self.look(|session, cx| session.fed(cx, want, pulled, out));
                    self.perform(out);
                }
                // One damaged queue does not end what the device has besides it.
                Err(error) if error.is_damage() => {
                    tracing::error!(%error, "a queue cannot be delivered");
                    self.look(|session, cx| session.fed(cx, want, None, out));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection ends because a queue cannot be read");
                    self.look(|session, _| session.close(CloseReason::Unavailable, out));
                    return false;
                }
            }
        }
    }

    /// Moves what was done to the metrics.
    fn record(&mut self, out: &mut Output) {
        let arrival = &self.device.arrival;
        let metrics = &arrival.edge.metrics.edge;
        let Tally { pushes, redeliveries, acks, uplinks } = std::mem::take(&mut out.tally);
        if pushes > 0 {
            metrics.pushes.increment(pushes);
        }
        if redeliveries > 0 {
            metrics.redeliveries.increment(redeliveries);
        }
        if acks > 0 {
            metrics.acks.increment(acks);
        }
        self.tally.pushes += pushes;
        self.tally.redeliveries += redeliveries;
        self.tally.acks += acks;
        self.tally.uplinks += uplinks;
        if !out.acked_at_ms.is_empty() {
            let now_ms = arrival.edge.service.now_ms();
            for at_ms in out.acked_at_ms.drain(..) {
                let took = Duration::from_millis(now_ms.saturating_sub(at_ms));
                metrics.durable_to_acked_seconds.record(took);
            }
        }
        out.ignored.drain(..).for_each(|kind| arrival.edge.ends.ignored.of(kind).increment(1));
        for _ in 0..std::mem::take(&mut out.unknown_ups) {
            metrics.up_frame(UpKind::Unknown, UpResult::Refused, Duration::ZERO);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Runs until the connection ends.
    pub(super) async fn run(mut self: Box<Self>, first: Box<Output>) {
        let mut out = first;
        self.perform(&mut out);
        let mut event = Event::Read;
        let reason = loop {
            let over = self.turn(event, &mut out).await;
            self.record(&mut out);
            pool::give_back(out);
            if let Some(reason) = over {
                break reason;
            }
            event = poll_fn(|cx| self.poll_event(cx)).await;
            out = pool::output();
        };
        self.close = Some(reason);
        // Whether the other side hears the end is its affair.
        drop(Box::pin(timeout(SHUTDOWN_WAIT, self.stream.shutdown())).await);
    }

    /// Everything that one event leads to. Returns why the connection ends, if it does.
    async fn turn(&mut self, event: Event, out: &mut Output) -> Option<CloseReason> {
        match event {
            Event::Over(reason) => return Some(reason),
            Event::Nudged(reasons) => self.nudged(reasons, out),
            Event::Read => {}
        }
        loop {
            let mut is_more = self.take_in(out).await;
            if let Err(reason) = self.write(out).await {
                return Some(out.close.unwrap_or(reason));
            }
            if out.close.is_some() {
                return out.close;
            }
            self.look(|session, cx| session.step(cx, Input::Written, out));
            is_more |= !out.effects.is_empty();
            self.perform(out);
            self.record(out);
            if !is_more {
                return None;
            }
            tokio::task::yield_now().await;
            // A backlog must not keep a takeover or a drain waiting.
            if let Poll::Ready(reasons) =
                poll_fn(|cx| Poll::Ready(self.nudge().poll_reasons(cx))).await
            {
                self.nudged(reasons, out);
            }
        }
    }

    fn nudged(&mut self, reasons: Reasons, out: &mut Output) {
        self.step(Input::Nudged(reasons), out);
        if reasons.has(Reasons::TICK) && out.close.is_none() {
            self.take_place();
        }
    }

    /// Handles the packets that were read, then pulls. Returns whether more is to be done
    /// once the output is written.
    async fn take_in(&mut self, out: &mut Output) -> bool {
        loop {
            while let Some(call) = out.call.take() {
                let answer = Box::pin(self.call(call)).await;
                self.step(Input::Answer(answer), out);
            }
            if out.close.is_some() {
                return false;
            }
            if out.bytes.len() >= OUTPUT_BYTES_MAX {
                return true;
            }
            match self.decoder.decode(&mut self.unread) {
                Ok(Some(packet)) => self.step(Input::Packet(packet), out),
                Ok(None) => break,
                Err(error) => self.step(Input::Undecodable(error), out),
            }
        }
        self.pull(out)
    }

    async fn call(&mut self, call: Call) -> Answer {
        let at = Instant::now();
        let is_clean = self.session.as_ref().is_some_and(|session| session.terms().is_clean);
        let heads = if is_clean { Heads::Read } else { Heads::Skip };
        let kind = match &call {
            Call::Resume(ticket, _) | Call::Positions(ticket, _) | Call::Request(ticket, _) => {
                Some(ticket.kind)
            }
            Call::Refresh | Call::Subscribe(..) | Call::Unsubscribe(..) => None,
        };
        let edge = self.edge();
        let answer = perform::call(&edge.service, &self.device.arrival.device, call, heads).await;
        let result = match &answer {
            Answer::Requested(Ticket { .. }, result) => down::up_result(result),
            Answer::Failed => UpResult::Failed,
            Answer::Resumed(..)
            | Answer::Positioned(..)
            | Answer::Refreshed(_)
            | Answer::Subscribed(..)
            | Answer::Unsubscribed(..) => UpResult::Ok,
        };
        if let Some(kind) = kind {
            edge.metrics.edge.up_frame(kind, result, at.elapsed());
        }
        answer
    }

    /// What comes next. Biased: a nudge may say that the device is elsewhere by now, and
    /// then nothing more may be read. Cancel-safe.
    fn poll_event(&mut self, cx: &mut Task<'_>) -> Poll<Event> {
        if self.reasons != 0 {
            return Poll::Ready(Event::Nudged(Reasons(std::mem::take(&mut self.reasons))));
        }
        if let Poll::Ready(reasons) = self.nudge().poll_reasons(cx) {
            return Poll::Ready(Event::Nudged(reasons));
        }
        let (stream, unread) = (&mut self.stream, &mut self.unread);
        let read = pool::with_read_buffer(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
            unread.extend_from_slice(buffer.filled());
            Poll::Ready(io::Result::Ok(buffer.filled().len()))
        });
        Poll::Ready(match ready!(read) {
            Ok(0) => Event::Over(CloseReason::Eof),
            Err(_) => Event::Over(CloseReason::Reset),
            Ok(count) => {
                self.bytes_in += count as u64;
                self.edge().metrics.edge.bytes_in.increment(count as u64);
                Event::Read
            }
        })
    }

    /// Writes all output. A timer exists only while the socket takes nothing.
    async fn write(&mut self, out: &mut Output) -> Result<(), CloseReason> {
        if out.bytes.is_empty() {
            return Ok(());
        }
        let bytes = out.bytes.len() as u64;
        let at_once = poll_fn(|cx| Poll::Ready(self.poll_write_all(cx, &mut out.bytes))).await;
        match at_once {
            Poll::Ready(written) => written?,
            Poll::Pending => Box::pin(self.write_slowly(&mut out.bytes)).await?,
        }
        self.bytes_out += bytes;
        self.edge().metrics.edge.bytes_out.increment(bytes);
        Ok(())
    }

    async fn write_slowly(&mut self, bytes: &mut BytesMut) -> Result<(), CloseReason> {
        let deadline = Duration::from_millis(self.edge().config().write_timeout_ms);
        let written = poll_fn(|cx| {
            if let Poll::Ready(reasons) = self.nudge().poll_reasons(cx) {
                self.reasons |= reasons.0;
            }
            if Reasons(self.reasons).has(Reasons::TAKEN_OVER) {
                return Poll::Ready(Err(CloseReason::TakenOver));
            }
            if Reasons(self.reasons).has(Reasons::DRAIN) {
                return Poll::Ready(Err(CloseReason::Draining));
            }
            self.poll_write_all(cx, bytes)
        });
        timeout(deadline, written).await.unwrap_or(Err(CloseReason::WriteTimeout))
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

impl<S> Drop for Connection<S> {
    /// The one place where a connection ends, however it came to that.
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        let Device { arrival, transport, at, _admission } = &self.device;
        let Arrival { edge, device, nudge, serial } = arrival;
        edge.wheel.remove(self.place, nudge);
        session.heard().for_each(|queue| edge.service.unfollow(queue, nudge));
        let reason = self.close.unwrap_or(CloseReason::Aborted);
        edge.ends.ended.of(reason).increment(1);
        edge.metrics.edge.connections_closed.of(*transport).increment(1);
        edge.metrics.edge.connections.decrement(1.0);
        let id = device.to_string();
        tracing::info!(
            device = &id[..DEVICE_CHARS],
            transport = transport.label(),
            version = match session.terms().version {
                Version::V311 => "3.1.1",
                Version::V5 => "5",
            },
            mode = session.mode(),
            duration_ms = at.elapsed().as_millis() as u64,
            pushes = self.tally.pushes,
            acks = self.tally.acks,
            redeliveries = self.tally.redeliveries,
            bytes_in = self.bytes_in,
            bytes_out = self.bytes_out,
            uplinks = self.tally.uplinks,
            close_reason = reason.text(),
            "connection ended"
        );
        let expires_s = edge.now_s() + u64::from(session.terms().expiry_s);
        // A plain session that breaks the rules, such as by speaking frames, is not kept:
        // the device could never leave it.
        let parked = session.into_parked().filter(|_| reason != CloseReason::ProtocolError);
        edge.sessions.end(*device, Token(*serial), parked, expires_s);
    }
}

/// Written at most before the connection gives way to others.
const OUTPUT_BYTES_MAX: usize = 128 << 10;
/// For the last bytes of a connection.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);
/// Characters of a device id that a log line may show.
const DEVICE_CHARS: usize = 6;
/// Spreads consecutive serials evenly (Knuth's multiplicative hash).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        let bytes = size_of::<Connection<tokio::net::TcpStream>>();
        assert!(bytes <= 512, "{bytes} bytes, without what the session boxes");
    }
}
