//! The only door to sockets: how they are bound and tuned.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    sync::LazyLock,
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
    process::{Resource, Rlimit, geteuid, getrlimit, setrlimit},
};
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::{TcpListener, TcpSocket, TcpStream, UnixStream},
};

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

/// Passes listening sockets on, with a message of at most [`MESSAGE_BYTES_MAX`].
///
/// # Errors
/// Whatever the operating system says.
pub async fn send_listeners(
    stream: &UnixStream,
    message: &[u8],
    listeners: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let sent = stream.async_io(Interest::WRITABLE, || {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(LISTENERS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(listeners)) {
            return Err(io::Error::other("too many listeners"));
        }
        let sent = sendmsg(stream, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(sent)
    });
    match sent.await? {
        sent if sent == message.len() => Ok(()),
        _ => Err(io::Error::other("the message went out in part")),
    }
}

/// Takes what [`send_listeners`] sent. An empty message is the end of the stream.
///
/// # Errors
/// Whatever the operating system says, or that a descriptor was cut off.
pub async fn receive_listeners(
    stream: &UnixStream,
) -> io::Result<(Vec<u8>, Vec<std::net::TcpListener>)> {
    let received = stream.async_io(Interest::READABLE, || {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(LISTENERS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut message = vec![0; MESSAGE_BYTES_MAX];
        let into = &mut [IoSliceMut::new(&mut message)];
        let received = recvmsg(stream, into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let listeners = control.drain().flat_map(|part| match part {
            RecvAncillaryMessage::ScmRights(all) => all.map(Into::into).collect(),
            _ => Vec::new(),
        });
        let listeners = listeners.collect();
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other("too many open files to take over the listeners"));
        }
        message.truncate(received.bytes);
        Ok((message, listeners))
    });
    received.await
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

/// A listening socket that somebody else opened. Its backlog becomes ours.
///
/// # Errors
/// Whatever the operating system says: it may be no listening socket.
pub fn adopt(listener: std::net::TcpListener, backlog: u32) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    rustix::net::listen(&listener, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(listener)
}

/// How many files this process may have open. The first call raises the soft limit to the
/// hard one: the soft one is for programs that cannot bear more.
pub fn open_files_max() -> usize {
    static MAX: LazyLock<usize> = LazyLock::new(|| {
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let current = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit.maximum,
            Err(_) => limit.current,
        };
        current.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX))
    });
    *MAX
}

/// Devices that can be connected at once, as far as open files go.
pub fn device_files_max() -> usize {
    open_files_max().saturating_sub(Peers::Devices.files_kept())
}

/// The longest backlog that the kernel gives a listener; `None` where it does not say.
pub fn backlog_max() -> Option<u32> {
    fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()
}

/// Whether the process at the other end is ours or the machine's administrator's.
pub fn is_trusted(stream: &UnixStream) -> bool {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    peer.is_ok_and(|uid| uid == 0 || uid == geteuid().as_raw())
}

/// The listeners that the process was started with, as systemd passes them.
pub fn inherited() -> Vec<std::net::TcpListener> {
    let mut passed = listenfd::ListenFd::from_env();
    (0..passed.len()).filter_map(|at| passed.take_tcp_listener(at).ok().flatten()).collect()
}

/// Listeners in one message.
const LISTENERS_MAX: usize = 16;
/// Bytes of one message.
pub const MESSAGE_BYTES_MAX: usize = 4_096;
/// With less a node does not start.
pub const OPEN_FILES_MIN: usize = 512;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_limit_of_open_files_is_the_hard_one() {
        let max = open_files_max();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(limit.current.map_or(usize::MAX, |max| max as usize), max);
        assert!(Peers::Devices.files_kept() < OPEN_FILES_MIN);
    }

    #[tokio::test]
    async fn a_listener_passed_on_outlives_the_one_who_opened_it() {
        let (old, new) = UnixStream::pair().unwrap();
        let there = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = there.local_addr().unwrap();
        send_listeners(&old, b"take", &[there.as_fd(), there.as_fd()]).await.unwrap();
        drop((there, old));
        let (message, mut passed) = receive_listeners(&new).await.unwrap();
        assert_eq!((&message[..], passed.len()), (&b"take"[..], 2));
        let passed = adopt(passed.remove(0), 16).unwrap();
        let early = std::net::TcpStream::connect(addr).unwrap();
        assert_eq!(passed.accept().await.unwrap().1, early.local_addr().unwrap());
        assert!(receive_listeners(&new).await.unwrap().0.is_empty());
        assert!(is_trusted(&new));
    }

    #[tokio::test]
    async fn an_adopted_listener_accepts_who_came_before() {
        let there = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = there.local_addr().unwrap();
        let early = std::net::TcpStream::connect(addr).unwrap();
        let adopted = adopt(there, 16).unwrap();
        let (_, peer) = adopted.accept().await.unwrap();
        assert_eq!(peer, early.local_addr().unwrap());
    }
}
