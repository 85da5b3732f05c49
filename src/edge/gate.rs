//! Whom the listeners let in: rates and shares, judged before a byte is read.
//!
//! It never waits, and no bound of one address costs another one anything. Who is
//! turned away is told when to come back, where that is cheap: see [`Refusal`].

mod memory;
pub(super) mod places;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use carillon_wire::mqtt::reason;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use self::{memory::Memory, places::Places};
use crate::{
    base::{
        gcra::{self, Rate},
        metrics::CounterBy,
        sketch::{Cells, Counts, Hash2, Rates},
    },
    config, labels,
};

labels! {
    /// Why a socket was not let in.
    Refused {
        /// `edge.connections_max`.
        Connections = "connections",
        /// `edge.gate.accepts_per_s`.
        AcceptRate = "accept_rate",
        /// `edge.gate.memory_max_bytes`.
        Memory = "memory",
        /// Too few open files are left.
        Files = "files",
        /// The node drains.
        Draining = "draining",
        /// `edge.gate.connects_per_address_per_s`.
        AddressRate = "address_rate",
        /// `edge.gate.handshakes_per_address_max`.
        AddressHandshakes = "address_handshakes",
        /// `edge.gate.connections_per_address_max`.
        AddressConnections = "address_connections",
        /// `edge.gate.auth_failures_per_address_per_minute`.
        AddressAuth = "address_auth",
    }
}

/// A connection that is turned away. Whoever tells it when to come back asks
/// [`Gate::advice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) why: Refused,
    /// Before that it would be refused again.
    after: Duration,
}

/// What the listeners ask; one for the node.
pub(super) struct Gate {
    bounds: ArcSwap<Bounds>,
    /// Room for handshakes.
    pub(super) places: Places,
    /// Room for the TLS part of handshakes.
    pub(super) tls_places: Places,
    /// Room for those who are told why they are refused.
    hearings: Arc<Semaphore>,
    /// Refused sockets, by the reason.
    pub(super) refused: CounterBy<Refused>,
    hash: Hash2,
    handshakes: Counts,
    connections: Counts,
    connects: Rates,
    failures: Rates,
    /// Until when the accepted connections are paid for, in ticks.
    accepts_paid_at: AtomicU32,
    /// The next time that is given to somebody who is refused, in ticks.
    next_slot: AtomicU32,
    is_memory_short: AtomicBool,
    opened: Instant,
}

/// What a reload replaces. What was taken before stays taken.
struct Bounds {
    config: config::Gate,
    connects: Rate,
    failures: Rate,
    accepts: Rate,
    memory: Memory,
}

impl Bounds {
    fn new(config: &config::Gate) -> Self {
        let second = Duration::from_secs(1);
        let failures = config.auth_failures_per_address_per_minute;
        Self {
            connects: Rate::new(
                config.connects_per_address_per_s,
                second,
                config.connects_per_address_burst,
            ),
            failures: Rate::new(failures, Duration::from_secs(60), failures),
            accepts: Rate::new(config.accepts_per_s, second, config.accepts_burst),
            memory: Memory::new(config.memory_max_bytes),
            config: config.clone(),
        }
    }
}

/// Whose share a connection takes; nobody's if the address has no bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address(Option<Cells>);

impl Address {
    /// One to which no bound applies.
    pub(super) const UNLIMITED: Self = Self(None);
}

impl Refusal {
    /// What CONNACK says in MQTT 5; 3.1.1 has one code for all.
    pub(super) fn code(self) -> u8 {
        match self.why {
            Refused::AcceptRate | Refused::AddressRate | Refused::AddressAuth => {
                reason::CONNECTION_RATE_EXCEEDED
            }
            Refused::AddressConnections | Refused::AddressHandshakes => reason::QUOTA_EXCEEDED,
            Refused::Connections | Refused::Memory | Refused::Files => reason::SERVER_BUSY,
            Refused::Draining => reason::SERVER_UNAVAILABLE,
        }
    }
}

