//! A NAT box: a TCP proxy that silently forgets a flow which was idle for too long.
//!
//! From then on it is a black hole for that flow: what either side sends is read and thrown away, and neither hears
//! of the other again, not even its end. It owns one thread and all sockets of its flows, and knows nothing of what
//! passes. One thing differs from a NAT: the sender's kernel sees its bytes acknowledged, so only the silence of the
//! other side tells, never a TCP time-out.

mod flow;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, Protocol, Socket, Type};

use flow::{Flow, Side};

use crate::histogram::Histogram;

/// A running box; dropping it closes all flows.
#[derive(Debug)]
pub struct NatBox {
    addr: SocketAddr,
    shared: Arc<Shared>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and its owner both see.
#[derive(Debug)]
struct Shared {
    forget_after_us: AtomicU64,
    is_stopped: AtomicBool,
    counters: Counters,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    opened: AtomicU64,
    forgotten: AtomicU64,
    /// From devices, and from the server.
    passed: [AtomicU64; 2],
    dropped: AtomicU64,
    silences: Mutex<Silences>,
}

/// How long flows were silent, from 10 ms on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Silences {
    /// Until something passed again.
    pub survived: Histogram,
    /// Until what came was swallowed: the flow had been forgotten meanwhile.
    pub fatal: Histogram,
}

enum Silence {
    Survived,
    Fatal,
}

impl Counters {
    fn silent(&self, silence: Duration, end: Silence) {
        let mut silences = self.silences.lock().unwrap_or_else(PoisonError::into_inner);
        let of = match end {
            Silence::Survived => &mut silences.survived,
            Silence::Fatal => &mut silences.fatal,
        };
        of.add(micros(silence));
    }
}

impl NatBox {
    /// Listens on a free port of 127.0.0.1. `forget_after`: silence in both directions after which a flow is
    /// forgotten.
    pub fn start(target: SocketAddr, forget_after: Duration) -> io::Result<Self> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), target, forget_after)
    }

    /// The same, on an address of the caller's choice.
    pub fn start_on(
        listen: SocketAddr,
        target: SocketAddr,
        forget_after: Duration,
    ) -> io::Result<Self> {
        let mut listener = listener(listen)?;
        let addr = listener.local_addr()?;
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let shared = Arc::new(Shared {
            forget_after_us: AtomicU64::new(micros(forget_after)),
            is_stopped: AtomicBool::new(false),
            counters: Counters::default(),
        });
        let inside = Inside {
            poll,
            listener,
            target,
            shared: shared.clone(),
            flows: HashMap::new(),
            next: 0,
            accept_again_at: None,
        };
        let thread = std::thread::Builder::new().name("nat".to_owned()).spawn(|| inside.run())?;
        Ok(Self { addr, shared, waker, thread: Some(thread) })
    }

    /// Where devices connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A network that changes: flows that are already silent for longer are forgotten at once.
    pub fn set_forget_after(&self, forget_after: Duration) {
        self.shared.forget_after_us.store(micros(forget_after), Ordering::Release);
        // A box that has ended has nothing to forget.
        let _ = self.waker.wake();
    }

    pub fn flows_opened(&self) -> u64 {
        self.shared.counters.opened.load(Ordering::Acquire)
    }

    pub fn flows_forgotten(&self) -> u64 {
        self.shared.counters.forgotten.load(Ordering::Acquire)
    }

    /// Bytes that reached the other side, both directions together.
    pub fn bytes_passed(&self) -> u64 {
        self.bytes_by_sender().iter().sum()
    }

    /// The same: what devices sent, and what the server did.
    pub fn bytes_by_sender(&self) -> [u64; 2] {
        self.shared.counters.passed.each_ref().map(|passed| passed.load(Ordering::Acquire))
    }

    /// Of all flows so far.
    pub(crate) fn silences(&self) -> Silences {
        self.shared.counters.silences.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of forgotten flows, both directions together.
    pub fn bytes_dropped(&self) -> u64 {
        self.shared.counters.dropped.load(Ordering::Acquire)
    }
}

impl Drop for NatBox {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Release);
        let woken = self.waker.wake();
        if let (Ok(()), Some(thread)) = (woken, self.thread.take()) {
            // Its panic has been printed; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Inside {
    poll: Poll,
    listener: TcpListener,
    target: SocketAddr,
    shared: Arc<Shared>,
    flows: HashMap<usize, Flow>,
    next: usize,
    /// Accepting had failed, such as for want of descriptors.
    accept_again_at: Option<Instant>,
}

impl Inside {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        while !self.shared.is_stopped.load(Ordering::Acquire) {
            let timeout = self.next_deadline().map(|at| at.saturating_duration_since(now()));
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            // A flow that is too old is forgotten before anything new may revive it.
            self.forget();
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => {}
                    Token(token) => self.pump(token / 2),
                }
            }
            if self.accept_again_at.is_some_and(|at| at <= now()) {
                self.accept();
            }
        }
    }

    fn forget_after(&self) -> Duration {
        Duration::from_micros(self.shared.forget_after_us.load(Ordering::Acquire))
    }

    fn next_deadline(&self) -> Option<Instant> {
        let live = self.flows.values().filter(|flow| !flow.is_forgotten);
        let oldest = live.map(|flow| flow.passed_at).min();
        let forget_at = oldest.and_then(|at| at.checked_add(self.forget_after()));
        [forget_at, self.accept_again_at].into_iter().flatten().min()
    }

    fn forget(&mut self) {
        let (now, forget_after) = (now(), self.forget_after());
        for flow in self.flows.values_mut().filter(|flow| !flow.is_forgotten) {
            if now.duration_since(flow.passed_at) >= forget_after {
                flow.forget(&self.shared.counters);
            }
        }
    }

    fn accept(&mut self) {
        self.accept_again_at = None;
        loop {
            match self.listener.accept() {
                // A device whose way on cannot be opened sees its connection close.
                Ok((device, from)) => drop(self.open(device, from)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.accept_again_at = Some(now() + ACCEPT_AGAIN_AFTER);
                    return;
                }
            }
        }
    }

    fn open(&mut self, mut device: TcpStream, from: SocketAddr) -> io::Result<()> {
        let mut server = connect(self.target, from)?;
        let number = self.next;
        self.next += 1;
        let both = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        registry.register(&mut device, Token(2 * number), both)?;
        registry.register(&mut server, Token(2 * number + 1), both)?;
        device.set_nodelay(true)?;
        let flow = Flow {
            sides: [Side::new(device), Side::new(server)],
            passed_at: now(),
            is_forgotten: false,
            is_missed: false,
        };
        self.flows.insert(number, flow);
        self.shared.counters.opened.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn pump(&mut self, number: usize) {
        let Some(flow) = self.flows.get_mut(&number) else { return };
        flow.pump(&self.shared.counters);
        if flow.is_over() {
            self.flows.remove(&number);
        }
    }
}

fn now() -> Instant {
    Instant::now()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
}

fn listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// From the device's own address on loopback, so that the server can tell networks apart.
fn connect(target: SocketAddr, from: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if from.ip().is_loopback() && target.ip().is_loopback() && from.is_ipv4() == target.is_ipv4() {
        socket.bind(&SocketAddr::new(from.ip(), 0).into())?;
    }
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);
const BACKLOG: i32 = 32_768;
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// "In progress", on every Linux that we run on.
const EINPROGRESS: i32 = 115;
