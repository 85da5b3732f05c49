//! MQTT over WebSocket: binary messages as a stream of bytes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config,
    tungstenite::{
        Error, Message,
        handshake::server::{ErrorResponse, Request, Response},
        http::{HeaderValue, StatusCode, header::SEC_WEBSOCKET_PROTOCOL},
        protocol::WebSocketConfig,
    },
};

/// A WebSocket as a stream of bytes.
pub struct WsStream<S> {
    socket: WebSocketStream<S>,
    unread: Bytes,
}

/// Upgrades a stream. The client must offer the subprotocol `mqtt`.
///
/// # Errors
/// If it is no WebSocket handshake for MQTT.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    message_bytes_max: usize,
) -> io::Result<WsStream<S>> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(message_bytes_max.max(WRITE_BYTES) * 4)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max));
    let socket = accept_hdr_async_with_config(stream, choose_mqtt, Some(config)).await;
    let socket = socket.map_err(other)?;
    Ok(WsStream { socket, unread: Bytes::new() })
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a text message",
                    )));
                }
                Some(Err(error)) => return end_of(error),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        if self.unread.is_empty() {
            self.unread = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WsStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(other)?;
        let count = buf.len().min(WRITE_BYTES);
        let message = Message::Binary(Bytes::copy_from_slice(&buf[..count]));
        Pin::new(&mut self.socket).start_send(message).map_err(other)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.socket).poll_close(cx)) {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(other(error))),
        }
    }
}

fn end_of(error: Error) -> Poll<io::Result<()>> {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => Poll::Ready(Ok(())),
        error => Poll::Ready(Err(other(error))),
    }
}

fn other(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

/// The subprotocol that MQTT registers.
const MQTT: &str = "mqtt";
/// Kept for each connection.
const READ_BYTES: usize = 4 << 10;
/// The longest message that we send.
const WRITE_BYTES: usize = 64 << 10;
