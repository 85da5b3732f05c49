//! How long one hop over loopback takes between two threads of this program while a run goes on: what no message's
//! way can be faster than, because all processes share the machine's processors.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;

use crate::clock;
use crate::histogram::Histogram;

/// Two threads, one of which sends the other the time, again and again.
pub struct Echo {
    /// Dropped, it ends them.
    stop: mpsc::SyncSender<()>,
    reader: JoinHandle<Histogram>,
}

impl Echo {
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        let mut to = TcpStream::connect(listener.local_addr()?)?;
        to.set_nodelay(true)?;
        let (mut from, _) = listener.accept()?;
        let (stop, stopped) = mpsc::sync_channel(1);
        thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY)
                && to.write_all(&clock::unix_us().to_le_bytes()).is_ok()
            {}
        });
        let reader = thread::spawn(move || {
            let (mut hops, mut sent) = (Histogram::default(), [0; 8]);
            while from.read_exact(&mut sent).is_ok() {
                hops.add(clock::unix_us().saturating_sub(u64::from_le_bytes(sent)));
            }
            hops
        });
        Ok(Self { stop, reader })
    }

    pub fn stop(self) -> anyhow::Result<Histogram> {
        drop(self.stop);
        self.reader.join().map_err(|_| anyhow::anyhow!("the echo has panicked"))
    }
}

const EVERY: Duration = Duration::from_millis(5);
