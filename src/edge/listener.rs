//! Accepting sockets: within bounds, and with every handshake under one deadline.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    Accepted, Edge, Handshaking, advisor::AddressKey, life::Life, tls::TlsStream, websocket,
};
use crate::base::{
    metrics::{Handshake, Transport},
    net, tasks,
};

impl Edge {
    /// Accepts connections until `stop` says so or its sender is gone.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        transport: Transport,
        tls: Option<Arc<rustls::ServerConfig>>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            // Biased: once told to stop, nobody more is let in.
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let network = self.advisor.at_address(peer.ip());
                    self.let_in(stream, network, transport, tls.clone()).await;
                }
                Err(error) => {
                    // Out of file descriptors, mostly: those who leave make room.
                    tracing::warn!(%error, "cannot accept, pausing");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Starts the task of one socket, or closes it. Never waits for the peer.
    async fn let_in(
        self: &Arc<Self>,
        stream: TcpStream,
        network: AddressKey,
        transport: Transport,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) {
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
        let accepted = Accepted { transport, at, admission, handshaking, serial, network };
        let bytes_max = self.config.packet_bytes_max as usize;
        match (transport, tls) {
            (Transport::Tcp, None) => {
                start(Life::new(accepted, std::future::ready(Ok(stream))));
            }
            (Transport::WebSocket, None) => {
                start(Life::new(accepted, websocket::accept(stream, bytes_max)));
            }
            (Transport::Tcp | Transport::Tls, Some(tls)) => {
                start(Life::new(accepted, TlsStream::accept(stream, tls)));
            }
            (Transport::WebSocket, Some(tls)) => start(Life::new(accepted, async move {
                websocket::accept(TlsStream::accept(stream, tls).await?, bytes_max).await
            })),
            (Transport::Tls, None) => {
                unreachable!("the composition root gives TLS its configuration")
            }
        }
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

fn start<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(life: Life<S>) {
    drop(tasks::spawn("connection", life));
}

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// For a handshake permit, in the accept loop.
const PERMIT_WAIT: Duration = Duration::from_millis(250);