impl Gate {
    /// Everything is free.
    pub(super) fn new(config: &config::Edge) -> Self {
        Self {
            places: Places::new(config.handshakes_max),
            tls_places: Places::new(config.tls_handshakes_max),
            hearings: Arc::new(Semaphore::new(HEARINGS_MAX)),
            refused: CounterBy::new("carillon_refused_connections_total", "reason"),
            hash: Hash2::new(),
            handshakes: Counts::new(),
            connections: Counts::new(),
            connects: Rates::new(),
            failures: Rates::new(),
            accepts_paid_at: AtomicU32::new(0),
            next_slot: AtomicU32::new(0),
            is_memory_short: AtomicBool::new(false),
            opened: Instant::now(),
            bounds: ArcSwap::from_pointee(Bounds::new(&config.gate)),
        }
    }

    /// Bounds for what comes from now on.
    pub(super) fn reconfigure(&self, config: &config::Gate) {
        self.bounds.store(Arc::new(Bounds::new(config)));
    }

    /// Whose share this address is.
    pub(super) fn address(&self, address: IpAddr) -> Address {
        let bounds = self.bounds.load();
        let is_unlimited = bounds.config.unlimited_networks.iter().any(|net| net.contains(address));
        Address((!is_unlimited).then(|| self.hash.cells(address)))
    }

    /// Takes a share of the rates of an address for one connection.
    ///
    /// # Errors
    /// [`Refusal`]; `dice` spreads those who are refused together.
    pub(super) fn ask(&self, address: Address, dice: u32) -> Result<(), Refusal> {
        let (now, bounds) = (self.now(), self.bounds.load());
        let refuse = |why, after| Err(Refusal { why, after: spread(after, dice) });
        if let Address(Some(cells)) = address {
            if let Err(after) = self.failures.check(bounds.failures, cells, now) {
                return refuse(Refused::AddressAuth, after);
            }
            if let Err(after) = self.connects.take(bounds.connects, cells, now) {
                return refuse(Refused::AddressRate, after.max(RETRY_RATE));
            }
        }
        if self.is_memory_short.load(Ordering::Relaxed) {
            return refuse(Refused::Memory, RETRY_LONG);
        }
        Ok(())
    }

    /// Takes the node's own rate for one connection; the last thing that is asked, so that
    /// nobody takes a share of it who is refused for something else.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) fn ask_node(&self) -> Result<(), Refusal> {
        let (now, rate) = (self.now(), self.bounds.load().accepts);
        let mut after = Duration::ZERO;
        let take = |paid_at| match rate.take(paid_at, now, 1) {
            Ok(paid_at) => Some(paid_at),
            Err(wait) => {
                after = wait;
                None
            }
        };
        let taken = self.accepts_paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|_| Refusal { why: Refused::AcceptRate, after })
    }

    /// When a refused one may come back; for somebody who is told. Over the node's own rate
    /// those who ask are given times one after the other, as fast as the node takes them: so
    /// they come back at its rate. Who cannot be told is given none, and others wait less.
    pub(super) fn advice(&self, refusal: Refusal) -> Duration {
        if refusal.why != Refused::AcceptRate {
            return refusal.after;
        }
        let now = self.now();
        let first = gcra::ticks(refusal.after.max(RETRY_SOON)) as u32;
        let step = (gcra::ticks(Duration::from_secs(1)) as u32)
            .checked_div(self.bounds.load().config.accepts_per_s)
            .unwrap_or(0)
            .max(1);
        let mut slot = first;
        let _ = self.next_slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            let ahead = next.wrapping_sub(now);
            slot = if (first..=SLOTS_TICKS).contains(&ahead) { ahead } else { first };
            Some(now.wrapping_add(slot + step))
        });
        gcra::TICK * slot
    }

    /// A refusal for want of room, which somebody must leave first.
    pub(super) fn full(why: Refused, dice: u32) -> Refusal {
        let after = if why == Refused::Draining { RETRY_RATE } else { RETRY_LONG };
        Refusal { why, after: spread(after, dice) }
    }

    /// A share of the handshakes of an address.
    pub(super) fn add_handshake(&self, Address(cells): Address) -> bool {
        let max = bound(self.bounds.load().config.handshakes_per_address_max);
        cells.is_none_or(|cells| self.handshakes.add(cells, max))
    }

    /// Gives it back.
    pub(super) fn remove_handshake(&self, Address(cells): Address) {
        cells.inspect(|cells| self.handshakes.remove(*cells));
    }

    /// A share of the connections of an address.
    pub(super) fn add_connection(&self, Address(cells): Address) -> bool {
        let max = bound(self.bounds.load().config.connections_per_address_max);
        cells.is_none_or(|cells| self.connections.add(cells, max))
    }

    /// Gives it back.
    pub(super) fn remove_connection(&self, Address(cells): Address) {
        cells.inspect(|cells| self.connections.remove(*cells));
    }

    /// An address showed wrong credentials.
    pub(super) fn note_auth_failure(&self, Address(cells): Address) {
        if let Some(cells) = cells {
            // Over its rate the next connection is refused: that is all.
            let _ = self.failures.take(self.bounds.load().failures, cells, self.now());
        }
    }

    /// Whether so many are being told that they should have a turn before more come.
    pub(super) fn is_hearing_many(&self) -> bool {
        self.hearings.available_permits() < HEARINGS_MAX / 2
    }

    /// Room to tell a refused one why, if there is some.
    pub(super) fn hearing(&self) -> Option<OwnedSemaphorePermit> {
        self.hearings.clone().try_acquire_owned().ok()
    }

    /// To be called once a second.
    pub(super) fn look_at_memory(&self) {
        let is_short = self.bounds.load().memory.is_short();
        let was_short = self.is_memory_short.swap(is_short, Ordering::Relaxed);
        match (was_short, is_short) {
            (false, true) => tracing::warn!("memory is short, new connections are refused"),
            (true, false) => tracing::info!("there is memory for new connections again"),
            (true, true) | (false, false) => {}
        }
    }

    fn now(&self) -> u32 {
        // The numbers wrap, and so does the time.
        gcra::ticks(self.opened.elapsed()) as u32
    }
}

