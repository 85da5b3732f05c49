//! Accepting sockets: within bounds, and with every handshake under one deadline.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Accepted, Edge, Handshaking, life::Life, tls::TlsStream, websocket};
use crate::base::{
    metrics::{Handshake, Transport},
    net,
    proxy::{self, Balancers},
    tasks,
    tls::Live,
};

/// A listener with what those who come in meet.
pub struct Door {
    /// Where they come in.
    pub listener: TcpListener,
    /// What they speak.
    pub transport: Transport,
    /// Around it, if anything.
    pub tls: Option<Live>,
    /// Who must say whom he serves.
    pub balancers: Balancers,
    /// Who came in before, in the order in which they came.
    pub early: Vec<(TcpStream, SocketAddr)>,
}

impl Edge {
    /// Accepts connections until `stop` says so or its sender is gone.
    pub async fn serve(self: Arc<Self>, mut door: Door, mut stop: watch::Receiver<bool>) {
        for (stream, peer) in std::mem::take(&mut door.early) {
            self.let_in(stream, peer, &door).await;
        }
        loop {
            // Biased: once told to stop, nobody more is let in.
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                accepted = door.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.let_in(stream, peer, &door).await,
                Err(error) => {
                    // Out of file descriptors, mostly: those who leave make room.
                    tracing::warn!(%error, "cannot accept, pausing");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Starts the task of one socket, or closes it. Never waits for the peer.
    async fn let_in(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, door: &Door) {
        let (at, serial) = (Instant::now(), self.next_serial());
        let (Some(admission), Some(permit)) = (self.admit(), self.handshake_permit().await) else {
            self.metrics.edge.handshakes.of(Handshake::Refused).increment(1);
            return;
        };
        if net::tune(&stream, net::Peers::Devices).is_err() {
            self.metrics.edge.handshakes.of(Handshake::Refused).increment(1);
            return;
        }
        let handshaking = Handshaking::new(self, permit);
        let tls = door.tls.as_ref().map(|tls| tls.load_full());
        let accepted = Accepted { transport: door.transport, at, admission, handshaking, serial };
        if door.balancers.contains(peer.ip()) {
            let behind = accepted.behind_balancer(stream, peer, door.balancers.clone(), tls);
            tasks::spawn("balancer's header", behind);
            return;
        }
        accepted.start(stream, tls);
    }

    /// Room for one more handshake. In a storm the others wait in the kernel's backlog for
    /// a moment, which costs nobody a retry; under an attack the wait has an end.
    async fn handshake_permit(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.handshakes.clone().try_acquire_owned() {
            return Some(permit);
        }
        timeout(PERMIT_WAIT, self.handshakes.clone().acquire_owned()).await.ok()?.ok()
    }
}

impl Accepted {
    /// Reads for whom the balancer came, and goes on as with anybody else.
    async fn behind_balancer(
        self,
        mut stream: TcpStream,
        balancer: SocketAddr,
        balancers: Balancers,
        tls: Option<Arc<ServerConfig>>,
    ) {
        let header = proxy::client_address(&mut stream, balancer, &balancers);
        match Box::pin(timeout_at(self.deadline(), header)).await {
            Ok(Ok(client)) => {
                tracing::trace!(%client, %balancer, "a balancer brings a connection");
                self.start(stream, tls);
            }
            Ok(Err(error)) => {
                tracing::debug!(%balancer, %error, "a balancer's connection is refused");
                self.failed(Handshake::Transport);
            }
            Err(_) => self.failed(Handshake::Timeout),
        }
    }

    /// Starts the task of the socket; a kind of task each, so that none is larger than it needs.
    fn start(self, stream: TcpStream, tls: Option<Arc<ServerConfig>>) {
        let bytes_max = self.handshaking.edge.config().packet_bytes_max as usize;
        match (self.transport, tls) {
            (Transport::Tcp, None) => {
                start(Life::new(self, std::future::ready(Ok(stream))));
            }
            (Transport::WebSocket, None) => {
                start(Life::new(self, websocket::accept(stream, bytes_max)));
            }
            (Transport::Tcp | Transport::Tls, Some(tls)) => {
                start(Life::new(self, TlsStream::accept(stream, tls)));
            }
            (Transport::WebSocket, Some(tls)) => start(Life::new(self, async move {
                websocket::accept(TlsStream::accept(stream, tls).await?, bytes_max).await
            })),
            (Transport::Tls, None) => {
                unreachable!("the composition root gives TLS its configuration")
            }
        }
    }
}

fn start<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(life: Life<S>) {
    drop(tasks::spawn("connection", life));
}

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// For a handshake permit, in the accept loop.
const PERMIT_WAIT: Duration = Duration::from_millis(250);
