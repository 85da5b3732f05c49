//! Where those wait who connect while the predecessor ends.
//!
//! The kernel's backlog is often shorter than the number of devices, and who does not fit
//! into it comes seconds later. So the devices' doors are open already: sockets are accepted
//! and kept, in their order, until there is an edge to serve them.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use crate::base::tasks;

/// A socket and whom it comes from.
pub(super) type Early = (TcpStream, SocketAddr);

/// The sockets of one listener.
pub(super) struct Lobby {
    open: watch::Sender<bool>,
    waiting: JoinHandle<(TcpListener, Vec<Early>)>,
}

impl Lobby {
    /// Takes in up to `sockets_max`; the others wait in the backlog.
    pub(super) fn open(listener: TcpListener, sockets_max: usize) -> Self {
        let (open, closed) = watch::channel(true);
        let waiting = tasks::spawn("lobby", gather(listener, sockets_max, closed));
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
    sockets_max: usize,
    mut open: watch::Receiver<bool>,
) -> (TcpListener, Vec<Early>) {
    let mut early = Vec::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = open.wait_for(|open| !*open) => return (listener, early),
            accepted = listener.accept(), if early.len() < sockets_max => accepted,
        };
        match accepted {
            Ok(one) => early.push(one),
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

    #[tokio::test]
    async fn who_came_is_kept_in_order_and_the_rest_waits_at_the_listener() {
        let listener = net::listen(([127, 0, 0, 1], 0).into(), 16).unwrap();
        let at = listener.local_addr().unwrap();
        let lobby = Lobby::open(listener, 2);
        let mut peers = Vec::new();
        let mut streams = Vec::new();
        for _ in 0..3 {
            let stream = TcpStream::connect(at).await.unwrap();
            peers.push(stream.local_addr().unwrap());
            streams.push(stream);
            tokio::task::yield_now().await;
        }
        let (listener, early) = lobby.close().await.unwrap();
        let mut found: Vec<SocketAddr> = early.iter().map(|one| one.1).collect();
        assert!(found.len() <= 2);
        while found.len() < 3 {
            found.push(listener.accept().await.unwrap().1);
        }
        assert_eq!(found, peers);
    }
}
