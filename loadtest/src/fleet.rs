//! Many devices on one thread and one epoll: a small slot for each, no buffer for any that idles.
//!
//! It owns the sockets of one worker's share of the devices. It does what its orders say and gathers reports; where
//! they come from and go to is the worker's business.

mod frames;
mod inbox;
mod line;
mod opening;
mod seals;
mod speech;
mod tickets;
mod websocket;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::mem;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::{Events, Interest, Poll, Registry, Token};

use crate::credentials::Credentials;
use crate::mqtt;
use crate::order::{Cut, Open, Opened, Progress, Report, Setup, Speech, Tally, Watch};
use frames::Places;
use inbox::Inbox;
use line::{Carrier, Line, would_wait};
use opening::{Opening, Why};

/// See the module.
pub struct Fleet {
    poll: Poll,
    setup: Setup,
    credentials: Credentials,
    carrier: Carrier,
    slots: Vec<Slot>,
    /// Of the few that are in the middle of a packet.
    rests: HashMap<u32, Rest>,
    /// When the server said that a device may come back, in milliseconds.
    advice: HashMap<u32, u64>,
    opening: Option<Opening>,
    inbox: Option<Inbox>,
    reports: Vec<Report>,
    start: Instant,
    room: Vec<u8>,
    acks: Vec<u8>,
    open: usize,
    connections_lost: usize,
    swept_s: u32,
}

/// One device.
#[derive(Default)]
struct Slot {
    line: Option<Line>,
    places: Places,
    began_us: u64,
    /// When it last sent something that keeps it alive, in seconds of the fleet's clock.
    sent_s: u32,
    attempt: u8,
    stage: Stage,
    keys: Option<Box<seals::Keys>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Closed,
    Connecting,
    /// CONNECT is sent.
    Greeted,
    Live,
}

/// What is half read and half written.
#[derive(Default)]
struct Rest {
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

impl Fleet {
    pub fn new(setup: Setup) -> anyhow::Result<Self> {
        ensure!(setup.first < setup.step, "a share that does not exist");
        let count = (setup.devices + setup.step - 1 - setup.first) / setup.step;
        let credentials = match &setup.speech {
            Speech::Broker { .. } => Credentials::default(),
            Speech::Plain { credentials } | Speech::Frames { credentials } => {
                Credentials::read(credentials, setup.devices, setup.first, setup.step)?
            }
        };
        let carrier = match &setup.tls {
            Some(tls) => Carrier::Tls(tickets::config(tls, count)?),
            None if setup.is_websocket => Carrier::WebSocket,
            None => Carrier::Tcp,
        };
        let mut slots = Vec::new();
        slots.resize_with(count, Slot::default);
        Ok(Self {
            poll: Poll::new().context("no epoll")?,
            setup,
            credentials,
            carrier,
            slots,
            rests: HashMap::new(),
            advice: HashMap::new(),
            opening: None,
            inbox: None,
            reports: Vec::new(),
            start: Instant::now(),
            room: vec![0; ROOM_BYTES],
            acks: Vec::new(),
            open: 0,
            connections_lost: 0,
            swept_s: 0,
        })
    }

    pub fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// What there is to tell since the last call.
    pub fn reports(&mut self) -> Vec<Report> {
        mem::take(&mut self.reports)
    }

    pub fn progress(&self) -> Progress {
        let delivered = self.inbox.as_ref().map_or(0, Inbox::delivered);
        Progress { open: self.open, delivered }
    }

    /// Begins to open; `Opened` is reported at its end.
    pub fn open(&mut self, order: Open) {
        let Setup { first, step, .. } = self.setup;
        let closed = |at: &u32| {
            let at = *at as usize;
            self.slots[at].stage == Stage::Closed && first + at * step < order.to
        };
        let todo: Vec<u32> = (0..self.slots.len() as u32).filter(closed).collect();
        todo.iter().for_each(|at| self.slots[*at as usize].attempt = 0);
        self.opening = Some(Opening::new(order, self.now_us(), todo));
        self.begin_some();
        self.finish_opening();
    }

    /// Ends all connections.
    pub fn cut(&mut self, how: Cut) {
        for at in 0..self.slots.len() as u32 {
            let Some(mut line) = self.slots[at as usize].line.take() else { continue };
            // It ends either way.
            let _ = match how {
                Cut::Fin => Ok(()),
                Cut::Rst => line.reset_on_close(),
                Cut::Disconnect => line.write(&mqtt::DISCONNECT).map(drop),
            };
            self.slots[at as usize].stage = Stage::Closed;
        }
        self.rests = HashMap::new();
        self.opening = None;
        self.open = 0;
        self.reports.push(Report::Cut);
    }

