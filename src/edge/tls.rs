//! TLS as a stream of bytes that holds no buffer while it is idle, nor ciphers.
//!
//! rustls shakes hands and serves TLS 1.2 ([`driven`]); in TLS 1.3 it then leaves its keys to
//! [`lean`]. Records are read into, opened from and sealed into buffers that the worker's
//! connections share; a connection keeps bytes of its own only while a record has come or
//! gone in part.

mod driven;
mod lean;

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::{driven::Driven, lean::Lean};
use super::carrier::Carrier;

/// The server's end of a TLS connection.
pub struct TlsStream<S> {
    stream: S,
    layer: Layer,
    held: Option<Box<Held>>,
    /// The peer will send nothing more.
    is_read_closed: bool,
    /// We have said that we will send nothing more.
    is_write_closed: bool,
}

impl<S: Carrier> Carrier for TlsStream<S> {}

/// Who protects the records.
enum Layer {
    /// rustls: the handshake, and TLS 1.2.
    Driven(Box<Driven>),
    /// Keys alone: TLS 1.3 once hands are shaken.
    Lean(Box<Lean>),
}

/// What is left between two steps. Absent while there is nothing.
#[derive(Default)]
struct Held {
    /// Records that have not come whole.
    incoming: Vec<u8>,
    /// Opened, and not yet read.
    plain: Vec<u8>,
    /// Sealed, and not yet written.
    outgoing: Vec<u8>,
}

/// Where opened data goes, and what is to be sent.
struct Sink<'a, 'b> {
    into: &'a mut ReadBuf<'b>,
    held: &'a mut Option<Box<Held>>,
    is_read_closed: &'a mut bool,
}

impl Sink<'_, '_> {
    /// Data for the reader: what it has no room for is held.
    fn plain(&mut self, data: &[u8]) {
        let room = data.len().min(self.into.remaining());
        self.into.put_slice(&data[..room]);
        if room < data.len() {
            self.held.get_or_insert_default().plain.extend_from_slice(&data[room..]);
        }
    }

    /// Records for the peer.
    fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.held.get_or_insert_default().outgoing
    }
}

impl Layer {
    /// After the handshake.
    fn settle(self) -> io::Result<Self> {
        match self {
            Self::Driven(driven) if driven.is_over() => {
                Ok(Self::Lean(Box::new(Lean::take_over(driven.into_tls())?)))
            }
            Self::Driven(_) | Self::Lean(_) => Ok(self),
        }
    }

    fn open(&mut self, records: &mut [u8], sink: &mut Sink<'_, '_>) -> io::Result<usize> {
        match self {
            Self::Driven(driven) => driven.open(records, sink),
            Self::Lean(lean) => lean.open(records, sink),
        }
    }

    fn seal(
        &mut self,
        data: &[u8],
        sealed: &mut [u8],
        held: &mut Option<Box<Held>>,
    ) -> io::Result<(usize, usize)> {
        match self {
            Self::Driven(driven) => driven.seal(data, sealed, held),
            Self::Lean(lean) => {
                lean.refresh(held)?;
                lean.seal(data, sealed)
            }
        }
    }

