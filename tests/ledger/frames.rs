//! A device that speaks frames, by the SDK: it keeps its own positions, is closed and
//! opened again, and is given nothing twice.

use std::net::SocketAddr;

use carillon_sdk::{
    Credentials, Device, Endpoint, MemoryStore, Message, QueueName, Received, StopReason,
};
use tokio::{sync::watch, time::sleep};

use super::{
    Delivery, Dice, Event, Ledger, Position, Queue,
    device::{Account, message_of},
};

/// The epoch of every queue: a crash of the process does not change it.
const EPOCH: u32 = 1;

/// One device for the whole test.
pub struct FramesDevice {
    pub number: usize,
    pub account: Account,
    /// The node's MQTT port, the same after each restart.
    pub address: SocketAddr,
    pub ledger: Ledger,
    pub dice: Dice,
}

impl FramesDevice {
    /// Opens and closes the device until it is told to stop. An app that is opened again
    /// tries at once, while one that stays open backs off more and more.
    pub async fn live(mut self, mut stop: watch::Receiver<bool>) {
        let store = MemoryStore::default();
        while !*stop.borrow() {
            let device = self.open(store.clone()).await;
            let life = self.dice.millis(500..4_000);
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                () = sleep(life) => {}
            }
            let reason = device.shutdown().await;
            assert_eq!(reason, StopReason::Shutdown, "device {}", self.number);
        }
    }

    async fn open(&mut self, store: MemoryStore) -> Device {
        let endpoint: Endpoint = format!("tcp://{}", self.address).parse().expect("an endpoint");
        let Account { device_id, secret, .. } = self.account.clone();
        let (number, ledger) = (self.number, self.ledger.clone());
        ledger.note(Event::Connected { device: number, session_present: false });
        let handler = move |received| {
            note(number, &ledger, received);
            std::future::ready(())
        };
        Device::builder_with_store(endpoint, Credentials { device_id, secret }, store)
            .seed(self.dice.next())
            .connect_with(handler)
            .await
            .expect("a state of its own")
    }
}

fn note(device: usize, ledger: &Ledger, received: Received) {
    let Message { queue, seq, id, payload, .. } = match received {
        Received::Message(message) => message,
        Received::Recalled { .. } => return,
        other => panic!("device {device}: {other:?}"),
    };
    let number = |name: &str| name[1..].parse().expect("a name of ours");
    let queue = match queue {
        QueueName::Own => Queue::Own(device),
        QueueName::Alias(name) => Queue::Alias(number(&name)),
        QueueName::Topic(name) => Queue::Topic(number(&name)),
        QueueName::All => Queue::All,
    };
    let position = Position { epoch: EPOCH, seq };
    let (message, id) = (message_of(&payload), id.to_string());
    ledger.note(Event::Delivered(Delivery { device, queue, position, message, id, dup: false }));
    ledger.note(Event::Kept { device, queue, position });
}
