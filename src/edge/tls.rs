//! TLS as a stream of bytes that holds no buffer while it is idle.
//!
//! rustls' unbuffered connection keeps keys and state only. Records are read into, opened
//! from and sealed into buffers that the worker's connections share; a connection keeps bytes
//! of its own only while a record has come or gone in part.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The server's end of a TLS connection.
pub struct TlsStream<S> {
    stream: S,
    tls: Box<UnbufferedServerConnection>,
    held: Option<Box<Held>>,
    /// The peer will send nothing more.
    is_read_closed: bool,
    /// We have said that we will send nothing more.
    is_write_closed: bool,
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

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Shakes hands. The caller's deadline bounds it.
    ///
    /// # Errors
    /// If the peer breaks off, or what it says is not acceptable: then it is told why.
    pub async fn accept(stream: S, config: Arc<ServerConfig>) -> io::Result<Self> {
        let tls = Box::new(UnbufferedServerConnection::new(config).map_err(io::Error::other)?);
        let mut accepting =
            Self { stream, tls, held: None, is_read_closed: false, is_write_closed: false };
        std::future::poll_fn(|cx| accepting.poll_handshake(cx)).await?;
        Ok(accepting)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.is_handshaking() {
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
        let mut at = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.tls.process_tls_records(&mut records[at..]);
            let is_done = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(io::Error::other)?;
                        discard += record.discard;
                        let room = record.payload.len().min(into.remaining());
                        into.put_slice(&record.payload[..room]);
                        if room < record.payload.len() {
                            let plain = &mut self.held.get_or_insert_default().plain;
                            plain.extend_from_slice(&record.payload[room..]);
                        }
                    }
                    false
                }
                Ok(ConnectionState::EncodeTlsData(encode)) => {
                    encode_into(encode, &mut self.held.get_or_insert_default().outgoing)?;
                    false
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    false
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.is_read_closed = true;
                    false
                }
                Ok(ConnectionState::Closed) => {
                    self.is_read_closed = true;
                    true
                }
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => true,
                Ok(_) => return Err(io::Error::other("early data, which was not offered")),
                Err(error) => {
                    self.queue_alert();
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            at += discard;
            if is_done {
                break;
            }
        }
        if at < records.len() && !self.is_read_closed {
            self.held.get_or_insert_default().incoming.extend_from_slice(&records[at..]);
        }
        Ok(())
    }

    /// After a failure rustls has an alert for the peer.
    fn queue_alert(&mut self) {
        while let Ok(ConnectionState::EncodeTlsData(encode)) =
            self.tls.process_tls_records(&mut []).state
        {
            if encode_into(encode, &mut self.held.get_or_insert_default().outgoing).is_err() {
                return;
            }
        }
    }

    /// Seals as much as one record takes, behind what rustls itself has to say.
    fn seal(&mut self, data: &[u8], sealed: &mut [u8]) -> io::Result<(usize, usize)> {
        let data = &data[..data.len().min(RECORD_BYTES)];
        loop {
            match self.tls.process_tls_records(&mut []).state.map_err(io::Error::other)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let count = traffic.encrypt(data, sealed).map_err(exhausted)?;
                    return Ok((data.len(), count));
                }
                ConnectionState::EncodeTlsData(encode) => {
                    encode_into(encode, &mut self.held.get_or_insert_default().outgoing)?;
                }
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                ConnectionState::PeerClosed => self.is_read_closed = true,
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
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
        let this = &mut *self;
        BUFFER.with_borrow_mut(|sealed| {
            let (taken, bytes) = this.seal(data, sealed)?;
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
            if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
                this.tls.process_tls_records(&mut []).state
            {
                let mut notice = [0; NOTICE_BYTES];
                let bytes = traffic.queue_close_notify(&mut notice).map_err(exhausted)?;
                let outgoing = &mut this.held.get_or_insert_default().outgoing;
                outgoing.extend_from_slice(&notice[..bytes]);
            }
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn encode_into(
    mut encode: EncodeTlsData<'_, ServerConnectionData>,
    outgoing: &mut Vec<u8>,
) -> io::Result<()> {
    let at = outgoing.len();
    let required = match encode.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(EncodeError::AlreadyEncoded) | Ok(_) => return Ok(()),
    };
    outgoing.resize(at + required, 0);
    encode.encode(&mut outgoing[at..]).map_err(io::Error::other)?;
    Ok(())
}

fn exhausted(error: EncryptError) -> io::Error {
    io::Error::other(error)
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_BYTES]);
}

/// Application data of one record: what TLS allows.
const RECORD_BYTES: usize = 16 << 10;
/// A record, and what it may have besides its data. A handshake message may span records.
const BUFFER_BYTES: usize = 2 * RECORD_BYTES;
/// Room for a close notice.
const NOTICE_BYTES: usize = 128;

#[cfg(test)]
mod tests;