    /// Counts what is delivered from now on.
    pub fn watch(&mut self, watch: Watch) {
        let Setup { first, step, .. } = self.setup;
        self.inbox = Some(Inbox::new(watch, self.open, first, step));
        self.connections_lost = 0;
        self.reports.push(Report::Watching);
    }

    pub fn tally(&mut self) -> anyhow::Result<()> {
        let inbox = self.inbox.take().context("nothing was watched")?;
        let tally = inbox.tally(self.slots.len())?;
        let tally = Tally { connections_lost: self.connections_lost, ..tally };
        self.reports.push(Report::Tally(Box::new(tally)));
        Ok(())
    }

    /// Waits for something to do, at most `wait`, and does it.
    pub fn turn(&mut self, events: &mut Events, wait: Option<Duration>) -> io::Result<()> {
        let now_us = self.now_us();
        let due = self.opening.as_ref().and_then(Opening::wake_us);
        let due = due.map(|at| Duration::from_micros(at.saturating_sub(now_us) + 1));
        let ping = (self.open > 0 && self.setup.keep_alive_s > 0).then_some(SWEEP);
        match self.poll.poll(events, [wait, due, ping].into_iter().flatten().min()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        for event in events.iter().filter(|event| event.token() != WAKER) {
            self.drive(event.token().0 as u32);
        }
        self.end_overdue();
        self.ping_some();
        self.begin_some();
        self.finish_opening();
        Ok(())
    }

    fn drive(&mut self, at: u32) {
        if let Err(error) = self.step(at) {
            self.lost(at, Why::Refused, &error);
        }
    }

    fn begin_some(&mut self) {
        loop {
            let now_us = self.now_us();
            let Some(opening) = &mut self.opening else { return };
            let Some(at) = opening.next(now_us) else { return };
            let deadline_us = now_us + self.setup.timeout_ms * 1000;
            opening.tried(deadline_us, at, self.slots[at as usize].attempt);
            if let Err(error) = self.begin(at, now_us) {
                self.lost(at, Why::Refused, &error);
            }
        }
    }

    fn begin(&mut self, at: u32, now_us: u64) -> anyhow::Result<()> {
        let slot = &mut self.slots[at as usize];
        slot.stage = Stage::Connecting;
        slot.began_us = now_us;
        let sources = &self.setup.sources;
        let number = self.setup.first + at as usize * self.setup.step;
        let source = (!sources.is_empty()).then(|| sources[number % sources.len()]);
        let target = self.setup.target_of(number);
        let line = Line::connect(target, source, &self.carrier);
        let line = slot.line.insert(line.context("cannot connect")?);
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(line.stream(), Token(at as usize), both)?;
        Ok(())
    }

    fn step(&mut self, at: u32) -> anyhow::Result<()> {
        let slot = &mut self.slots[at as usize];
        let Some(line) = &mut slot.line else { return Ok(()) };
        if slot.stage == Stage::Connecting {
            if !line.is_connected().context("cannot connect")? {
                return Ok(());
            }
            slot.stage = Stage::Greeted;
            let greeting = self.greeting(at)?;
            self.write(at, &greeting)?;
        }
        self.flush(at)?;
        let mut room = mem::take(&mut self.room);
        let read = self.read(at, &mut room);
        self.room = room;
        read
    }

    fn read(&mut self, at: u32, room: &mut [u8]) -> anyhow::Result<()> {
        loop {
            let slot = &mut self.slots[at as usize];
            let Some(line) = &mut slot.line else { return Ok(()) };
            let is_bare = line.is_bare();
            match line.read(room) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(read) => {
                    self.take(at, &room[..read])?;
                    // A short read has emptied the socket; a layer may hold more.
                    if read < room.len() && is_bare {
                        return Ok(());
                    }
                }
                Err(error) if would_wait(&error) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read"),
            }
        }
    }

    fn take(&mut self, at: u32, read: &[u8]) -> anyhow::Result<()> {
        let held = self.rests.get_mut(&at).map(|rest| mem::take(&mut rest.inbox));
        let joined = held.filter(|held| !held.is_empty()).map(|mut held| {
            held.extend_from_slice(read);
            held
        });
        let bytes = joined.as_deref().unwrap_or(read);
        let mut done = 0;
        while let Some((incoming, length)) = mqtt::parse(self.setup.version, &bytes[done..])? {
            done += length;
            self.on_packet(at, incoming)?;
        }
        ensure!(bytes.len() - done <= PACKET_BYTES_MAX, "a packet that is too long");
        if done < bytes.len() {
            self.rests.entry(at).or_default().inbox = bytes[done..].to_vec();
        }
        if !self.acks.is_empty() {
            let mut acks = mem::take(&mut self.acks);
            let written = self.write(at, &acks);
            acks.clear();
            self.acks = acks;
            written?;
        }
        if self.rests.get(&at).is_some_and(|rest| rest.inbox.is_empty() && rest.outbox.is_empty()) {
            self.rests.remove(&at);
        }
        Ok(())
    }

