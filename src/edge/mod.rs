//! The MQTT front: listeners, the session machine, connections.
//!
//! [`session`] decides, `connection` does; `listener` lets in no more than the
//! node can bear; `heartbeat` holds the deadlines, `advisor` what the fleet knows of its
//! networks, and `sessions` what outlives a connection. It never imports the other doors.

mod advising;
pub mod advisor;
mod alarms;
mod arrival;
mod carrier;
pub mod close;
mod connection;
pub mod farewell;
mod gate;
mod greeting;
mod heartbeat;
mod life;
mod listener;
mod perform;
mod pool;
pub mod session;
mod sessions;
mod tls;
pub mod visit;
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
pub use carrier::Carrier;
pub use listener::Door;
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, sleep_until},
};

use self::{
    advisor::{AddressKey, Advisor, Rules},
    close::EndMetrics,
    farewell::Farewell,
    gate::{
        Address, Gate, Refusal, Refused,
        places::{Patience, Place},
    },
    heartbeat::Wheel,
    life::Life,
    session::{Now, rate},
    sessions::Sessions,
};
use crate::{
    base::{
        gcra,
        ids::random_bytes,
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
    alarms: Arc<alarms::Alarms>,
    advisor: Advisor,
    sessions: Sessions,
    gate: Gate,
    limits: ArcSwap<rate::Limits>,
    connections: AtomicUsize,
    emptied: Notify,
    /// Set once the node drains.
    farewell: OnceLock<Farewell>,
    serial: AtomicU64,
    started: Instant,
    heartbeat: Once,
}

/// Room for one connection, taken until it is dropped.
struct Admission {
    edge: Arc<Edge>,
    address: Address,
}

/// Room for one handshake, taken until it is dropped.
struct Handshaking {
    edge: Arc<Edge>,
    place: Place,
    _share: HandshakeShare,
}

/// What an address may have of the handshakes, taken until it is dropped.
struct HandshakeShare {
    edge: Arc<Edge>,
    address: Address,
}

impl Edge {
    /// The edge of a node; nothing listens yet.
    pub fn new(service: Arc<Service>, config: config::Edge, metrics: Arc<Metrics>) -> Arc<Self> {
        let rules = Rules {
            networks_max: config.heartbeat_networks_max,
            voices_min: config.heartbeat_voices_min,
            top_s: config.keep_alive_max_s,
            ..Rules::default()
        };
        let key = |bytes| u64::from_ne_bytes(bytes);
        let advisor = Advisor::new(rules, (key(random_bytes()), key(random_bytes())));
        Arc::new(Self {
            sessions: Sessions::new(config.parked_sessions_max),
            gate: Gate::new(&config),
            limits: ArcSwap::from_pointee(rate::Limits::new(&config.gate)),
            service,
            config: ArcSwap::from_pointee(config),
            metrics,
            ends: EndMetrics::new(),
            wheel: Wheel::default(),
            alarms: Arc::default(),
            advisor,
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
        peer: Option<IpAddr>,
        transport: Transport,
    ) where
        S: Carrier,
    {
        let address = peer.map_or(Address::UNLIMITED, |peer| self.gate.address(peer));
        let (Some(share), Ok(admission), Some(place)) =
            (self.handshake_share(address), self.admit(address, 0), self.gate.places.take())
        else {
            self.metrics.edge.handshakes.of(Handshake::Refused).increment(1);
            return;
        };
        let handshaking = Handshaking::new(&self, place, share);
        let serial = self.next_serial();
        let network = peer.map_or(AddressKey::default(), |ip| self.advisor.at_address(ip));
        let accepted =
            Accepted { transport, at: Instant::now(), admission, handshaking, serial, network };
        Life::new(accepted, std::future::ready(Ok(stream))).await;
    }

    /// Bounds for what comes from now on; a connection keeps what it was granted. The
    /// numbers of handshakes and of parked sessions stay as they are.
    pub fn reconfigure(&self, config: config::Edge) {
        self.gate.reconfigure(&config.gate);
        self.advisor.set_top(config.keep_alive_max_s);
        self.limits.store(Arc::new(rate::Limits::new(&config.gate)));
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

    /// Room for one connection of an address, unless a bound is reached.
    fn admit(self: &Arc<Self>, address: Address, dice: u32) -> Result<Admission, Refusal> {
        self.heartbeat.call_once(|| {
            tasks::spawn("heartbeat", beat(Arc::downgrade(self)));
            tasks::spawn("alarms", alarms::run(Arc::downgrade(self)));
        });
        if self.is_draining() {
            return Err(Gate::full(Refused::Draining, dice));
        }
        self.gate.ask(address, dice)?;
        if !self.gate.add_connection(address) {
            return Err(Gate::full(Refused::AddressConnections, dice));
        }
        let before = self.connections.fetch_add(1, Ordering::SeqCst);
        let admission = Admission { edge: self.clone(), address };
        // Looked at again: a drain that began meanwhile must see this one, or not have it.
        if self.is_draining() {
            return Err(Gate::full(Refused::Draining, dice));
        }
        if before >= self.config().connections_max {
            return Err(Gate::full(Refused::Connections, dice));
        }
        self.gate.ask_node()?;
        Ok(admission)
    }

    fn handshake_share(self: &Arc<Self>, address: Address) -> Option<HandshakeShare> {
        let share = || HandshakeShare { edge: self.clone(), address };
        self.gate.add_handshake(address).then(share)
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

    /// Time for rates.
    fn now_ticks(&self) -> u32 {
        // It wraps, as the numbers do that are compared with it.
        gcra::ticks(self.started.elapsed()) as u32
    }

    /// Since the edge was made.
    fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn now(&self) -> Now {
        Now { s: self.now_s(), unix_ms: self.service.now_ms() }
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
        self.edge.gate.remove_connection(self.address);
        self.edge.connections.fetch_sub(1, Ordering::SeqCst);
        self.edge.notify_if_empty();
    }
}

impl Drop for HandshakeShare {
    fn drop(&mut self) {
        self.edge.gate.remove_handshake(self.address);
    }
}

impl Handshaking {
    fn new(edge: &Arc<Edge>, place: Place, share: HandshakeShare) -> Self {
        edge.metrics.edge.handshakes_in_flight.increment(1.0);
        Self { edge: edge.clone(), place, _share: share }
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
    /// Where it comes from.
    network: AddressKey,
}

impl Accepted {
    fn deadline(&self) -> Instant {
        self.at + Duration::from_millis(self.handshaking.edge.config().handshake_timeout_ms)
    }

    fn failed(&self, result: Handshake) {
        self.handshaking.edge.metrics.edge.handshakes.of(result).increment(1);
    }
}

/// Does a part of a handshake, unless its time ends or its place is needed.
async fn within<T>(
    deadline: Instant,
    patience: Patience,
    work: impl Future<Output = T>,
) -> Result<T, Handshake> {
    tokio::select! {
        // Biased: what is done is done.
        biased;
        done = work => Ok(done),
        () = patience.over() => Err(Handshake::Evicted),
        () = sleep_until(deadline) => Err(Handshake::Timeout),
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
        edge.gate.look_at_memory();
        edge.service.look_at_lanes();
        if now_s.is_multiple_of(SWEEP_EVERY_S) {
            edge.sessions.sweep(now_s);
            edge.service.shrink();
            edge.metrics.edge.heartbeat_networks.set(edge.advisor.networks() as f64);
        }
    }
}

/// How often expired sessions are looked for.
const SWEEP_EVERY_S: u64 = 30;
