//! MQTT over WebSocket: binary messages as a stream of bytes.
//!
//! Nothing is held of what comes: data is taken out of its frames in the reader's buffer, so
//! that a stranger costs what he costs over TCP. Of what goes, one frame is held while the
//! socket does not take it, and one answer to a ping.

mod frames;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    accept_hdr_async_with_config,
    tungstenite::{
        Error,
        handshake::server::{ErrorResponse, Request, Response},
        http::{HeaderValue, StatusCode, header::SEC_WEBSOCKET_PROTOCOL},
        protocol::WebSocketConfig,
    },
};

use self::frames::Reader;
use super::carrier::Carrier;

/// A WebSocket as a stream of bytes.
pub struct WsStream<S> {
    stream: S,
    reader: Reader,
    /// Framed and not yet written.
    outgoing: BytesMut,
    /// The layer below has taken something that it may hold.
    is_unflushed: bool,
    /// We have said that we will send nothing more.
    is_closed: bool,
}

/// Upgrades a stream. The client must offer the subprotocol `mqtt`. The caller's deadline
/// bounds it.
///
/// # Errors
/// If it is no WebSocket handshake for MQTT.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    frame_bytes_max: u32,
) -> io::Result<WsStream<S>> {
    let upgrading = Upgrading { stream, left: REQUEST_BYTES_MAX };
    // The library shakes hands; it refuses a client that says more before the answer, so that
    // nothing of what follows is lost with it.
    let config = WebSocketConfig::default().read_buffer_size(0);
    let upgraded = accept_hdr_async_with_config(upgrading, choose_mqtt, Some(config)).await;
    let stream = upgraded.map_err(other)?.into_inner().stream;
    Ok(WsStream::over(stream, frame_bytes_max))
}

#[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
fn choose_mqtt(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let offered = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let is_mqtt = offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|protocol| protocol.trim() == MQTT);
    if is_mqtt {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(MQTT));
        return Ok(response);
    }
    let mut refusal = ErrorResponse::new(Some("the subprotocol must be mqtt".to_owned()));
    *refusal.status_mut() = StatusCode::BAD_REQUEST;
    Err(refusal)
}

/// A stream until its HTTP request has come, which has a bound.
struct Upgrading<S> {
    stream: S,
    left: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Upgrading<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let count = buf.filled().len() - before;
        let left = self.left.checked_sub(count);
        self.left = left.ok_or_else(|| broken("the request is too long"))?;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Upgrading<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S> WsStream<S> {
    fn over(stream: S, frame_bytes_max: u32) -> Self {
        let (reader, outgoing) = (Reader::new(frame_bytes_max.into()), BytesMut::new());
        Self { stream, reader, outgoing, is_unflushed: false, is_closed: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WsStream<S> {
    /// Writes what is owed: the frame that has begun, and then an answer.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.outgoing.is_empty() {
                self.is_unflushed = true;
                match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outgoing))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => self.outgoing.advance(count),
                }
            }
            self.outgoing = BytesMut::new();
            if self.is_closed || !self.reader.owes_answer() {
                break;
            }
            self.is_closed = self.reader.is_over;
            self.outgoing = self.reader.take_answer();
        }
        if self.is_unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The same for who does not wait for it: the task is woken when there is room.
    fn drain_some(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.poll_drain(cx) {
            Poll::Ready(drained) => drained,
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.reader.extras > EXTRAS_UNTAKEN_MAX {
            return Poll::Ready(Err(broken("it says too much that is no MQTT")));
        }
        loop {
            self.drain_some(cx)?;
            if self.reader.is_over {
                return Poll::Ready(Ok(()));
            }
            let mut raw = ReadBuf::new(buf.initialize_unfilled());
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut raw))?;
            if raw.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            let data = self.reader.open(raw.filled_mut());
            let data = data.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if data > 0 {
                buf.advance(data);
                self.drain_some(cx)?;
                return Poll::Ready(Ok(()));
            }
            if self.reader.extras > 0 {
                // Whoever counts them has a look before more are read.
                self.drain_some(cx)?;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WsStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let count = buf.len().min(MESSAGE_BYTES_MAX);
        if count > 0 {
            self.outgoing = frames::binary(&buf[..count]);
            self.drain_some(cx)?;
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        if !self.is_closed {
            self.is_closed = true;
            self.outgoing = frames::close();
            ready!(self.poll_drain(cx))?;
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Carrier> Carrier for WsStream<S> {
    fn take_extras(&mut self) -> u32 {
        std::mem::take(&mut self.reader.extras)
    }
}

fn broken(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn other(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

/// The subprotocol that MQTT registers.
const MQTT: &str = "mqtt";
/// Of the HTTP request that begins it: what a stranger may make us hold.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// The longest message that we send. A device that takes one is not stalled, however slowly.
const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Frames without data where nobody counts them: before CONNECT.
const EXTRAS_UNTAKEN_MAX: u32 = 16;

#[cfg(test)]
mod tests;