    fn close(&mut self, outgoing: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Driven(driven) => driven.close(outgoing),
            Self::Lean(lean) => lean.close(outgoing),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Shakes hands. The caller's deadline bounds it.
    ///
    /// # Errors
    /// If the peer breaks off, or what it says is not acceptable: then it is told why.
    pub async fn accept(stream: S, config: Arc<ServerConfig>) -> io::Result<Self> {
        let layer = Layer::Driven(Box::new(Driven::new(config)?));
        let mut accepting =
            Self { stream, layer, held: None, is_read_closed: false, is_write_closed: false };
        std::future::poll_fn(|cx| accepting.poll_handshake(cx)).await?;
        accepting.layer = accepting.layer.settle()?;
        std::future::poll_fn(|cx| accepting.poll_take_held(cx)).await?;
        Ok(accepting)
    }

    /// Takes in what came behind the end of the handshake: no socket will give it again.
    fn poll_take_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(held) = &mut self.held else { return Poll::Ready(Ok(())) };
        let mut records = std::mem::take(&mut held.incoming);
        let taken = self.open(&mut records, &mut ReadBuf::new(&mut []));
        // What does not go now goes later, but who failed is told here or never.
        let drained = self.poll_drain(cx);
        taken?;
        if let Poll::Ready(drained) = drained {
            drained?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while matches!(&self.layer, Layer::Driven(driven) if driven.is_handshaking()) {
            let count = ready!(self.poll_take_in(cx, &mut ReadBuf::new(&mut [])))?;
            if count == 0 || self.is_read_closed {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        // A ticket that is still to be written goes with the first data.
        Poll::Ready(Ok(()))
    }

    /// Reads from the socket and takes in what came: opened data goes to `into` as far as there
    /// is room, and is held otherwise. Gives the count of bytes that came; 0 is their end.
    fn poll_take_in(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        // The peer may wait for what is sealed before it says more.
        if let Poll::Ready(drained) = self.poll_drain(cx) {
            drained?;
        }
        BUFFER.with_borrow_mut(|buffer| {
            let before = self.held.as_ref().map_or(0, |held| held.incoming.len());
            if before == buffer.len() {
                return Poll::Ready(Err(io::Error::other("a TLS message is too long")));
            }
            let mut read = ReadBuf::new(&mut buffer[before..]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
            let count = read.filled().len();
            if let Some(held) = &mut self.held {
                buffer[..before].copy_from_slice(&held.incoming);
                held.incoming.clear();
            }
            let taken = self.open(&mut buffer[..before + count], into);
            // Also what tells the peer why it failed. What does not go now goes the next time.
            let drained = self.poll_drain(cx);
            taken?;
            if let Poll::Ready(drained) = drained {
                drained?;
            }
            Poll::Ready(Ok(count))
        })
    }

    /// Takes records in, and holds what is incomplete.
    fn open(&mut self, records: &mut [u8], into: &mut ReadBuf<'_>) -> io::Result<()> {
        let Self { held, is_read_closed, .. } = self;
        let opened = self.layer.open(records, &mut Sink { into, held, is_read_closed });
        // After an error nothing more is opened, and nothing said but why.
        (self.is_read_closed, self.is_write_closed) =
            (self.is_read_closed || opened.is_err(), self.is_write_closed || opened.is_err());
        let at = opened?;
        if at < records.len() && !self.is_read_closed {
            self.held.get_or_insert_default().incoming.extend_from_slice(&records[at..]);
        }
        Ok(())
    }

    /// Writes what is sealed, and forgets what is empty.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(held) = &mut self.held else { return Poll::Ready(Ok(())) };
        let mut sent = 0;
        let drained = loop {
            if sent == held.outgoing.len() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_write(cx, &held.outgoing[sent..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        held.outgoing.drain(..sent);
        if held.incoming.is_empty() && held.plain.is_empty() && held.outgoing.is_empty() {
            self.held = None;
        }
        drained
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let Some(held) = self.held.as_mut().filter(|held| !held.plain.is_empty()) {
                let count = held.plain.len().min(into.remaining());
                into.put_slice(&held.plain[..count]);
                held.plain.drain(..count);
                return Poll::Ready(Ok(()));
            }
            if self.is_read_closed {
                return Poll::Ready(Ok(()));
            }
            let count = ready!(self.poll_take_in(cx, into))?;
            if into.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            // An end without its notice is an end all the same: MQTT has its own.
            self.is_read_closed |= count == 0;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let this = &mut *self;
        BUFFER.with_borrow_mut(|sealed| {
            let (taken, bytes) = this.layer.seal(data, sealed, &mut this.held)?;
            let mut sent = 0;
            if this.held.as_ref().is_none_or(|held| held.outgoing.is_empty())
                && let Poll::Ready(count) =
                    Pin::new(&mut this.stream).poll_write(cx, &sealed[..bytes])
            {
                sent = count?;
            }
            if sent < bytes {
                let outgoing = &mut this.held.get_or_insert_default().outgoing;
                outgoing.extend_from_slice(&sealed[sent..bytes]);
            }
            Poll::Ready(Ok(taken))
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_write_closed {
            self.is_write_closed = true;
            let this = &mut *self;
            this.layer.close(&mut this.held.get_or_insert_default().outgoing)?;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_BYTES]);
}

/// Application data of one record: what TLS allows.
const RECORD_BYTES: usize = 16 << 10;
/// Of a record's type, version and length.
const HEADER_BYTES: usize = 5;
/// A record, and what it may have besides its data. A handshake message may span records.
const BUFFER_BYTES: usize = 2 * RECORD_BYTES;
#[cfg(test)]
mod end_tests;
#[cfg(test)]
mod tests;
