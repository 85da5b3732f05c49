//! The only door to sockets: how they are bound and tuned.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A listening socket with a backlog that survives a storm: a short one costs
/// reconnecting clients whole seconds of SYN retransmission.
///
/// # Errors
/// Whatever the operating system says, with the address in the text.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub fn listen(addr: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let bound = || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(backlog)
    };
    bound().map_err(|error| io::Error::new(error.kind(), format!("{addr}: {error}")))
}

/// Sets what every accepted connection wants: no delay on small writes.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)
}
