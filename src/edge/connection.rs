//! The task that owns one socket: it waits, lets the session decide, and does what it says.
//!
//! While nothing happens it holds no buffer, no timer and no future but itself. While a
//! business call runs nothing else of the connection is read.

mod exchange;
mod paced;
mod times;
mod writing;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use carillon_wire::mqtt::{Decoder, Version};
use tokio::{
    io::{AsyncWriteExt, ReadBuf},
    time::{Instant, timeout},
};

use super::{
    Admission, Edge,
    arrival::Arrival,
    carrier::Carrier,
    close::CloseReason,
    heartbeat::Place,
    perform::{self, Heads},
    pool,
    session::{Answer, Call, Context, Input, Output, Session, Tally, down, frames::Ticket},
    sessions::Token,
};
use crate::{
    base::{
        ids::{QueueId, RegId},
        metrics::{Label, Transport, UpKind, UpResult},
    },
    queue::position::Position,
    route::{Nudge, Reasons},
};

/// What a connection did in its life.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    pushes: u32,
    redeliveries: u32,
    acks: u32,
    uplinks: u32,
}

/// What is known of a connection besides its session and its stream.
pub(super) struct Device {
    pub(super) arrival: Arrival,
    pub(super) transport: Transport,
    /// When it was accepted.
    pub(super) at_ms: u64,
    pub(super) _admission: Admission,
}

/// One established connection.
pub(super) struct Connection<S> {
    stream: S,
    /// Taken when the connection ends.
    session: Option<Session>,
    decoder: Decoder,
    /// The beginning of a packet whose rest has not come.
    rest: Option<Box<BytesMut>>,
    place: Place,
    pace: paced::Pace,
    close: Option<CloseReason>,
    tally: Sum,
    bytes_in: u64,
    bytes_out: u64,
    // Dropped last: the device leaves, and then its room is free.
    device: Device,
}

/// What wakes a connection.
pub(super) enum Event {
    /// It was nudged.
    Nudged(Reasons),
    /// These bytes came, after what was left of the ones before.
    Read(BytesMut),
    /// Too much came that is not MQTT's.
    TooMuch(CloseReason),
    /// Nothing more will come.
    Over(CloseReason),
}