    fn live(&mut self, at: u32) {
        let since_us = self.since_us(at);
        let slot = &mut self.slots[at as usize];
        if slot.stage == Stage::Live {
            return;
        }
        slot.stage = Stage::Live;
        slot.attempt = 0;
        self.open += 1;
        let Some(opening) = &mut self.opening else { return };
        opening.outcome.ready.add(since_us);
        let is_resumed = slot.line.as_ref().and_then(Line::is_tls_resumed);
        opening.outcome.tls_resumed += usize::from(is_resumed == Some(true));
        opening.succeeded();
    }

    fn lost(&mut self, at: u32, why: Why, error: &anyhow::Error) {
        let now_us = self.now_us();
        let advice_ms = self.advice.remove(&at);
        let slot = &mut self.slots[at as usize];
        let stage = mem::take(&mut slot.stage);
        slot.line = None;
        self.rests.remove(&at);
        self.acks.clear();
        match (stage, &mut self.opening) {
            (Stage::Live, _) => {
                self.open -= 1;
                self.connections_lost += 1;
            }
            (Stage::Connecting | Stage::Greeted, Some(opening)) => {
                let why = (why, format!("{error:#}"), advice_ms);
                opening.failed(now_us, at, slot.attempt, why);
                slot.attempt = slot.attempt.saturating_add(1);
            }
            (Stage::Connecting | Stage::Greeted | Stage::Closed, _) => {}
        }
    }

    fn end_overdue(&mut self) {
        let now_us = self.now_us();
        while let Some((at, attempt)) =
            self.opening.as_mut().and_then(|opening| opening.overdue(now_us))
        {
            let slot = &self.slots[at as usize];
            if slot.attempt == attempt && matches!(slot.stage, Stage::Connecting | Stage::Greeted) {
                let error = match slot.stage {
                    Stage::Connecting => anyhow::anyhow!("no connection in time"),
                    _ => anyhow::anyhow!("connected, and no answer in time"),
                };
                self.lost(at, Why::TimedOut, &error);
            }
        }
    }

    fn ping_some(&mut self) {
        let now_s = self.now_s();
        if self.setup.keep_alive_s == 0 || self.swept_s == now_s {
            return;
        }
        self.swept_s = now_s;
        let after_s = u32::from(self.setup.keep_alive_s) * 3 / 4;
        for at in 0..self.slots.len() as u32 {
            let slot = &mut self.slots[at as usize];
            if slot.stage == Stage::Live && now_s - slot.sent_s >= after_s.max(1) {
                slot.sent_s = now_s;
                if let Err(error) = self.write(at, &mqtt::PINGREQ) {
                    self.lost(at, Why::Refused, &error);
                }
            }
        }
    }

    fn finish_opening(&mut self) {
        let Some(opening) = self.opening.take_if(|opening| opening.is_done()) else { return };
        let us = self.now_us() - opening.began_us;
        let opened = Opened { us, ..opening.outcome };
        self.reports.push(Report::Opened(Box::new(opened)));
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let Some(line) = &mut self.slots[at as usize].line else { return Ok(()) };
        if let Some(rest) = self.rests.get_mut(&at)
            && !rest.outbox.is_empty()
        {
            rest.outbox.extend_from_slice(bytes);
            return Ok(());
        }
        let written = match line.write(bytes) {
            Ok(written) => written,
            Err(error) if would_wait(&error) => 0,
            Err(error) => return Err(error).context("cannot write"),
        };
        if written < bytes.len() {
            self.rests.entry(at).or_default().outbox.extend_from_slice(&bytes[written..]);
        }
        Ok(())
    }

    /// What waits is written as far as the socket takes it.
    fn flush(&mut self, at: u32) -> anyhow::Result<()> {
        let Some(line) = &mut self.slots[at as usize].line else { return Ok(()) };
        line.flush().context("cannot write")?;
        let Some(rest) = self.rests.get_mut(&at) else { return Ok(()) };
        let waiting = mem::take(&mut rest.outbox);
        if waiting.is_empty() { Ok(()) } else { self.write(at, &waiting) }
    }

    fn since_us(&self, at: u32) -> u64 {
        let from_order = self.opening.as_ref().filter(|opening| opening.order.from_order);
        let from_us =
            from_order.map_or(self.slots[at as usize].began_us, |opening| opening.began_us);
        self.now_us().saturating_sub(from_us)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn now_s(&self) -> u32 {
        u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

/// For whoever wakes the fleet.
pub const WAKER: Token = Token(usize::MAX - 1);
const ROOM_BYTES: usize = 64 << 10;
const PACKET_BYTES_MAX: usize = 1 << 20;
const SWEEP: Duration = Duration::from_secs(1);
