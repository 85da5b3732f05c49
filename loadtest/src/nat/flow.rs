//! One flow through the box: two sockets and what is on its way between them.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::{Counters, Silence};

/// See the module. Side 0 is the device, side 1 the server.
pub(super) struct Flow {
    pub sides: [Side; 2],
    /// When something last passed, in either direction.
    pub passed_at: Instant,
    pub is_forgotten: bool,
    /// Something was swallowed.
    pub is_missed: bool,
}

pub(super) struct Side {
    /// `None` once it is closed for good.
    stream: Option<TcpStream>,
    /// What waits to be written to this side; at most [`OUTBOX_BYTES_MAX`].
    outbox: Vec<u8>,
    /// This side has said that it sends no more.
    is_at_end: bool,
    /// It was told that the other side sends no more.
    is_told: bool,
}

impl Side {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: Some(stream), outbox: Vec::new(), is_at_end: false, is_told: false }
    }
}

/// What became of one attempt to read.
enum Step {
    Moved,
    Waits,
    Broken,
}

impl Flow {
    /// The black hole begins; what is still on its way is lost in it.
    pub fn forget(&mut self, counters: &Counters) {
        self.is_forgotten = true;
        counters.forgotten.fetch_add(1, Ordering::AcqRel);
        for side in &mut self.sides {
            counters.dropped.fetch_add(side.outbox.len() as u64, Ordering::AcqRel);
            side.outbox = Vec::new();
        }
        self.pump(counters);
    }

    /// Moves, or drops, whatever can be moved now. Sockets signal edges, so nothing readable may be left behind
    /// unless a full outbox will call again.
    pub fn pump(&mut self, counters: &Counters) {
        for at in [0, 1] {
            loop {
                match self.step(at, counters) {
                    Step::Moved => {}
                    Step::Waits => break,
                    Step::Broken if self.is_forgotten => {
                        self.sides[at].stream = None;
                        break;
                    }
                    Step::Broken => return self.close(),
                }
            }
        }
    }

    /// Nobody is left on either side.
    pub fn is_over(&self) -> bool {
        let [device, server] = &self.sides;
        let is_done = |side: &Side| side.stream.is_none() || (side.is_at_end && side.is_told);
        is_done(device) && is_done(server)
    }

    fn close(&mut self) {
        for side in &mut self.sides {
            side.stream = None;
        }
    }

    /// From side `at` to the other one.
    fn step(&mut self, at: usize, counters: &Counters) -> Step {
        match self.write(1 - at) {
            Step::Moved => {}
            Step::Waits => return Step::Waits,
            Step::Broken => return Step::Broken,
        }
        let from = &mut self.sides[at];
        let Some(stream) = &mut from.stream else { return Step::Waits };
        if from.is_at_end {
            return Step::Waits;
        }
        let mut room = [0; READ_BYTES];
        match stream.read(&mut room) {
            Ok(0) if self.is_forgotten => {
                from.stream = None;
                Step::Waits
            }
            Ok(0) => {
                from.is_at_end = true;
                Step::Moved
            }
            Ok(read) if self.is_forgotten => {
                counters.dropped.fetch_add(read as u64, Ordering::AcqRel);
                if !self.is_missed {
                    self.is_missed = true;
                    counters.silent(self.passed_at.elapsed(), Silence::Fatal);
                }
                Step::Moved
            }
            Ok(read) => {
                let silence = self.passed_at.elapsed();
                if silence >= SILENCE_MIN {
                    counters.silent(silence, Silence::Survived);
                }
                self.passed_at = Instant::now();
                counters.passed[at].fetch_add(read as u64, Ordering::AcqRel);
                self.sides[1 - at].outbox.extend_from_slice(&room[..read]);
                Step::Moved
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Step::Waits,
            // The connect to the server is still on its way.
            Err(error) if error.kind() == ErrorKind::NotConnected => Step::Waits,
            Err(error) if error.kind() == ErrorKind::Interrupted => Step::Moved,
            Err(_) => Step::Broken,
        }
    }

    /// Empties the outbox of a side; `Moved` if there is room for more.
    fn write(&mut self, at: usize) -> Step {
        if self.is_forgotten {
            return Step::Moved;
        }
        let is_other_at_end = self.sides[1 - at].is_at_end;
        let side = &mut self.sides[at];
        let Some(stream) = &mut side.stream else { return Step::Broken };
        while !side.outbox.is_empty() {
            match stream.write(&side.outbox) {
                Ok(written) => drop(side.outbox.drain(..written)),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) =>
                {
                    let is_full = side.outbox.len() >= OUTBOX_BYTES_MAX;
                    return if is_full { Step::Waits } else { Step::Moved };
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Step::Broken,
            }
        }
        side.outbox = Vec::new();
        if is_other_at_end && !side.is_told {
            side.is_told = true;
            // A socket that is gone has nothing to be told.
            let _ = stream.shutdown(Shutdown::Write);
        }
        Step::Moved
    }
}

/// What comes sooner belongs together.
const SILENCE_MIN: Duration = Duration::from_millis(10);
const READ_BYTES: usize = 16 << 10;
const OUTBOX_BYTES_MAX: usize = 64 << 10;
