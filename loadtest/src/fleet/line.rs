//! One socket, bare or with TLS or WebSocket over it, that never waits. Bare it is a descriptor and holds nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::websocket::WebSocket;

/// See the module.
pub struct Line {
    stream: TcpStream,
    over: Over,
}

/// What is between the socket and MQTT.
enum Over {
    Nothing,
    Tls(Box<ClientConnection>),
    WebSocket(Box<WebSocket>),
}

/// How a connection is to be made.
#[derive(Clone)]
pub enum Carrier {
    Tcp,
    Tls(Arc<ClientConfig>),
    WebSocket,
}

impl Line {
    /// Begins to connect.
    pub fn connect(
        target: SocketAddr,
        source: Option<IpAddr>,
        carrier: &Carrier,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&target.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let over = match carrier {
            Carrier::Tcp => Over::Nothing,
            Carrier::Tls(config) => {
                let name = ServerName::IpAddress(target.ip().into());
                let tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
                Over::Tls(Box::new(tls))
            }
            Carrier::WebSocket => Over::WebSocket(Box::new(WebSocket::new())),
        };
        Ok(Self { stream: TcpStream::from_std(socket.into()), over })
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Whether the connection stands; an error if it never will.
    pub fn is_connected(&self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a session ticket was used; `None` without TLS.
    pub fn is_tls_resumed(&self) -> Option<bool> {
        let Over::Tls(tls) = &self.over else { return None };
        Some(tls.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// As `Read::read`: `WouldBlock` if there is nothing, 0 at the end.
    pub fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let tls = match &mut self.over {
            Over::Nothing => return self.stream.read(room),
            Over::WebSocket(websocket) => return websocket.read(&mut self.stream, room),
            Over::Tls(tls) => tls,
        };
        loop {
            match tls.reader().read(room) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if tls.read_tls(&mut self.stream)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(io::Error::other)?;
            flush(tls, &mut self.stream)?;
        }
    }

    /// How many bytes were taken. A layer over the socket takes all of them, and [`Line::flush`] sends what the
    /// socket did not.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.over {
            Over::Nothing => return self.stream.write(bytes),
            Over::WebSocket(websocket) => websocket.write(&mut self.stream, bytes)?,
            Over::Tls(tls) => {
                tls.writer().write_all(bytes)?;
                flush(tls, &mut self.stream)?;
            }
        }
        Ok(bytes.len())
    }

    /// Sends what a layer holds.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.over {
            Over::Nothing => Ok(()),
            Over::WebSocket(websocket) => websocket.flush(&mut self.stream),
            Over::Tls(tls) => flush(tls, &mut self.stream),
        }
    }

    /// Whether a read that does not fill its room has emptied the socket.
    pub fn is_bare(&self) -> bool {
        matches!(self.over, Over::Nothing)
    }

    /// The close that follows resets the connection.
    pub fn reset_on_close(&self) -> io::Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }
}

fn flush(tls: &mut ClientConnection, stream: &mut TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(stream) {
            Ok(_) => {}
            Err(error) if would_wait(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Later, when the socket says so.
pub fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}

/// "In progress", on every Linux that we run on.
const EINPROGRESS: i32 = 115;
