//! Floods against a real node, and devices that behave meanwhile.
//!
//! The devices that behave are on 127.0.0.1 and must not notice; strangers come from
//! 127.0.1.x and have all bounds of an address. A test asserts counts; times are printed,
//! and mean something in a release build on a quiet machine (`scripts/slow overload`).
#![allow(dead_code, reason = "every test crate uses its own part of it")]
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

pub mod client;
pub mod witness;

use std::{cell::Cell, future::Future, net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet};

use self::{
    client::{Client, Ended},
    witness::{Latencies, Receipt},
};
use crate::{
    ledger::number_from_env,
    support::{Device, Node, Options},
    wirelab::lab::{devices, memory_kib},
};

/// How much more than in the gate: the slow set sets it.
pub fn scale() -> usize {
    number_from_env("CARILLON_OVERLOAD").unwrap_or(1).max(1) as usize
}

/// How much of something there is: `gate` in the gate, `full` from the slow set's scale on, and
/// in between evenly.
pub fn size(gate: usize, full: usize) -> usize {
    let part = scale().min(FULL) - 1;
    gate + full.saturating_sub(gate) * part / (FULL - 1)
}

/// One line of the table that `scripts/slow overload` leaves: how those who behave were served
/// without a flood and in it.
pub fn tell(what: &str, quiet: &Latencies, flood: &Latencies) {
    let counts = |of: &Latencies| format!("{}, {}", of.unicasts.len(), of.connects.len());
    println!(
        "flood: | {what} | {} | {} | {} | {} | {}; {} |",
        quiet.unicast_p99(),
        flood.unicast_p99(),
        quiet.connect_p99(),
        flood.connect_p99(),
        counts(quiet),
        counts(flood)
    );
}

/// Strangers have bounds, the devices that behave have none.
pub const STRANGERS_ONLY: &str = "unlimited_networks = [\"127.0.0.0/24\"]\n";

/// A node, and devices that behave.
pub struct Scene {
    pub node: Node,
    good: Vec<Device>,
    /// Of the devices that behave, one that connects again and again.
    newcomer: Device,
    receipts: mpsc::Receiver<Receipt>,
    connected: JoinSet<()>,
    sent: u64,
    /// Whether those who behave are let in now.
    pub is_open: bool,
}

impl Scene {
    /// With these lines in `[edge]` and in `[edge.gate]`.
    pub async fn with(edge: &str, gate: &str) -> Self {
        Self::with_options(Options {
            config: Some(format!("[edge]\n{edge}[edge.gate]\n{STRANGERS_ONLY}{gate}")),
            ..Options::default()
        })
        .await
    }

    pub async fn with_options(options: Options) -> Self {
        let node = Node::start_with(options).await;
        let mut good = devices(&node, 1 + GOOD).await;
        let newcomer = good.pop().expect("a device");
        let (tell, receipts) = mpsc::channel(1_024);
        let mut connected = JoinSet::new();
        for (number, device) in good.iter().enumerate() {
            let witness = witness::Witness::new(&node, number, device).await;
            connected.spawn(witness.listen(tell.clone()));
        }
        Self { node, good, newcomer, receipts, connected, sent: 0, is_open: true }
    }

    pub fn mqtt(&self) -> SocketAddr {
        self.node.listen().mqtt
    }

    /// How those who behave are served while nothing else happens.
    pub async fn quiet(&mut self) -> Latencies {
        self.served_while(size(50, 1_000), async {}).await.0
    }

    /// Serves the devices that behave `count` times, and more while `flood` goes on.
    pub async fn served_while<T>(
        &mut self,
        count: usize,
        flood: impl Future<Output = T>,
    ) -> (Latencies, T) {
        let (mut latencies, is_over) = (Latencies::default(), Cell::new(false));
        let flood = async {
            let outcome = flood.await;
            is_over.set(true);
            outcome
        };
        let serve = async {
            while !is_over.get() || latencies.unicasts.len() < count {
                self.serve_one(&mut latencies).await;
                latencies.memory_kib = latencies.memory_kib.max(self.memory_kib());
            }
        };
        let (outcome, ()) = tokio::join!(flood, serve);
        (latencies, outcome)
    }

    /// One unicast, and a connect now and then.
    async fn serve_one(&mut self, latencies: &mut Latencies) {
        if self.is_open && self.sent.is_multiple_of(5) {
            let at = std::time::Instant::now();
            let mut client = Client::open(self.mqtt(), None).await.expect("the node listens");
            assert_eq!(client.connect(&self.newcomer).await, Ok(()), "a good one is welcome");
            latencies.connects.push(at.elapsed());
            client.leave().await;
        }
        self.sent += 1;
        let number = self.sent as usize % self.good.len();
        let at = std::time::Instant::now();
        self.node.send(json!({"regids": [self.good[number].regid]}), json!(self.sent)).await;
        let receipt = tokio::time::timeout(DEADLINE, self.receipts.recv()).await;
        let receipt = receipt.expect("a good device is served").expect("they listen");
        assert_eq!((receipt.device, receipt.message), (number, self.sent), "lost, late or twice");
        latencies.unicasts.push(receipt.at.duration_since(at));
    }

    /// Those who behave were sent something together with everybody else.
    pub async fn take_broadcast(&mut self) {
        for _ in 0..self.good.len() {
            self.receipts.recv().await.expect("they listen");
        }
    }

    /// The value of a series, as `name{label="value"}`.
    pub async fn metric(&self, series: &str) -> usize {
        let text = self.node.metrics().await;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse::<f64>().expect("a number") as usize)
    }

    /// How many sockets were refused for this reason.
    pub async fn refused(&self, why: &str) -> usize {
        self.metric(&format!("carillon_refused_connections_total{{reason=\"{why}\"}}")).await
    }

    /// How many handshakes ended like this.
    pub async fn handshakes(&self, result: &str) -> usize {
        self.metric(&format!("carillon_handshakes_total{{result=\"{result}\"}}")).await
    }

    /// How many connections ended like this.
    pub async fn ended(&self, reason: &str) -> usize {
        self.metric(&format!("carillon_connections_ended_total{{reason=\"{reason}\"}}")).await
    }

    pub fn memory_kib(&self) -> usize {
        memory_kib(&self.node)
    }

    /// Those who behave are served, still on their first connections, and nothing panicked.
    pub async fn end_well(mut self) {
        let (_, ()) = self.served_while(2 * self.good.len(), async {}).await;
        assert!(self.connected.try_join_next().is_none(), "a good device was cut");
        let log = self.node.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// Runs `count` of these, at most so many at once.
pub async fn crowd<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    count: usize,
    at_once: usize,
    mut one: impl FnMut(usize) -> F,
) -> Vec<T> {
    let (mut running, mut ended) = (JoinSet::new(), Vec::with_capacity(count));
    for number in 0..count {
        if running.len() >= at_once {
            ended.push(running.join_next().await.expect("some run").expect("no panic"));
        }
        running.spawn(one(number));
    }
    while let Some(one) = running.join_next().await {
        ended.push(one.expect("no panic"));
    }
    ended
}

/// How many of these ended like that.
pub fn count(all: &[Result<(), Ended>], wanted: Result<(), Ended>) -> usize {
    all.iter().filter(|one| **one == wanted).count()
}

/// Longer than anything that the node does.
pub const DEADLINE: Duration = Duration::from_secs(60);
const GOOD: usize = 8;
/// The scale at which sizes are those of the slow set.
const FULL: usize = 10;
