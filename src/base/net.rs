//! The only door to sockets: how they are bound and tuned.

use std::{fs, io, net::SocketAddr, os::fd::AsRawFd, sync::LazyLock};

use socket2::SockRef;
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

/// Bounds what the kernel keeps of what a connection of this listener was sent and has not
/// taken; 0 leaves it to the kernel, which goes to megabytes.
///
/// # Errors
/// Whatever the operating system says.
pub fn bound_send_buffers(listener: &TcpListener, bytes: usize) -> io::Result<()> {
    // Accepted sockets inherit it.
    if bytes == 0 { Ok(()) } else { SockRef::from(listener).set_send_buffer_size(bytes) }
}

/// Whom a connection serves: the fewer files are left, the fewer are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Devices, and strangers.
    Devices,
    /// App servers and operators: they get in a little longer.
    Calls,
}

impl Peers {
    /// Open files that are left for others.
    fn files_kept(self) -> usize {
        match self {
            Self::Devices => 384,
            Self::Calls => 320,
        }
    }
}

/// Sets what every accepted connection wants: no delay on small writes.
///
/// # Errors
/// Whatever the operating system says, or that too few files would be left: a store that
/// cannot open its own stops the node, and no stranger may cause that.
pub fn tune(stream: &TcpStream, peers: Peers) -> io::Result<()> {
    // The operating system gives the lowest free number.
    let number = usize::try_from(stream.as_raw_fd()).unwrap_or(0);
    if number + peers.files_kept() > open_files_max() {
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too few open files are left"));
    }
    stream.set_nodelay(true)
}

/// How many files this process may have open.
pub fn open_files_max() -> usize {
    static MAX: LazyLock<usize> = LazyLock::new(|| {
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        stated_max(&limits).unwrap_or(usize::MAX)
    });
    *MAX
}

/// The soft limit, as Linux states it; `None` for `unlimited` and where nothing is stated.
fn stated_max(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// With less a node does not start.
pub const OPEN_FILES_MIN: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_read() {
        let limits = "Max processes  7  7  processes\nMax open files   1024   20000   files\n";
        assert_eq!(stated_max(limits), Some(1_024));
        assert_eq!(stated_max("Max open files  unlimited  unlimited  files"), None);
        assert_eq!(stated_max(""), None);
        assert!(Peers::Devices.files_kept() < OPEN_FILES_MIN);
    }
}
