//! A worker process: one fleet, orders on stdin, reports on stdout. It ends with its stdin.

use std::io::{BufRead, Write, stdin, stdout};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mio::{Events, Waker};

use crate::fleet::{Fleet, WAKER};
use crate::order::{Order, Report};
use crate::process;

/// Runs until stdin ends. What goes wrong is reported, then the process ends.
pub fn run() -> anyhow::Result<()> {
    let outcome = serve();
    if let Err(error) = &outcome {
        say(&[Report::Failed { error: format!("{error:#}") }])?;
    }
    outcome
}

fn serve() -> anyhow::Result<()> {
    let mut first = String::new();
    stdin().read_line(&mut first).context("no order")?;
    let Order::Setup(setup) = serde_json::from_str(&first).context("an order that is none")? else {
        bail!("the first order is not the setup");
    };
    let bytes_before = process::anonymous_bytes(std::process::id())?;
    let mut fleet = Fleet::new(*setup)?;
    // A waker that is closed takes its last wake with it, so it is kept here.
    let waker = Arc::new(Waker::new(fleet.registry(), WAKER)?);
    let orders = listen(waker.clone())?;
    say(&[Report::Ready { bytes_before }])?;
    let mut events = Events::with_capacity(1024);
    let (mut told, mut told_at) = (fleet.progress(), Instant::now());
    loop {
        let is_news = fleet.progress() != told;
        fleet.turn(&mut events, is_news.then_some(TELL_EVERY))?;
        loop {
            match orders.try_recv() {
                Ok(order) => obey(&mut fleet, order)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        let mut reports = fleet.reports();
        if fleet.progress() != told && told_at.elapsed() >= TELL_EVERY {
            (told, told_at) = (fleet.progress(), Instant::now());
            reports.push(Report::Progress(told));
        }
        say(&reports)?;
    }
}

fn obey(fleet: &mut Fleet, order: Order) -> anyhow::Result<()> {
    match order {
        Order::Setup(_) => bail!("a second setup"),
        Order::Open(open) => fleet.open(open),
        Order::Cut(how) => fleet.cut(how),
        Order::Watch(watch) => fleet.watch(watch),
        Order::Tally => fleet.tally()?,
    }
    Ok(())
}

/// Reads orders on a thread of its own, because stdin waits.
fn listen(waker: Arc<Waker>) -> anyhow::Result<Receiver<Order>> {
    let (sender, orders) = mpsc::sync_channel(ORDERS_MAX);
    let read = move || {
        for line in stdin().lock().lines() {
            let order = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            let is_taken = order.is_some_and(|order| sender.send(order).is_ok());
            if !is_taken || waker.wake().is_err() {
                break;
            }
        }
        drop(sender);
        // A fleet that is gone needs no waking.
        let _ = waker.wake();
    };
    std::thread::Builder::new().name("orders".to_owned()).spawn(read)?;
    Ok(orders)
}

fn say(reports: &[Report]) -> anyhow::Result<()> {
    if reports.is_empty() {
        return Ok(());
    }
    let mut out = stdout().lock();
    for report in reports {
        serde_json::to_writer(&mut out, report)?;
        out.write_all(b"\n")?;
    }
    out.flush().context("nobody listens")
}

const TELL_EVERY: Duration = Duration::from_millis(250);
const ORDERS_MAX: usize = 4;
