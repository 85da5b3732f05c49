//! A device that behaves: it takes what it is sent, once and in order, and says when.

use std::{
    fmt,
    time::{Duration, Instant},
};

use carillon_wire::mqtt::{Ack, Packet};
use tokio::sync::mpsc;

use super::client::Client;
use crate::support::{Device, Node};

/// A message reached a device.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    pub device: usize,
    pub message: u64,
    pub at: Instant,
}

pub struct Witness {
    number: usize,
    client: Client,
}

impl Witness {
    /// Connected and subscribed.
    pub async fn new(node: &Node, number: usize, device: &Device) -> Self {
        let mut client = Client::open(node.listen().mqtt, None).await.expect("the node listens");
        assert_eq!(client.connect(device).await, Ok(()));
        client.subscribe().await;
        assert!(matches!(client.hear().await, Ok(Packet::SubAck(_))));
        Self { number, client }
    }

    /// Takes what comes for as long as the connection lasts. It ends this task, which a
    /// scene notices.
    pub async fn listen(mut self, tell: mpsc::Sender<Receipt>) {
        loop {
            // Between floods nothing comes for a while: no deadline here.
            if self.client.stream.readable().await.is_err() {
                return;
            }
            let Ok(packet) = self.client.hear().await else { return };
            let Packet::Publish(publish) = packet else { continue };
            let at = Instant::now();
            let text = std::str::from_utf8(&publish.payload).expect("a number");
            let message = text.parse().expect("a number of ours");
            self.client
                .say(&[Packet::PubAck(Ack { packet_id: publish.packet_id, reason: 0 })])
                .await;
            if tell.send(Receipt { device: self.number, message, at }).await.is_err() {
                return;
            }
        }
    }
}

/// What devices that behave saw of the node.
#[derive(Debug, Default)]
pub struct Latencies {
    /// From before the send to its arrival.
    pub unicasts: Vec<Duration>,
    /// From before the connect to CONNACK.
    pub connects: Vec<Duration>,
}

impl Latencies {
    pub fn count(&self) -> usize {
        self.unicasts.len()
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |all: &[Duration], share: usize| {
            let mut all = all.to_vec();
            all.sort_unstable();
            let at = (all.len() * share / 100).min(all.len().saturating_sub(1));
            all.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        let Self { unicasts, connects } = self;
        write!(
            f,
            "unicast p50 {:.1} p99 {:.1} ms of {}, connect p50 {:.1} p99 {:.1} ms of {}",
            of(unicasts, 50),
            of(unicasts, 99),
            unicasts.len(),
            of(connects, 50),
            of(connects, 99),
            connects.len()
        )
    }
}