impl<S> Connection<S> {
    pub(super) fn new(
        device: Device,
        stream: S,
        session: Session,
        decoder: Decoder,
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
            rest: None,
            place: Place::default(),
            pace: paced::Pace::default(),
            close: None,
            tally: Sum::default(),
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

    fn poll_reasons(&mut self, cx: &mut Task<'_>) -> Poll<Reasons> {
        let reasons = ready!(self.nudge().poll_reasons(cx));
        self.edge().service.served(reasons);
        Poll::Ready(reasons)
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
    fn look<R>(
        &mut self,
        out: &mut Output,
        look: impl FnOnce(&mut Session, &Context<'_>, &mut Output) -> R,
    ) -> Option<R> {
        let arrival = &self.device.arrival;
        let service = &arrival.edge.service;
        let bounds = arrival.edge.config();
        let tag = |queue: &QueueId, position: Position| service.tag(queue, position);
        let totals = |queue: &QueueId| service.totals(queue);
        let is_held = |regid: &RegId| arrival.edge.is_held(regid, &arrival.nudge);
        let cx = Context {
            bounds: &bounds,
            now_s: out.now.s,
            unix_ms: out.now.unix_ms,
            dice: (arrival.serial().wrapping_mul(GOLDEN) >> 32) as u32,
            farewell: arrival.edge.farewell.get(),
            tag: &tag,
            totals: &totals,
            is_held: &is_held,
        };
        self.session.as_mut().map(|session| look(session, &cx, out))
    }

    fn step(&mut self, input: Input, out: &mut Output) {
        self.look(out, |session, cx, out| session.step(cx, input, out));
        self.perform(out);
    }

    fn perform(&mut self, out: &mut Output) {
        for effect in out.effects.drain(..) {
            perform::effect(&self.device.arrival, effect);
        }
    }

    /// Pulls what there is room for. Returns whether there is more than may be written at once.
    fn pull(&mut self, out: &mut Output) -> bool {
        loop {
            if out.bytes.len() >= OUTPUT_BYTES_MAX {
                return true;
            }
            let want = self.look(out, |session, cx, out| session.want(cx, out)).flatten();
            self.perform(out);
            // The answer to a call may make room for more.
            let (Some(want), Some(session)) = (want, &self.session) else {
                return out.call.is_some();
            };
            let followings = session.followings(want.feed);
            let service = &self.device.arrival.edge.service;
            let next = service.look(followings, want.at, want.after, want.take);
            match next.map(|next| self.edge().seen(next, self.nudge())) {
                Ok(pulled) => {
                    self.look(out, |session, cx, out| session.fed(cx, want, pulled, out));
                    self.perform(out);
                }
                // One damaged queue does not end what the device has besides it.
                Err(error) if error.is_damage() => {
                    tracing::error!(%error, "a queue cannot be delivered");
                    self.look(out, |session, cx, out| session.fed(cx, want, None, out));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection ends because a queue cannot be read");
                    self.look(out, |session, _, out| session.close(CloseReason::Unavailable, out));
                    return false;
                }
            }
        }
    }

    /// Makes the calls that the session asks for, until it asks for none.
    async fn answer_calls(&mut self, out: &mut Output) {
        while let Some(call) = out.call.take() {
            let answer = Box::pin(self.call(call)).await;
            out.now = self.edge().now();
            self.step(Input::Answer(answer), out);
        }
    }

    async fn call(&mut self, call: Call) -> Answer {
        let at = Instant::now();
        let is_clean = self.session.as_ref().is_some_and(|session| session.terms().is_clean);
        let heads = if is_clean { Heads::Read } else { Heads::Skip };
        let kind = match &call {
            Call::Resume(ticket, _)
            | Call::Positions(ticket, _)
            | Call::Report(ticket, ..)
            | Call::Repair(ticket, _)
            | Call::Upload(ticket, _)
            | Call::Request(ticket, _) => Some(ticket.kind),
            Call::Refresh | Call::Subscribe(..) | Call::Unsubscribe(..) | Call::Chunk(_) => None,
        };
        let edge = self.edge();
        let answer = perform::call(&self.device.arrival, call, heads).await;
        let result = match &answer {
            Answer::Requested(Ticket { .. }, result) => down::up_result(result),
            Answer::Repaired(_, result) => down::up_result(result),
            Answer::Uploaded(_, result) => down::upload_result(result),
            Answer::Failed => UpResult::Failed,
            Answer::Resumed(..)
            | Answer::Positioned(..)
            | Answer::Refreshed(_)
            | Answer::Advised(..)
            | Answer::Chunk(..)
            | Answer::Subscribed(..)
            | Answer::Unsubscribed(..) => UpResult::Ok,
        };
        if let Some(kind) = kind {
            edge.metrics.edge.up_frame(kind, result, at.elapsed());
        }
        answer
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
        let sum = &mut self.tally;
        for (sum, count) in [
            (&mut sum.pushes, pushes),
            (&mut sum.redeliveries, redeliveries),
            (&mut sum.acks, acks),
            (&mut sum.uplinks, uplinks),
        ] {
            *sum = sum.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        }
        out.ignored.drain(..).for_each(|kind| arrival.edge.ends.ignored.of(kind).increment(1));
        for _ in 0..std::mem::take(&mut out.unknown_ups) {
            metrics.up_frame(UpKind::Unknown, UpResult::Refused, Duration::ZERO);
        }
        self.record_times(out);
    }
}

impl<S: Carrier> Connection<S> {
    /// The first turn: CONNACK goes out, and what came behind CONNECT is handled.
    pub(super) async fn begin(
        mut self: Box<Self>,
        mut out: Box<Output>,
        unread: BytesMut,
    ) -> Option<Box<Self>> {
        self.perform(&mut out);
        self.turn(Event::Read(unread), out).await
    }

    /// Everything that one event leads to. Gives the connection back unless it has ended.
    /// Dropping this ends the connection; nothing is done by halves that matters later.
    pub(super) async fn turn(
        mut self: Box<Self>,
        event: Event,
        mut out: Box<Output>,
    ) -> Option<Box<Self>> {
        let over = self.handle(event, &mut out).await;
        self.record(&mut out);
        pool::give_back(out);
        let Some(reason) = over else { return Some(self) };
        self.close = Some(reason);
        if !matches!(reason, CloseReason::Eof | CloseReason::Reset) {
            // Whether the other side hears the end is its affair.
            drop(timeout(SHUTDOWN_WAIT, self.stream.shutdown()).await);
        }
        None
    }

    /// Returns why the connection ends, if it does.
    async fn handle(&mut self, event: Event, out: &mut Output) -> Option<CloseReason> {
        let mut unread = BytesMut::new();
        out.now = self.edge().now();
        match event {
            Event::Over(reason) => return Some(reason),
            Event::TooMuch(reason) => {
                self.look(out, |session, _, out| session.close(reason, out));
            }
            Event::Nudged(reasons) => {
                self.nudged(reasons, out);
                if let Some(rest) = self.rest.take() {
                    unread = *rest;
                }
            }
            Event::Read(bytes) => unread = bytes,
        }
        loop {
            let mut is_more = self.take_in(&mut unread, out).await;
            if let Err(reason) = self.write(out).await {
                return Some(out.close.unwrap_or(reason));
            }
            if out.close.is_some() {
                return out.close;
            }
            self.look(out, |session, cx, out| session.step(cx, Input::Written, out));
            is_more |= !out.effects.is_empty();
            self.perform(out);
            self.record(out);
            if !is_more {
                break;
            }
            tokio::task::yield_now().await;
            out.now = self.edge().now();
            // A backlog must not keep a takeover or a drain waiting.
            let nudged = poll_fn(|cx| Poll::Ready(self.poll_reasons(cx))).await;
            if let Poll::Ready(reasons) = nudged {
                self.nudged(reasons, out);
            }
        }
        if !unread.is_empty() {
            self.rest = Some(Box::new(unread));
        }
        None
    }

    fn nudged(&mut self, reasons: Reasons, out: &mut Output) {
        self.step(Input::Nudged(reasons), out);
        if reasons.has(Reasons::TICK) && out.close.is_none() {
            self.take_place();
        }
    }

    /// Handles the packets that were read, then pulls. Returns whether more is to be done
    /// once the output is written.
    async fn take_in(&mut self, unread: &mut BytesMut, out: &mut Output) -> bool {
        loop {
            self.answer_calls(out).await;
            if out.close.is_some() {
                return false;
            }
            if out.bytes.len() >= OUTPUT_BYTES_MAX {
                return true;
            }
            match self.decoder.decode(unread) {
                Ok(Some(packet)) => self.packet(packet, out),
                Ok(None) => break,
                Err(error) => self.step(Input::Undecodable(error), out),
            }
        }
        self.pull(out)
    }

    /// What comes next. Biased: a nudge may say that the device is elsewhere by now, and
    /// then nothing more may be read. Cancel-safe.
    pub(super) fn poll_event(&mut self, cx: &mut Task<'_>) -> Poll<Event> {
        if let Poll::Ready(reasons) = self.poll_reasons(cx) {
            return Poll::Ready(Event::Nudged(reasons));
        }
        if let Err(reason) = self.pay_extras() {
            return Poll::Ready(Event::TooMuch(reason));
        }
        let (stream, rest) = (&mut self.stream, &mut self.rest);
        let read = pool::with_read_buffer(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
            let mut unread = rest.take().map_or_else(BytesMut::new, |rest| *rest);
            unread.extend_from_slice(buffer.filled());
            Poll::Ready(io::Result::Ok((buffer.filled().len(), unread)))
        });
        Poll::Ready(match ready!(read) {
            Ok((0, _)) => Event::Over(CloseReason::Eof),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Event::Over(CloseReason::Malformed)
            }
            Err(_) => Event::Over(CloseReason::Reset),
            Ok((count, unread)) => {
                self.bytes_in += count as u64;
                self.edge().metrics.edge.bytes_in.increment(count as u64);
                Event::Read(unread)
            }
        })
    }
}

impl<S> Drop for Connection<S> {
    /// The one place where a connection ends, however it came to that.
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        let Device { arrival, transport, at_ms, _admission } = &self.device;
        let (Arrival { edge, nudge, .. }, device) = (arrival, arrival.device());
        edge.wheel.remove(self.place, nudge);
        session.heard().for_each(|queue| edge.service.unfollow(queue, nudge));
        edge.service.served(nudge.leave());
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
            duration_ms = edge.elapsed_ms() - at_ms,
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
        edge.sessions.end(device, Token(arrival.serial()), parked, expires_s);
    }
}

/// Behind so many bytes of output nothing more is added before they are written: a device that
/// does not read holds them. Then the connection gives way to others.
const OUTPUT_BYTES_MAX: usize = 16 << 10;
/// For the last bytes of a connection.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);
/// Characters of a device id that a log line may show.
const DEVICE_CHARS: usize = 6;
/// Spreads consecutive serials evenly (Knuth).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

#[cfg(test)]
mod tests;
