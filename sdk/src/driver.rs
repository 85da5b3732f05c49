//! The device's task: connect, run the connection, wait, and again, until told to stop or not wanted any more.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::applier::Work;
use crate::backoff::Backoff;
use crate::calls::CallError;
use crate::close::{End, StopReason};
use crate::connection::{Command, Connection};
use crate::random::Random;
use crate::session::{Session, Terms};
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
}

impl<C: Connector> Driver<C> {
    /// Runs to the end and says why.
    pub async fn run(mut self) -> StopReason {
        let mut backoff = Backoff::new(self.random.clone());
        let stop = loop {
            self.status.send_replace(Status::Connecting);
            let (end, advised, lived) = self.attempt().await;
            tracing::debug!(reason = %end, "connection ended");
            if let Some(stop) = end.stop() {
                break stop;
            }
            backoff.lived(lived);
            // The advice says "not before": our own jitter comes on top.
            let delay = backoff.next_delay() + advised.unwrap_or(Duration::ZERO);
            self.status.send_replace(Status::Waiting(delay));
            if let Err(end) = offline(&mut self.commands, sleep(delay)).await {
                break end.stop().unwrap_or(StopReason::Shutdown);
            }
        };
        self.status.send_replace(Status::Stopped(stop));
        stop
    }

    /// One connection from its attempt to its end; the third value is how long it was online.
    async fn attempt(&mut self) -> (End, Option<Duration>, Duration) {
        let mut online_at = None;
        let (end, advised) = match self.open().await {
            Err(end) => (end, None),
            Ok((stream, session)) => {
                let status = &self.status;
                let online_at = &mut online_at;
                let connection = Connection {
                    stream,
                    session,
                    commands: &mut self.commands,
                    applier: &self.applier,
                    on_online: Box::new(move || {
                        *online_at = Some(Instant::now());
                        status.send_replace(Status::Online);
                    }),
                };
                connection.run().await
            }
        };
        let lived = online_at.map_or(Duration::ZERO, |at| at.elapsed());
        (end, advised, lived)
    }

    /// What we stand for must be durable before the gateway hears it.
    async fn open(&mut self) -> Result<(BoxStream, Session), End> {
        let (connector, applier) = (&self.connector, &self.applier);
        let opening = async {
            let (reply, resume) = oneshot::channel();
            let gone = |_| End::HandlerPanicked;
            let begin = Work::Begin(reply);
            applier.send(begin).await.map_err(|_| End::HandlerPanicked)?;
            let resume = resume.await.map_err(gone)??;
            let stream = timeout(CONNECT_WITHIN, connector.connect()).await;
            let stream = stream.map_err(|_| End::NoAnswer)??;
            Ok::<_, End>((stream, resume))
        };
        let (stream, resume) = offline(&mut self.commands, opening).await??;
        let session = Session::new(&self.terms, &resume, Instant::now())?;
        Ok((stream, session))
    }
}

/// Runs `work` while there is no connection: calls are answered, and a shutdown ends it.
async fn offline<T>(
    commands: &mut mpsc::Receiver<Command>,
    work: impl Future<Output = T>,
) -> Result<T, End> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            value = &mut work => return Ok(value),
            command = commands.recv() => match command {
                // The caller may have given up.
                Some(Command::Call(call)) => drop(call.reply.send(Err(CallError::Offline))),
                Some(Command::Shutdown) | None => return Err(End::Shutdown),
            },
        }
    }
}

/// From the first packet to a stream, TLS included.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
