//! A connection in memory that can be cut behind any byte, and that counts the frames it carries.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, BytesMut};
use carillon_wire::{
    frame, idl,
    mqtt::{self, Decoder, Packet, Version},
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::bugs::{Bug, Seen};

/// What the world holds of a connection: it can cut it.
#[derive(Clone)]
pub struct Line(Arc<Mutex<State>>);

/// The device's end.
pub struct End(Line);

struct State {
    /// The way to the gateway. Behind a cut it may stay open: then the gateway notices nothing.
    inner: Option<DuplexStream>,
    lingers: bool,
    is_cut: bool,
    /// Bytes until it is cut by itself.
    left: u64,
    up: Way,
    down: Way,
    wakers: Vec<Waker>,
}

impl Line {
    pub fn new(inner: DuplexStream, left: u64, lingers: bool, watch: &Watch) -> Self {
        let up = Way::new(Decoder::server(MAX), watch.clone());
        let down = Way::new(Decoder::client(Version::V5, MAX), watch.clone());
        let inner = Some(inner);
        let state = State { inner, lingers, is_cut: false, left, up, down, wakers: Vec::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    pub fn end(&self) -> End {
        End(self.clone())
    }

    pub fn cut(&self) {
        self.0.lock().unwrap().cut();
    }
}

impl State {
    fn cut(&mut self) {
        self.is_cut = true;
        if !self.lingers {
            self.inner = None;
        }
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// How many of these bytes still pass.
    fn spend(&mut self, bytes: usize) -> usize {
        let passing = (bytes as u64).min(self.left);
        self.left -= passing;
        passing as usize
    }

    /// Moves what waits towards the gateway.
    fn poll_up(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.up.out.is_empty() {
            let inner = self.inner.as_mut().ok_or_else(reset)?;
            let written = ready!(Pin::new(inner).poll_write(context, &self.up.out))?;
            self.up.out.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn check(&mut self, context: &Context<'_>) -> io::Result<()> {
        if self.left == 0 && !self.is_cut {
            self.up.watch.seen.lock().unwrap().cuts += 1;
            self.cut();
        }
        if self.is_cut {
            return Err(reset());
        }
        self.wakers.push(context.waker().clone());
        if self.wakers.len() > 8 {
            let mut waking: Vec<Waker> = Vec::new();
            for waker in self.wakers.drain(..) {
                if !waking.iter().any(|one| one.will_wake(&waker)) {
                    waking.push(waker);
                }
            }
            self.wakers = waking;
        }
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.cut();
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.0.lock().unwrap();
        let state = &mut *state;
        state.check(context)?;
        let mut room = [0; 4096];
        while state.down.out.is_empty() {
            let inner = state.inner.as_mut().ok_or_else(reset)?;
            let mut read = ReadBuf::new(&mut room);
            ready!(Pin::new(inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            let read = read.filled();
            state.down.pass(read, Watch::down);
        }
        let count = state.down.out.len().min(to.remaining());
        let count = state.spend(count);
        to.put_slice(&state.down.out[..count]);
        state.down.out.advance(count);
        if count == 0 {
            state.cut();
            return Poll::Ready(Err(reset()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.0.lock().unwrap();
        state.check(context)?;
        ready!(state.poll_up(context))?;
        let count = state.spend(bytes.len());
        state.up.pass(&bytes[..count], Watch::up);
        // What finds no room now goes on with the next write or flush.
        match state.poll_up(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.0.lock().unwrap();
        state.check(context)?;
        state.poll_up(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.0.lock().unwrap();
        let _ = state.poll_up(context);
        state.cut();
        Poll::Ready(Ok(()))
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// One direction: looks at whole packets, and passes bytes on as they come. Only a planted bug
/// holds them until the packet is whole.
struct Way {
    decoder: Decoder,
    held: BytesMut,
    out: BytesMut,
    watch: Watch,
}

impl Way {
    fn new(decoder: Decoder, watch: Watch) -> Self {
        Self { decoder, held: BytesMut::new(), out: BytesMut::new(), watch }
    }

    fn pass(&mut self, bytes: &[u8], look: fn(&Watch, &[u8]) -> Option<Vec<u8>>) {
        self.held.extend_from_slice(bytes);
        let is_altering = self.watch.bug.is_on_the_line();
        if !is_altering {
            self.out.extend_from_slice(bytes);
        }
        while let Ok(Some(mut packet)) = self.decoder.decode(&mut self.held) {
            if let Packet::Publish(publish) = &mut packet
                && let Some(payload) = look(&self.watch, &publish.payload)
            {
                publish.payload = payload.into();
            }
            if is_altering {
                mqtt::encode(Version::V5, &packet, &mut self.out).expect("a packet");
            }
        }
    }
}

/// Looks at frames. What it returns takes the place of one.
#[derive(Clone)]
pub struct Watch {
    pub bug: Bug,
    pub seen: Arc<Mutex<Seen>>,
}

impl Watch {
    fn up(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut up = frame::decode_up(bytes).ok()?;
        let mut seen = self.seen.lock().unwrap();
        seen.repairs += u64::from(up.repair.is_some());
        seen.uploads += u64::from(up.upload.as_ref().is_some_and(|one| !one.edits.is_empty()));
        let is_altered = self.bug.spoil_up(&mut up, &mut seen);
        let mut out = Vec::new();
        is_altered.then(|| frame::encode_up(&up, &mut out).expect("a frame"))?;
        Some(out)
    }

    fn down(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut down = frame::decode_down(bytes).ok()?;
        let mut seen = self.seen.lock().unwrap();
        seen.of_down(&down);
        let is_altered = self.bug.spoil_down(&mut down, &mut seen);
        let mut out = Vec::new();
        is_altered.then(|| frame::encode_down(&down, &mut out).expect("a frame"))?;
        Some(out)
    }
}

impl Seen {
    fn of_down(&mut self, down: &idl::Down) {
        self.chunks += u64::from(down.snapshot.is_some());
        let Some(deltas) = &down.deltas else { return };
        self.deltas += 1;
        for delta in &deltas.deltas {
            let range = delta.to_seq - delta.from_seq + 1;
            let is_alias = delta.queue.kind == idl::QueueKind::ALIAS;
            self.coalesced += u64::from(is_alias && range > delta.entries.len() as i64);
        }
    }
}

const MAX: u32 = 1 << 20;
