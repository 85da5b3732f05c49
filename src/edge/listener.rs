//! Accepting sockets: within bounds, and with every handshake under one deadline.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Accepted, Edge, HandshakeShare, Handshaking,
    gate::{Refusal, Refused},
    greeting,
    life::Life,
    websocket, within,
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
        let tls = tls.map(TlsAcceptor::from);
        if let Err(error) = net::bound_send_buffers(&listener, self.config.send_buffer_bytes) {
            tracing::warn!(%error, "the kernel's send buffers have no bound");
        }
        loop {
            // Biased: once told to stop, nobody more is let in.
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    self.let_in(stream, peer.ip(), transport, tls.clone()).await;
                }
                Err(error) => {
                    // Out of file descriptors, mostly: those who leave make room.
                    tracing::warn!(%error, "cannot accept, pausing");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Starts the task of one socket, or turns it away. Waits only for a handshake's place,
    /// never for the peer.
    async fn let_in(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: IpAddr,
        transport: Transport,
        tls: Option<TlsAcceptor>,
    ) {
        let (at, serial) = (Instant::now(), self.next_serial());
        if net::tune(&stream, net::Peers::Devices).is_err() {
            self.note_refused(Refused::Files);
            drop(stream);
            // Nobody gets in before others leave: no reason to hurry.
            return sleep(FILES_PAUSE).await;
        }
        let address = self.gate.address(peer);
        let Some(share) = self.handshake_share(address) else {
            return self.note_refused(Refused::AddressHandshakes);
        };
        let admission = match self.admit(address, dice(serial)) {
            Ok(admission) => admission,
            Err(refusal) => return self.turn_away(stream, transport, tls, refusal, share),
        };
        // Those who come next wait in the kernel's backlog: it costs them no retry.
        let handshaking = Handshaking::new(self, self.gate.places.wait().await, share);
        let accepted = Accepted { transport, at, admission, handshaking, serial };
        match (transport, tls) {
            (Transport::Tcp, None) => drop(tasks::spawn("connection", Life::new(accepted, stream))),
            (Transport::WebSocket, None) => {
                drop(tasks::spawn("connection", accepted.over_websocket(stream)))
            }
            (Transport::Tcp | Transport::Tls, Some(tls)) => {
                drop(tasks::spawn("connection", accepted.over_tls(stream, tls)));
            }
            (Transport::WebSocket, Some(tls)) => {
                drop(tasks::spawn("connection", accepted.over_tls_websocket(stream, tls)));
            }
            (Transport::Tls, None) => {
                unreachable!("the composition root gives TLS its configuration")
            }
        }
    }

    /// Tells a refused one why where that is cheap: without TLS, and if few others are told
    /// just now. The others find the stream closed.
    fn turn_away(
        self: &Arc<Self>,
        stream: TcpStream,
        transport: Transport,
        tls: Option<TlsAcceptor>,
        refusal: Refusal,
        share: HandshakeShare,
    ) {
        self.note_refused(refusal.why);
        let (None, Some(hearing)) = (tls, self.gate.hearing()) else { return };
        let bytes_max = self.config.connect_bytes_max;
        let telling = async move {
            let _room = (hearing, share);
            match transport {
                Transport::Tcp | Transport::Tls => {
                    greeting::turn_away(stream, bytes_max, refusal).await;
                }
                Transport::WebSocket => {
                    if let Ok(stream) = websocket::accept(stream, bytes_max as usize).await {
                        greeting::turn_away(stream, bytes_max, refusal).await;
                    }
                }
            }
        };
        tasks::spawn("refusal", timeout(HEARING_WAIT, telling));
    }

    fn note_refused(&self, why: Refused) {
        self.metrics.edge.handshakes.of(Handshake::Refused).increment(1);
        self.gate.refused.of(why).increment(1);
    }
}

/// Spreads consecutive serials evenly (Knuth's multiplicative hash).
fn dice(serial: u64) -> u32 {
    (serial.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

impl Accepted {
    async fn over_tls(self, stream: TcpStream, tls: TlsAcceptor) {
        let Some(stream) = self.secured(stream, tls).await else { return };
        Life::new(self, stream).await;
    }

    async fn over_websocket<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S) {
        let bytes_max = self.handshaking.edge.config.packet_bytes_max as usize;
        let patience = self.handshaking.place.patience();
        let upgrade = websocket::accept(stream, bytes_max);
        match Box::pin(within(self.deadline(), patience, upgrade)).await {
            Ok(Ok(stream)) => Life::new(self, stream).await,
            Ok(Err(_)) => self.failed(Handshake::Transport),
            Err(result) => self.failed(result),
        }
    }

    async fn over_tls_websocket(self, stream: TcpStream, tls: TlsAcceptor) {
        let Some(stream) = self.secured(stream, tls).await else { return };
        self.over_websocket(stream).await;
    }

    async fn secured(&self, stream: TcpStream, tls: TlsAcceptor) -> Option<TlsStream<TcpStream>> {
        let patience = self.handshaking.place.patience();
        let handshake = async {
            // Who gave up in the backlog gets no handshake: in a storm this ends the spiral.
            if stream.ready(Interest::READABLE).await?.is_read_closed() {
                return Ok(None);
            }
            io::Result::Ok(Some(tls.accept(stream).await?))
        };
        match Box::pin(within(self.deadline(), patience, handshake)).await {
            Ok(Ok(Some(stream))) => return Some(stream),
            Ok(Ok(None)) => self.failed(Handshake::GaveUp),
            Ok(Err(_)) => self.failed(Handshake::Transport),
            Err(result) => self.failed(result),
        }
        None
    }
}

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// After a socket for which too few files are left: the loop turns some hundreds of them away
/// in a second, which costs next to nothing.
const FILES_PAUSE: Duration = Duration::from_millis(1);
/// For the CONNECT of somebody who is refused, and the answer.
const HEARING_WAIT: Duration = Duration::from_secs(2);