fn bound(max: u32) -> u32 {
    if max == 0 { u32::MAX } else { max }
}

/// Anything from this time to twice as long.
fn spread(after: Duration, dice: u32) -> Duration {
    after + after.mul_f64(f64::from(dice) / f64::from(u32::MAX))
}

/// Those who are told why they are refused, at once; the others are closed without a word.
/// Each may hold a CONNECT. With fewer a storm that comes at once is not told.
const HEARINGS_MAX: usize = 4_096;
/// For a share of the node's rate.
const RETRY_SOON: Duration = Duration::from_millis(100);
/// For a share of an address's rate: its burst must not be hit by all at once again.
const RETRY_RATE: Duration = Duration::from_secs(5);
/// For what comes free when others leave.
const RETRY_LONG: Duration = Duration::from_secs(30);
/// So far ahead times are given: ten minutes. Then they begin anew.
const SLOTS_TICKS: u32 = 6_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(change: impl FnOnce(&mut config::Gate)) -> Gate {
        let mut edge = config::Edge::default();
        change(&mut edge.gate);
        Gate::new(&edge)
    }

    fn stranger(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_over_its_rate_costs_another_nothing() {
        let gate = gate(|gate| {
            (gate.connects_per_address_per_s, gate.connects_per_address_burst) = (2, 4);
        });
        let (one, other) = (gate.address(stranger(1)), gate.address(stranger(2)));
        let welcome = (0..100).filter(|_| gate.ask(one, 0).is_ok()).count();
        assert_eq!(welcome, 4);
        assert_eq!(gate.ask(one, 0).unwrap_err().code(), 0x9F);
        assert_eq!(gate.ask(other, 0), Ok(()));
        tokio::time::advance(Duration::from_millis(501)).await;
        assert_eq!(gate.ask(one, 0), Ok(()));
        let own = gate.address(IpAddr::from([127, 0, 0, 9]));
        assert!((0..10_000).all(|_| gate.ask(own, 0).is_ok()), "loopback has no bounds");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_for_the_nodes_rate_comes_back_at_it_and_is_taken() {
        let gate = gate(|gate| (gate.accepts_per_s, gate.accepts_burst) = (100, 50));
        let start = Instant::now();
        let mut waiting: Vec<Duration> = vec![Duration::ZERO; 2_000];
        let (mut asked, mut taken) = (0, 0);
        while !waiting.is_empty() {
            waiting.sort_unstable();
            let at = waiting.remove(0);
            tokio::time::advance(at.saturating_sub(start.elapsed())).await;
            asked += 1;
            match gate.ask_node() {
                Ok(()) => taken += 1,
                Err(refusal) => waiting.push(start.elapsed() + gate.advice(refusal)),
            }
        }
        let took = start.elapsed();
        assert_eq!(taken, 2_000);
        assert!(asked < 2 * 2_000, "{asked} asked: nobody is refused again and again");
        // 1,950 at 100 in a second.
        assert!(took < Duration::from_secs(22) && took > Duration::from_secs(19), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_told_takes_no_time_of_those_who_can() {
        let gate = gate(|gate| (gate.accepts_per_s, gate.accepts_burst) = (10, 1));
        assert_eq!(gate.ask_node(), Ok(()));
        let refused: Vec<_> = (0..5_000).map(|_| gate.ask_node().unwrap_err()).collect();
        let (first, second) = (gate.advice(refused[4_998]), gate.advice(refused[4_999]));
        assert_eq!(second - first, Duration::from_millis(100));
        assert!(first <= RETRY_SOON, "{first:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_changes_bounds_and_keeps_what_is_taken() {
        let gate = gate(|gate| gate.connections_per_address_max = 2);
        let one = gate.address(stranger(1));
        assert!(gate.add_connection(one) && gate.add_connection(one) && !gate.add_connection(one));
        gate.reconfigure(&config::Gate {
            connections_per_address_max: 3,
            connects_per_address_per_s: 1,
            connects_per_address_burst: 1,
            unlimited_networks: vec![config::Network::new(stranger(7), 32)],
            ..config::Gate::default()
        });
        assert!(gate.add_connection(one) && !gate.add_connection(one), "two were there");
        assert!(gate.ask(one, 0).is_ok() && gate.ask(one, 0).is_err());
        let unlimited = gate.address(stranger(7));
        assert!((0..100).all(|_| gate.ask(unlimited, 0).is_ok()));
        gate.remove_connection(one);
        assert!(gate.add_connection(one), "who leaves makes room");
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_is_no_longer_listened_to() {
        let gate = gate(|gate| gate.auth_failures_per_address_per_minute = 3);
        let (one, other) = (gate.address(stranger(1)), gate.address(stranger(2)));
        for _ in 0..3 {
            assert_eq!(gate.ask(one, 0), Ok(()));
            gate.note_auth_failure(one);
        }
        let refusal = gate.ask(one, 0).unwrap_err();
        assert_eq!(refusal.why, Refused::AddressAuth);
        assert_eq!(gate.ask(other, 0), Ok(()));
        tokio::time::advance(refusal.after).await;
        assert_eq!(gate.ask(one, 0), Ok(()));
    }

    #[tokio::test]
    async fn without_memory_nobody_new_is_let_in() {
        let gate = gate(|gate| gate.memory_max_bytes = 1);
        assert_eq!(gate.ask(Address(None), 0), Ok(()));
        gate.look_at_memory();
        let refusal = gate.ask(Address(None), 0).unwrap_err();
        assert_eq!((refusal.why, refusal.code()), (Refused::Memory, 0x89));
        assert!(refusal.after >= RETRY_LONG && spread(RETRY_LONG, u32::MAX) == 2 * RETRY_LONG);
    }

    #[test]
    fn the_shares_of_an_address_are_counted() {
        let gate = gate(|gate| {
            (gate.handshakes_per_address_max, gate.connections_per_address_max) = (1, 0);
        });
        let one = gate.address(stranger(1));
        assert!(gate.add_handshake(one) && !gate.add_handshake(one));
        gate.remove_handshake(one);
        assert!(gate.add_handshake(one));
        assert!((0..1_000).all(|_| gate.add_connection(one)), "0 is no bound");
    }
}
