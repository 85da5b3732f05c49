//! The loop that serves a router on a listener: TLS, HTTP/1.1 and HTTP/2, bounds, drain.
//!
//! A connection holds one slot from its accept on, and one of those of its address; handshakes
//! run outside the accept loop and under a deadline. When told to stop, the loop closes the
//! listener, lets running calls and those on their way end, and returns at the latest
//! after [`DRAIN`].

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Router,
    body::Body,
    http::{
        HeaderValue,
        header::{CONNECTION, EXPECT},
    },
    response::Response,
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use ipnet::IpNet;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, interval, sleep, timeout, timeout_at},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tower::ServiceExt;

use super::{
    Peer,
    callers::{Callers, Refused, Share},
    heard::Heard,
};
use crate::base::{
    net,
    proxy::{self, Balancers},
    tasks,
};

/// What a listener bears.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once.
    pub connections_max: usize,
    /// Of these, so many of one address; 0: no bound.
    pub connections_per_address_max: u32,
    /// The largest head of a request.
    pub head_bytes_max: usize,
    /// For the TLS handshake and for each head, idle time before it included (HTTP/1.1).
    pub head_timeout: Duration,
}

/// One connection's share of the bound; a running call keeps it.
#[derive(Clone)]
pub(super) struct Slot {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// How long calls may go on after the order to stop.
pub const DRAIN: Duration = Duration::from_secs(10);

/// What a listener shows to those who come.
#[derive(Clone)]
pub struct Face {
    /// Around everything, if anything.
    pub tls: Option<Arc<ServerConfig>>,
    /// What answers; a new one answers the next call of every connection.
    pub router: Router,
    /// For new connections; their number is that of the first face.
    pub bounds: Bounds,
    /// Who must say whom he serves.
    pub balancers: Balancers,
    /// Addresses to which no bound of one address applies.
    pub unlimited: Vec<IpNet>,
}

impl Face {
    fn share(&self, callers: &Arc<Callers>, address: IpAddr) -> Option<Share> {
        let address = address.to_canonical();
        if self.unlimited.iter().any(|network| network.contains(&address)) {
            return Some(callers.unbounded());
        }
        callers.share(address, self.bounds.connections_per_address_max)
    }
}

/// A face that can be replaced while it is shown.
pub type Live = Arc<ArcSwap<Face>>;

/// Serves until `stop` turns true or its sender is gone.
pub async fn serve(listener: TcpListener, face: Live, mut stop: watch::Receiver<bool>) {
    let slots_max = face.load().bounds.connections_max.clamp(1, SLOTS_MAX);
    let slots = Arc::new(Semaphore::new(slots_max));
    let callers = Arc::new(Callers::new());
    loop {
        let accepted = tokio::select! {
            biased;
            () = told(&mut stop) => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                let conversation = Conversation {
                    face: face.clone(),
                    bounds: face.load().bounds,
                    peer,
                    slot,
                    callers: callers.clone(),
                    stop: stop.clone(),
                };
                tasks::spawn("http connection", open(stream, conversation));
            }
            Err(error) => {
                // Out of file descriptors, most likely: let some connections end.
                tracing::warn!(%error, "cannot accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = slots.acquire_many(slots_max as u32);
    if timeout(DRAIN + Duration::from_secs(1), all).await.is_err() {
        tracing::warn!("calls still run after the drain");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, Slot)> {
    let permit = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, Slot { _permit: Arc::new(permit) }))
}

/// What a connection needs besides its bytes.
struct Conversation {
    face: Live,
    bounds: Bounds,
    /// Of the socket, and then whom it serves.
    peer: SocketAddr,
    slot: Slot,
    callers: Arc<Callers>,
    stop: watch::Receiver<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

async fn open(stream: TcpStream, conversation: Conversation) {
    let callers = conversation.callers.clone();
    if let Err(why) = serve_one(stream, conversation).await {
        callers.note_refused(why);
    }
}

async fn serve_one(mut stream: TcpStream, mut conversation: Conversation) -> Result<(), Refused> {
    net::tune(&stream, net::Peers::Calls).map_err(|_| Refused::Files)?;
    let deadline = Instant::now() + conversation.bounds.head_timeout;
    let face = conversation.face.load_full();
    let header = proxy::client_address(&mut stream, conversation.peer, &face.balancers);
    let header = timeout_at(deadline, Box::pin(header)).await.map_err(|_| Refused::Timeout)?;
    conversation.peer = header.map_err(|error| {
        tracing::debug!(%error, "a balancer's connection is refused");
        Refused::Balancer
    })?;
    // Closed without a word: a TLS handshake would cost more than the refusal spares.
    let share = face.share(&conversation.callers, conversation.peer.ip());
    let _share = share.ok_or(Refused::AddressConnections)?;
    let Some(acceptor) = face.tls.clone().map(TlsAcceptor::from) else {
        converse(stream, Version::One, conversation).await;
        return Ok(());
    };
    drop(face);
    let accepted = timeout_at(deadline, acceptor.accept(stream)).await;
    let stream = accepted.map_err(|_| Refused::Timeout)?.map_err(|error| {
        tracing::debug!(%error, "tls handshake failed");
        Refused::Tls
    })?;
    let is_two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let version = if is_two { Version::Two } else { Version::One };
    converse(stream, version, conversation).await;
    Ok(())
}

async fn converse<IO>(io: IO, version: Version, conversation: Conversation)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Conversation { face, bounds, peer, slot, mut stop, .. } = conversation;
    let (peer, activity) = (Peer(peer.ip().to_canonical()), Arc::new(Activity::default()));
    let service = {
        let (activity, stop) = (activity.clone(), stop.clone());
        service_fn(move |request: hyper::Request<Incoming>| {
            let router = face.load().router.clone();
            // Who waits for 100 Continue need not send what nobody wants.
            let is_waiting = request.headers().contains_key(EXPECT);
            let (head, body) = request.into_parts();
            let (body, heard) = Heard::of(body);
            let request = hyper::Request::from_parts(head, body);
            let answer = answer(router, request, peer, slot.clone(), activity.clone());
            let stop = stop.clone();
            async move {
                let mut response = answer.await?;
                if version == Version::One && !is_waiting {
                    heard.finish().await;
                }
                if version == Version::One && *stop.borrow() {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        })
    };
    let builder = builder(version, &bounds);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let mut check = interval(IDLE_CHECK);
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "connection broke");
                }
                return;
            }
            () = told(&mut stop) => break,
            _ = check.tick() => if activity.is_idle() { break },
        }
    }
    // HTTP/1.1 has no word for it but in an answer: whoever asks just now gets that one.
    if version == Version::One && timeout(LINGER, connection.as_mut()).await.is_ok() {
        return;
    }
    connection.as_mut().graceful_shutdown();
    if timeout(DRAIN, connection).await.is_err() {
        tracing::debug!("connection cut after the drain");
    }
}

