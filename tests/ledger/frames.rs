//! A device that speaks frames, by the SDK: it keeps its own positions, is closed and
//! opened again, and is given nothing twice.

use std::net::SocketAddr;

use carillon_sdk::{
    CallError, Credentials, Device, Endpoint, MemoryStore, Message, MessageId, QueueName, Received,
    Refusal, RegId, StopReason,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::{
    Delivery, Dice, Event, Ledger, Position, Queue,
    device::{Account, message_of},
    events::Events,
};

/// The epoch of every queue: a crash of the process does not change it.
const EPOCH: u32 = 1;
/// Messages that somebody is about to open.
const CLICKS_MAX: usize = 64;

/// One device for the whole test.
pub struct FramesDevice {
    pub number: usize,
    pub account: Account,
    /// The node's MQTT port, the same after each restart.
    pub address: SocketAddr,
    pub ledger: Ledger,
    /// Set if it opens messages that ask.
    pub events: Option<Events>,
    pub dice: Dice,
}

impl FramesDevice {
    /// Opens and closes the device until it is told to stop. An app that is opened again
    /// tries at once, while one that stays open backs off more and more.
    pub async fn live(mut self, mut stop: watch::Receiver<bool>) {
        let store = MemoryStore::default();
        let (clicks, mut clicked) = mpsc::channel(CLICKS_MAX);
        while !*stop.borrow() {
            let device = self.open(store.clone(), clicks.clone()).await;
            let life = self.dice.millis(500..4_000);
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                () = sleep(life) => {}
                () = self.click(&device, &mut clicked) => {}
            }
            let reason = device.shutdown().await;
            assert_eq!(reason, StopReason::Shutdown, "device {}", self.number);
        }
    }

    /// Opens the messages that ask, as long as it is polled. What is answered is owed to their sender.
    async fn click(&self, device: &Device, clicked: &mut mpsc::Receiver<MessageId>) {
        let Some(events) = &self.events else { return std::future::pending().await };
        let (regid, name) = (RegId::from(self.account.regid.as_str()), &self.account.regid);
        while let Some(message) = clicked.recv().await {
            let id = message.to_string();
            events.allow("clicked", &id, name);
            match device.clicked(&regid, &message).await {
                Ok(()) => events.owe("clicked", &id, name),
                Err(CallError::Offline | CallError::Timeout | CallError::Busy) => {}
                Err(CallError::Refused { refusal: Refusal::Unavailable, .. }) => {}
                Err(error) => panic!("device {} clicked: {error}", self.number),
            }
        }
    }

    async fn open(&mut self, store: MemoryStore, clicks: mpsc::Sender<MessageId>) -> Device {
        let endpoint: Endpoint = format!("tcp://{}", self.address).parse().expect("an endpoint");
        let Account { device_id, secret, .. } = self.account.clone();
        let (number, ledger) = (self.number, self.ledger.clone());
        ledger.note(Event::Connecting { device: number });
        ledger.note(Event::Connected { device: number, session_present: false });
        let handler = move |received| {
            note(number, &ledger, &clicks, received);
            std::future::ready(())
        };
        Device::builder_with_store(endpoint, Credentials { device_id, secret }, store)
            .seed(self.dice.next())
            .connect_with(handler)
            .await
            .expect("a state of its own")
    }
}

fn note(device: usize, ledger: &Ledger, clicks: &mpsc::Sender<MessageId>, received: Received) {
    let Message { queue, seq, id, payload, .. } = match received {
        Received::Message(message) => message,
        Received::Recalled { id, .. } => {
            return ledger.note(Event::ToldOfRecall { device, id: id.to_string() });
        }
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
    let message = message_of(&payload);
    if matches!(queue, Queue::Own(_)) && Events::asks(message) {
        // Nobody opens what comes too fast.
        let _ = clicks.try_send(id.clone());
    }
    let id = id.to_string();
    ledger.note(Event::Delivered(Delivery { device, queue, position, message, id, dup: false }));
    ledger.note(Event::Kept { device, queue, position });
}
