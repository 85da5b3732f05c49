//! Where those wait who connect while the predecessor ends.
//!
//! The kernel's backlog is often shorter than the number of devices, and who does not fit
//! into it comes seconds later. So the devices' doors are open already: sockets are accepted
//! and kept, in their order, until there is an edge to serve them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use crate::base::tasks;

/// A socket and whom it comes from.
pub(super) type Early = (TcpStream, SocketAddr);

/// How many may wait, in all lobbies together.
#[derive(Clone)]
pub(super) struct Seats {
    taken: Arc<AtomicUsize>,
    max: usize,
}

impl Seats {
    pub(super) fn new(max: usize) -> Self {
        Self { taken: Arc::default(), max }
    }

    /// Whether one is free. Lobbies that look at the same moment may each take the last one:
    /// that is one more for each lobby but one.
    fn is_free(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < self.max
    }

    fn take(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }
}

/// The sockets of one listener.
pub(super) struct Lobby {
    open: watch::Sender<bool>,
    waiting: JoinHandle<(TcpListener, Vec<Early>)>,
}

impl Lobby {
    /// Takes in as many as there are seats; the others wait in the backlog.
    pub(super) fn open(listener: TcpListener, seats: Seats) -> Self {
        let (open, closed) = watch::channel(true);
        let waiting = tasks::spawn("lobby", gather(listener, seats, closed));
        Self { open, waiting }
    }

    /// The listener, and who is waiting.
    pub(super) async fn close(self) -> anyhow::Result<(TcpListener, Vec<Early>)> {
        self.open.send_replace(false);
        Ok(self.waiting.await?)
    }
}

async fn gather(
    listener: TcpListener,
    seats: Seats,
    mut open: watch::Receiver<bool>,
) -> (TcpListener, Vec<Early>) {
    let mut early = Vec::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = open.wait_for(|open| !*open) => return (listener, early),
            accepted = listener.accept(), if seats.is_free() => accepted,
        };
        match accepted {
            Ok(one) => {
                seats.take();
                early.push(one);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept, pausing");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::net;

    /// Connects to a listener, and gives the address from which it did.
    async fn come(at: SocketAddr, streams: &mut Vec<TcpStream>) -> SocketAddr {
        let stream = TcpStream::connect(at).await.unwrap();
        let peer = stream.local_addr().unwrap();
        streams.push(stream);
        tokio::task::yield_now().await;
        peer
    }

    #[tokio::test]
    async fn who_came_is_kept_in_order_and_the_rest_waits_at_the_listener() {
        let listener = net::listen(([127, 0, 0, 1], 0).into(), 16).unwrap();
        let at = listener.local_addr().unwrap();
        let lobby = Lobby::open(listener, Seats::new(2));
        let (mut peers, mut streams) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            peers.push(come(at, &mut streams).await);
        }
        let (listener, early) = lobby.close().await.unwrap();
        let mut found: Vec<SocketAddr> = early.iter().map(|one| one.1).collect();
        assert!(found.len() <= 2);
        while found.len() < 3 {
            found.push(listener.accept().await.unwrap().1);
        }
        assert_eq!(found, peers);
    }

    #[tokio::test]
    async fn all_doors_together_have_so_many_seats() {
        let seats = Seats::new(4);
        let (mut lobbies, mut streams) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let listener = net::listen(([127, 0, 0, 1], 0).into(), 16).unwrap();
            let at = listener.local_addr().unwrap();
            lobbies.push(Lobby::open(listener, seats.clone()));
            for _ in 0..4 {
                come(at, &mut streams).await;
            }
        }
        while seats.is_free() {
            tokio::task::yield_now().await;
        }
        let mut waiting = 0;
        for lobby in lobbies {
            waiting += lobby.close().await.unwrap().1.len();
        }
        // Whoever looks at the same moment: see `Seats`.
        assert!((4..=6).contains(&waiting), "{waiting}");
    }
}
