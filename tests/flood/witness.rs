//! A device that behaves: it takes what it is sent, once and in order, and says when.

use std::time::{Duration, Instant};

use carillon_wire::mqtt::{Ack, Packet};
use tokio::{sync::mpsc, time::timeout};

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
            match timeout(PING_EVERY, self.client.stream.readable()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    self.client.say(&[Packet::PingReq]).await;
                    continue;
                }
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
    /// The node's memory at its largest.
    pub memory_kib: usize,
}

impl Latencies {
    pub fn unicast_p99(&self) -> String {
        p99(&self.unicasts)
    }

    pub fn connect_p99(&self) -> String {
        p99(&self.connects)
    }
}

/// In milliseconds; a dash if there were none.
pub fn p99(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = times.get(times.len() * 99 / 100);
    at.map_or("-".to_owned(), |time| format!("{:.1}", time.as_secs_f64() * 1e3))
}

/// Far below the keep-alive that it states.
const PING_EVERY: Duration = Duration::from_secs(60);
