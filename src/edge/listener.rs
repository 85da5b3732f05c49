//! Accepting sockets: within bounds, and with every handshake under one deadline.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::Interest,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::yield_now,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    Accepted, Carrier, Edge, HandshakeShare, Handshaking,
    gate::{Refusal, Refused},
    greeting,
    life::Life,
    tls::TlsStream,
    websocket,
};
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
        let send_buffer_bytes = self.config().send_buffer_bytes;
        if let Err(error) = net::bound_send_buffers(&door.listener, send_buffer_bytes) {
            tracing::warn!(%error, "the kernel's send buffers have no bound");
        }
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

    /// Starts the task of one socket, or turns it away. Waits only for a handshake's place,
    /// never for the peer.
    async fn let_in(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, door: &Door) {
        let arrived = Arrived {
            transport: door.transport,
            tls: door.tls.as_ref().map(|tls| tls.load_full()),
            at: Instant::now(),
            serial: self.next_serial(),
        };
        if net::tune(&stream, net::Peers::Devices).is_err() {
            self.note_refused(Refused::Files);
            drop(stream);
            // Nobody gets in before others leave: no reason to hurry.
            return sleep(FILES_PAUSE).await;
        }
        if door.balancers.contains(peer.ip()) {
            let behind =
                arrived.behind_balancer(self.clone(), stream, peer, door.balancers.clone());
            tasks::spawn("balancer's header", behind);
            return;
        }
        arrived.let_in(self, stream, peer.ip()).await;
    }

    /// Tells a refused one why where that is cheap: without TLS, and if few others are told
    /// just now. The others find the stream closed.
    fn turn_away(
        self: &Arc<Self>,
        stream: TcpStream,
        transport: Transport,
        tls: Option<Arc<rustls::ServerConfig>>,
        refusal: Refusal,
        share: HandshakeShare,
    ) {
        self.note_refused(refusal.why);
        let (None, Some(hearing)) = (tls, self.gate.hearing()) else { return };
        let (edge, bytes_max) = (self.clone(), self.config().packet_bytes_max);
        let telling = async move {
            let _room = (hearing, share);
            match transport {
                Transport::Tcp | Transport::Tls => {
                    greeting::turn_away(&edge, stream, refusal).await;
                }
                Transport::WebSocket => {
                    if let Ok(stream) = websocket::accept(stream, bytes_max).await {
                        greeting::turn_away(&edge, stream, refusal).await;
                    }
                }
                Transport::Https => {}
            }
        };
        tasks::spawn("refusal", timeout(HEARING_WAIT, telling));
    }

    /// The TLS part of a handshake, in its turn. Who says nothing takes nobody's turn.
    async fn accept_tls(
        &self,
        stream: TcpStream,
        tls: Arc<ServerConfig>,
    ) -> io::Result<TlsStream<TcpStream>> {
        stream.readable().await?;
        let place = self.gate.tls_places.wait().await;
        let patience = place.patience();
        let stream = still_there(stream).await?;
        tokio::select! {
            biased;
            accepted = TlsStream::accept(stream, tls) => accepted,
            () = patience.over() => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    pub(super) fn note_refused(&self, why: Refused) {
        self.metrics.edge.handshakes.of(Handshake::Refused).increment(1);
        self.gate.refused.of(why).increment(1);
    }
}

/// Spreads consecutive serials evenly (Knuth's multiplicative hash).
pub(super) fn dice(serial: u64) -> u32 {
    (serial.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

/// A stream whose client has not given up while it waited for its turn: in a storm those who
/// have must not be served a handshake, or nobody is served in time.
async fn still_there(stream: TcpStream) -> io::Result<TcpStream> {
    if stream.ready(Interest::READABLE).await?.is_read_closed() {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    Ok(stream)
}

/// A socket that was accepted, before it is judged.
struct Arrived {
    transport: Transport,
    tls: Option<Arc<ServerConfig>>,
    at: Instant,
    /// Its place in the order of opening.
    serial: u64,
}

impl Arrived {
    /// Reads for whom the balancer came, and goes on as with anybody else.
    async fn behind_balancer(
        self,
        edge: Arc<Edge>,
        mut stream: TcpStream,
        balancer: SocketAddr,
        balancers: Balancers,
    ) {
        let deadline = self.at + Duration::from_millis(edge.config().handshake_timeout_ms);
        let header = proxy::client_address(&mut stream, balancer, &balancers);
        let failed = match Box::pin(timeout_at(deadline, header)).await {
            Ok(Ok(client)) => {
                tracing::trace!(%client, %balancer, "a balancer brings a connection");
                return self.let_in(&edge, stream, client.ip()).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(%balancer, %error, "a balancer's connection is refused");
                Handshake::Transport
            }
            Err(_) => Handshake::Timeout,
        };
        edge.metrics.edge.handshakes.of(failed).increment(1);
    }

    /// Judges it by the client's address, and starts its task or turns it away.
    async fn let_in(self, edge: &Arc<Edge>, stream: TcpStream, client: IpAddr) {
        let Self { transport, tls, at, serial } = self;
        let address = edge.gate.address(client);
        let Some(share) = edge.handshake_share(address) else {
            return edge.note_refused(Refused::AddressHandshakes);
        };
        let admission = match edge.admit(address, dice(serial)) {
            Ok(admission) => admission,
            Err(refusal) => {
                edge.turn_away(stream, transport, tls, refusal, share);
                if edge.gate.is_hearing_many() {
                    yield_now().await;
                }
                return;
            }
        };
        // Those who come next wait in the kernel's backlog: it costs them no retry.
        let handshaking = Handshaking::new(edge, edge.gate.places.wait().await, share);
        let network = edge.advisor.at_address(client);
        let accepted = Accepted { transport, at, admission, handshaking, serial, network };
        accepted.start(stream, tls);
    }
}

impl Accepted {
    /// Starts the task of the socket; a kind of task each, so that none is larger than it needs.
    fn start(self, stream: TcpStream, tls: Option<Arc<ServerConfig>>) {
        let bytes_max = self.handshaking.edge.config().packet_bytes_max;
        match (self.transport, tls) {
            (Transport::Tcp, None) => {
                start(Life::new(self, std::future::ready(Ok(stream))));
            }
            (Transport::WebSocket, None) => {
                start(Life::new(self, websocket::accept(stream, bytes_max)));
            }
            (Transport::Tcp | Transport::Tls, Some(tls)) => {
                let edge = self.handshaking.edge.clone();
                start(Life::new(self, async move { edge.accept_tls(stream, tls).await }));
            }
            (Transport::WebSocket, Some(tls)) => {
                let edge = self.handshaking.edge.clone();
                start(Life::new(self, async move {
                    let stream = edge.accept_tls(stream, tls).await?;
                    websocket::accept(stream, bytes_max).await
                }));
            }
            (Transport::Tls, None) => {
                unreachable!("the composition root gives TLS its configuration")
            }
            (Transport::Https, _) => unreachable!("a visit has no socket"),
        }
    }
}

fn start<S: Carrier>(life: Life<S>) {
    drop(tasks::spawn("connection", life));
}

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// After a socket for which too few files are left: the loop turns some hundreds of them away
/// in a second, which costs next to nothing.
const FILES_PAUSE: Duration = Duration::from_millis(1);
/// For the CONNECT of somebody who is refused, and the answer.
const HEARING_WAIT: Duration = Duration::from_secs(2);
