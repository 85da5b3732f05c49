//! The device's task: connect, run the connection, wait, and again, until told to stop or not wanted any more.

use std::time::Duration;

use carillon_wire::idl;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::applier::Work;
use crate::backoff::Backoff;
use crate::calls::CallError;
use crate::close::{End, StopReason};
use crate::connection::{Command, Connection};
use crate::heartbeat::Heartbeat;
use crate::random::Random;
use crate::session::{Parting, Session, Terms};
use crate::transport::{BoxStream, Connector};

/// What a device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// On its way to the gateway.
    Connecting,
    /// The gateway knows where we stand and pushes.
    Online,
    /// The next attempt comes after this long.
    Waiting(Duration),
    /// For good.
    Stopped(StopReason),
}

/// See the module.
pub struct Driver<C> {
    pub connector: C,
    pub terms: Terms,
    pub commands: mpsc::Receiver<Command>,
    pub applier: mpsc::Sender<Work>,
    pub status: watch::Sender<Status>,
    pub random: Random,
    pub heartbeat: Heartbeat,
    /// Where the gateway sent us, until an attempt to go online there fails.
    pub server: Option<String>,
}

impl<C: Connector> Driver<C> {
    /// Runs to the end and says why.
    pub async fn run(mut self) -> StopReason {
        let mut backoff = Backoff::new(self.random.clone());
        let stop = loop {
            self.status.send_replace(Status::Connecting);
            let (end, after, lived) = self.attempt().await;
            tracing::debug!(reason = %end, "connection ended");
            if let Some(stop) = end.stop() {
                break stop;
            }
            backoff.lived(lived);
            let delay = match end {
                End::NetworkChanged => Duration::ZERO,
                _ => backoff.next_delay(),
            };
            if let Err(end) = self.wait(delay, after.unwrap_or(Duration::ZERO)).await {
                break end.stop().unwrap_or(StopReason::Shutdown);
            }
        };
        self.status.send_replace(Status::Stopped(stop));
        stop
    }

    /// The advice says "not before": our own jitter comes on top. Another network cuts only the jitter.
    async fn wait(&mut self, jitter: Duration, advised: Duration) -> Result<(), End> {
        let not_before = Instant::now() + advised;
        let mut wake_at = not_before + jitter;
        loop {
            self.status.send_replace(Status::Waiting(wake_at.duration_since(Instant::now())));
            let waiting = sleep_until(wake_at);
            match offline(&mut self.commands, &mut self.heartbeat, waiting).await {
                Err(End::NetworkChanged) => wake_at = not_before,
                over => return over,
            }
        }
    }

    /// One connection from its attempt to its end; the third value is how long it was online.
    async fn attempt(&mut self) -> (End, Option<Duration>, Duration) {
        let mut online_at = None;
        let (end, parting) = match self.converse(&mut online_at).await {
            Ok(ended) => ended,
            Err(end) => (end, Parting::default()),
        };
        match parting.server {
            Some(server) => self.server = Some(server),
            None if online_at.is_none() && !matches!(end, End::NetworkChanged) => {
                self.server = None
            }
            None => {}
        }
        self.heartbeat.link_down(end.lost(), Instant::now());
        self.save_networks();
        let lived = online_at.map_or(Duration::ZERO, |at| at.elapsed());
        (end, parting.after, lived)
    }

    async fn converse(&mut self, online_at: &mut Option<Instant>) -> Result<(End, Parting), End> {
        let (stream, resume) = self.open().await?;
        let heartbeat = &mut self.heartbeat;
        let session = Session::new(&self.terms, heartbeat, &resume, Instant::now())?;
        let status = &self.status;
        let connection = Connection {
            stream,
            session,
            commands: &mut self.commands,
            applier: &self.applier,
            on_online: Box::new(move || {
                *online_at = Some(Instant::now());
                status.send_replace(Status::Online);
            }),
            is_closing: false,
        };
        Ok(connection.run().await)
    }

    /// What we stand for must be durable before the gateway hears it.
    async fn open(&mut self) -> Result<(BoxStream, idl::Up), End> {
        let (connector, applier, server) = (&self.connector, &self.applier, self.server.as_deref());
        let opening = async {
            let (reply, resume) = oneshot::channel();
            let gone = |_| End::HandlerPanicked;
            let begin = Work::Begin(reply);
            applier.send(begin).await.map_err(|_| End::HandlerPanicked)?;
            let resume = resume.await.map_err(gone)??;
            let connecting = match server {
                Some(server) => connector.connect_to(server),
                None => connector.connect(),
            };
            let stream = timeout(CONNECT_WITHIN, connecting).await;
            let stream = stream.map_err(|_| End::NoAnswer)??;
            Ok::<_, End>((stream, resume))
        };
        offline(&mut self.commands, &mut self.heartbeat, opening).await?
    }

    /// Without room now, they are saved another time.
    fn save_networks(&mut self) {
        if let Ok(room) = self.applier.try_reserve()
            && let Some(networks) = self.heartbeat.learner().take_unsaved()
        {
            room.send(Work::Networks(networks));
        }
    }
}

/// Runs `work` while there is no connection: calls are answered, and a shutdown or another network ends it.
async fn offline<T>(
    commands: &mut mpsc::Receiver<Command>,
    heartbeat: &mut Heartbeat,
    work: impl Future<Output = T>,
) -> Result<T, End> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            value = &mut work => return Ok(value),
            command = commands.recv() => match command {
                // The caller may have given up.
                Some(Command::Call(call)) => drop(call.reply.send(Err(CallError::Offline))),
                Some(Command::App(app)) => heartbeat.learner().set_app(app),
                Some(Command::Network(label)) => heartbeat.change_network(label)?,
                Some(Command::Shutdown) | None => return Err(End::Shutdown),
            },
        }
    }
}

/// From the first packet to a stream, TLS included.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
