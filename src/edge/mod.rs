//! The MQTT front: listeners, the session machine, connections.
//!
//! [`session`] decides, `connection` does; `listener` lets in no more than the
//! node can bear; `heartbeat` holds the deadlines and `sessions` what outlives a
//! connection. It never imports the other doors.

pub mod close;
mod connection;
pub mod farewell;
mod greeting;
mod heartbeat;
mod life;
mod listener;
mod perform;
mod pool;
pub mod session;
mod sessions;
mod tls;
mod websocket;

use std::{
    net::IpAddr,
    sync::{
        Arc, Once, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
pub use listener::Door;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior},
};

use self::{
    close::EndMetrics, farewell::Farewell, heartbeat::Wheel, life::Life, sessions::Sessions,
};
use crate::{
    base::{
        metrics::{Handshake, Metrics, Transport},
        tasks,
    },
    config,
    service::Service,
};

/// The device's side of one node. All transports share it.
pub struct Edge {
    service: Arc<Service>,
    config: ArcSwap<config::Edge>,
    metrics: Arc<Metrics>,
    ends: EndMetrics,
    wheel: Wheel,
    sessions: Sessions,
    handshakes: Arc<Semaphore>,
    connections: AtomicUsize,
    emptied: Notify,
    /// Set once the node drains.
    farewell: OnceLock<Farewell>,
    serial: AtomicU64,
    started: Instant,
    heartbeat: Once,
}

/// Room for one connection, taken until it is dropped.
struct Admission(Arc<Edge>);

/// Room for one handshake, taken until it is dropped.
struct Handshaking {
    edge: Arc<Edge>,
    _permit: OwnedSemaphorePermit,
}

impl Edge {
    /// The edge of a node; nothing listens yet.
    pub fn new(service: Arc<Service>, config: config::Edge, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            sessions: Sessions::new(config.parked_sessions_max),
            handshakes: Arc::new(Semaphore::new(config.handshakes_max.min(Semaphore::MAX_PERMITS))),
            service,
            config: ArcSwap::from_pointee(config),
            metrics,
            ends: EndMetrics::new(),
            wheel: Wheel::default(),
            connections: AtomicUsize::new(0),
            emptied: Notify::new(),
            farewell: OnceLock::new(),
            serial: AtomicU64::new(0),
            started: Instant::now(),
            heartbeat: Once::new(),
        })
    }

    /// Serves one stream that speaks MQTT until it ends.
    pub async fn serve_stream<S>(
        self: Arc<Self>,
        stream: S,
        _peer: Option<IpAddr>,
        transport: Transport,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (Some(admission), Ok(permit)) =
            (self.admit(), self.handshakes.clone().try_acquire_owned())
        else {
            self.metrics.edge.handshakes.of(Handshake::Refused).increment(1);
            return;
        };
        let handshaking = Handshaking::new(&self, permit);
        let serial = self.next_serial();
        let accepted = Accepted { transport, at: Instant::now(), admission, handshaking, serial };
        Life::new(accepted, std::future::ready(Ok(stream))).await;
    }

    /// Bounds for what comes from now on; a connection keeps what it was granted. The
    /// numbers of handshakes and of parked sessions stay as they are.
    pub fn reconfigure(&self, config: config::Edge) {
        self.config.store(Arc::new(config));
    }

    /// Waits until no connection is left.
    pub async fn drained(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.connections() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Connections and handshakes now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn admit(self: &Arc<Self>) -> Option<Admission> {
        self.heartbeat.call_once(|| {
            tasks::spawn("heartbeat", beat(Arc::downgrade(self)));
        });
        let before = self.connections.fetch_add(1, Ordering::SeqCst);
        let admission = Admission(self.clone());
        let is_open = before < self.config().connections_max && !self.is_draining();
        is_open.then_some(admission)
    }

    fn is_draining(&self) -> bool {
        self.farewell.get().is_some()
    }

    fn config(&self) -> Guard<Arc<config::Edge>> {
        self.config.load()
    }

    /// Sockets are accepted in the order in which they were opened.
    fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// Since the edge was made.
    fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn now_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    fn notify_if_empty(&self) {
        if self.connections() == 0 {
            self.emptied.notify_waiters();
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
        self.0.notify_if_empty();
    }
}

impl Handshaking {
    fn new(edge: &Arc<Edge>, permit: OwnedSemaphorePermit) -> Self {
        edge.metrics.edge.handshakes_in_flight.increment(1.0);
        Self { edge: edge.clone(), _permit: permit }
    }
}

impl Drop for Handshaking {
    fn drop(&mut self) {
        self.edge.metrics.edge.handshakes_in_flight.decrement(1.0);
    }
}

/// A socket that was let in, before its stream speaks MQTT.
struct Accepted {
    transport: Transport,
    at: Instant,
    admission: Admission,
    handshaking: Handshaking,
    /// Its place in the order of opening.
    serial: u64,
}

impl Accepted {
    fn deadline(&self) -> Instant {
        self.at + Duration::from_millis(self.handshaking.edge.config().handshake_timeout_ms)
    }

    fn failed(&self, result: Handshake) {
        self.handshaking.edge.metrics.edge.handshakes.of(result).increment(1);
    }
}

/// Turns the wheel once a second while the edge is there.
async fn beat(edge: std::sync::Weak<Edge>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut done_s = None;
    loop {
        ticks.tick().await;
        let Some(edge) = edge.upgrade() else { return };
        let now_s = edge.now_s();
        // A late tick must not skip a slot.
        for second in done_s.map_or(now_s, |done| done + 1)..=now_s {
            edge.wheel.turn(second);
        }
        done_s = Some(now_s);
        if now_s.is_multiple_of(SWEEP_EVERY_S) {
            edge.sessions.sweep(now_s);
        }
    }
}

/// How often expired sessions are looked for.
const SWEEP_EVERY_S: u64 = 30;