async fn answer(
    router: Router,
    mut request: hyper::Request<Body>,
    peer: Peer,
    slot: Slot,
    activity: Arc<Activity>,
) -> Result<Response, Infallible> {
    let _call = activity.begin();
    request.extensions_mut().insert(peer);
    request.extensions_mut().insert(slot);
    router.oneshot(request).await
}

fn builder(version: Version, bounds: &Bounds) -> auto::Builder<Executor> {
    let builder = auto::Builder::new(Executor);
    let mut builder = match version {
        Version::One => builder.http1_only(),
        Version::Two => builder.http2_only(),
    };
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head_timeout)
        .max_buf_size(bounds.head_bytes_max.max(HTTP1_BUFFER_MIN));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(bounds.head_bytes_max).unwrap_or(u32::MAX))
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    builder
}

/// Completes once the order to stop is given, or nobody is left to give it.
async fn told(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is an order too.
    let _ = stop.wait_for(|is_told| *is_told).await;
}

/// When a connection last did something: HTTP/2 has no head timeout to end idle ones.
struct Activity {
    calls: AtomicUsize,
    ended: Mutex<Instant>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { calls: AtomicUsize::new(0), ended: Mutex::new(Instant::now()) }
    }
}

impl Activity {
    fn begin(self: Arc<Self>) -> Call {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Call(self)
    }

    fn is_idle(&self) -> bool {
        let ended = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        self.calls.load(Ordering::Relaxed) == 0 && ended.elapsed() >= IDLE_MAX
    }
}

struct Call(Arc<Activity>);

impl Drop for Call {
    fn drop(&mut self) {
        *self.0.ended.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets hyper start its HTTP/2 streams through our one door to tasks.
#[derive(Clone, Copy)]
struct Executor;

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        tasks::spawn("http2 stream", future);
    }
}

const SLOTS_MAX: usize = 1 << 24;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const IDLE_CHECK: Duration = Duration::from_secs(15);
/// For calls that come while the order to stop is given.
const LINGER: Duration = Duration::from_millis(250);
const IDLE_MAX: Duration = Duration::from_secs(75);
const STREAMS_MAX: u32 = 64;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// hyper refuses to work with less.
const HTTP1_BUFFER_MIN: usize = 8_192;
