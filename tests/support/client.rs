//! A plain MQTT client as the tests see it: what it received, and its end.
//! [`super::script`] and [`super::rumqtt`] start some.

use std::{collections::VecDeque, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// Longer than any client needs for its next event.
const EVENT_DEADLINE: Duration = Duration::from_secs(30);

/// What a client tells the test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its subscriptions are granted.
    Ready,
    /// It received a message.
    Message(Message),
}

/// A received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The MQTT topic.
    pub topic: String,
    /// The payload, as text.
    pub payload: String,
    /// MQTT 5 user properties, where the client shows them.
    pub properties: Vec<(String, String)>,
}

/// A client that runs somewhere: a process or a task.
pub struct Client {
    name: String,
    events: mpsc::Receiver<Event>,
    early: VecDeque<Message>,
    stop: oneshot::Sender<()>,
    work: JoinHandle<Result<(), String>>,
}

/// The other end of a [`Client`]: for those who start one.
pub struct Feed {
    /// Takes what happens.
    pub events: mpsc::Sender<Event>,
    /// Is answered when the client must disconnect in good order.
    pub stop: oneshot::Receiver<()>,
}

impl Client {
    /// Starts a client: `work` feeds it until it is told to stop, and answers how it ended.
    pub fn start<W, F>(name: impl Into<String>, work: W) -> Self
    where
        W: FnOnce(Feed) -> F,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (events_in, events) = mpsc::channel(1_024);
        let (stop, stopped) = oneshot::channel();
        let work = tokio::spawn(work(Feed { events: events_in, stop: stopped }));
        Self { name: name.into(), events, early: VecDeque::new(), stop, work }
    }

    /// Waits until the subscriptions are granted. A resumed session may deliver before that.
    pub async fn ready(&mut self) {
        while let Event::Message(message) = self.event().await {
            self.early.push_back(message);
        }
    }

    /// Waits until the client gives up, and says why.
    pub async fn refused(mut self) -> String {
        let ended = timeout(EVENT_DEADLINE, &mut self.work).await;
        match ended {
            Ok(Ok(Err(why))) => why,
            other => panic!("{}: was not refused: {other:?}", self.name),
        }
    }

    /// The next message.
    pub async fn message(&mut self) -> Message {
        if let Some(message) = self.early.pop_front() {
            return message;
        }
        loop {
            if let Event::Message(message) = self.event().await {
                return message;
            }
        }
    }

    /// The next `count` messages.
    pub async fn messages(&mut self, count: usize) -> Vec<Message> {
        let mut messages = Vec::with_capacity(count);
        while messages.len() < count {
            messages.push(self.message().await);
        }
        messages
    }

    /// Disconnects in good order and waits for the end.
    pub async fn stop(self) {
        let Self { name, stop, work, events, .. } = self;
        let _ = stop.send(());
        let ended = timeout(EVENT_DEADLINE, work).await;
        drop(events);
        match ended {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(why))) => panic!("{name}: {why}"),
            Ok(Err(panicked)) => panic!("{name}: {panicked}"),
            Err(_) => panic!("{name}: did not end in {EVENT_DEADLINE:?}"),
        }
    }

    async fn event(&mut self) -> Event {
        match timeout(EVENT_DEADLINE, self.events.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => match (&mut self.work).await {
                Ok(Err(why)) => panic!("{}: {why}", self.name),
                other => panic!("{}: ended early: {other:?}", self.name),
            },
            Err(_) => panic!("{}: nothing came in {EVENT_DEADLINE:?}", self.name),
        }
    }
}
