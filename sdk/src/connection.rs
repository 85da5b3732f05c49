//! The task's part that owns a stream: read, write, and pass on between the session, the applier and the app.
//!
//! Nothing here decides; the session does. Dropping the future between its awaits loses the stream and no more.

use std::time::Duration;

use bytes::BytesMut;
use carillon_wire::limits::FRAME_PACKET_BYTES_MAX;
use carillon_wire::mqtt::{Decoder, Packet, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::applier::{Done, Work};
use crate::calls::Call;
use crate::close::End;
use crate::heartbeat::{AppState, NetworkLabel};
use crate::session::{Given, Parting, Session};
use crate::transport::BoxStream;

/// What the app tells the device's task.
pub enum Command {
    /// Ask the gateway for something.
    Call(Call),
    /// The app is in use, or is not any more.
    App(AppState),
    /// The device is on this network now.
    Network(Option<NetworkLabel>),
    /// Finish what is in hand and end.
    Shutdown,
}

/// One connection.
pub struct Connection<'a> {
    pub stream: BoxStream,
    pub session: Session<'a>,
    pub commands: &'a mut mpsc::Receiver<Command>,
    pub applier: &'a mpsc::Sender<Work>,
    /// Told once, when the first `Resumed` comes.
    pub on_online: Box<dyn FnOnce() + Send + 'a>,
    /// The app wants the end: however this connection ends, it is the last one.
    pub is_closing: bool,
}

/// What happened next.
enum Event {
    Packet(Packet),
    Done(Done),
    Command(Command),
    Time,
}

/// The stream with what is read and not yet decoded.
struct Reader {
    buf: BytesMut,
    decoder: Decoder,
}

impl Connection<'_> {
    /// Runs until the connection ends.
    pub async fn run(mut self) -> (End, Parting) {
        let end = match self.drive().await {
            Ok(never) => match never {},
            Err(end) if self.is_closing && end.stop().is_none() => End::Shutdown,
            Err(end) => end,
        };
        if let Some(reason) = end.goodbye() {
            self.session.disconnect(reason);
            // The stream is given up either way.
            let _ = self.flush().await;
            let _ = timeout(WRITE_WITHIN, self.stream.shutdown()).await;
        }
        (end, self.session.parting())
    }

    /// Once it is closing, it only waits for the app's handler: that takes as long as it takes.
    async fn drive(&mut self) -> Result<std::convert::Infallible, End> {
        let (done_to, mut done) = mpsc::channel(usize::from(IN_HAND_MAX));
        let mut reader = Reader {
            buf: BytesMut::new(),
            decoder: Decoder::client(Version::V5, FRAME_PACKET_BYTES_MAX),
        };
        let mut online = Some(std::mem::replace(&mut self.on_online, Box::new(|| ())));
        let mut in_hand = 0usize;
        loop {
            self.flush().await?;
            if self.is_closing && in_hand == 0 {
                return Err(End::Shutdown);
            }
            let has_room = self.session.has_room();
            // Finished work first, so that the gateway's window opens; then the app; the network when both are quiet.
            let event = tokio::select! {
                biased;
                Some(done) = done.recv(), if has_room => Event::Done(done),
                command = self.commands.recv(), if has_room && !self.is_closing =>
                    Event::Command(command.unwrap_or(Command::Shutdown)),
                packet = reader.next(&mut self.stream), if !self.is_closing => Event::Packet(packet?),
                () = sleep_until(self.session.wake_at()), if !self.is_closing => Event::Time,
                () = self.applier.closed() => return Err(End::HandlerPanicked),
            };
            let now = Instant::now();
            match event {
                Event::Done(finished) => {
                    in_hand -= 1;
                    self.session.finished(finished?, now)?;
                }
                Event::Command(Command::Call(call)) => self.session.call(call, now),
                Event::Command(Command::App(app)) => self.session.app_became(app),
                Event::Command(Command::Network(label)) => self.session.network_changed(label)?,
                Event::Command(Command::Shutdown) => self.is_closing = true,
                Event::Packet(packet) => {
                    let given = self.session.packet(packet, now)?;
                    in_hand += self.give(given, &done_to)?;
                    if self.session.is_online()
                        && let Some(online) = online.take()
                    {
                        online();
                    }
                }
                Event::Time => self.session.tick(now)?,
            }
            self.save_networks();
        }
    }

    /// Passes work on; 1 if it will come back as done. The gateway keeps to Receive Maximum, so there is room.
    fn give(&self, given: Given, done: &mpsc::Sender<Done>) -> Result<usize, End> {
        let (work, count) = match given {
            Given::Nothing => return Ok(0),
            Given::Registered(regid, app) => (Work::Registered(regid, app), 0),
            Given::Unregistered(regid) => (Work::Unregistered(regid), 0),
            Given::Frame { frame, packet_id } => {
                let done = done.clone();
                let work = Work::Frame { frame, packet_id, done };
                (work, 1)
            }
        };
        match self.applier.try_send(work) {
            Ok(()) => Ok(count),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(End::Fault("more frames than Receive Maximum"))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(End::HandlerPanicked),
        }
    }

    /// Without room now, they are saved another time.
    fn save_networks(&mut self) {
        if let Ok(room) = self.applier.try_reserve()
            && let Some(networks) = self.session.take_networks()
        {
            room.send(Work::Networks(networks));
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.session.out.is_empty() {
            return Ok(());
        }
        let bytes = self.session.out.split();
        let write = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        timeout(WRITE_WITHIN, write).await.map_err(|_| End::NoAnswer)??;
        self.session.written(Instant::now());
        Ok(())
    }
}

impl Reader {
    /// May be dropped at its await: what was read stays in the buffer.
    async fn next(&mut self, stream: &mut BoxStream) -> Result<Packet, End> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.buf).map_err(End::Wire)? {
                return Ok(packet);
            }
            self.buf.reserve(READ_BYTES);
            if stream.read_buf(&mut self.buf).await? == 0 {
                return Err(End::Closed);
            }
        }
    }
}

/// One write.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// Room for one read.
const READ_BYTES: usize = 4096;
/// Frames that the applier may have: the largest Receive Maximum, and what is not counted in it.
pub const IN_HAND_MAX: u16 = 128;
