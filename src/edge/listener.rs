//! Accepting sockets: within bounds, and with every handshake under one deadline.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use super::{
    Accepted, Edge, HandshakeShare, Handshaking,
    gate::{Refusal, Refused},
    greeting,
    life::Life,
    tls::TlsStream,
    websocket,
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
        tls: Option<Arc<rustls::ServerConfig>>,
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
            Err(refusal) => {
                self.turn_away(stream, transport, tls, refusal, share);
                if self.gate.is_hearing_many() {
                    yield_now().await;
                }
                return;
            }
        };
        // Those who come next wait in the kernel's backlog: it costs them no retry.
        let handshaking = Handshaking::new(self, self.gate.places.wait().await, share);
        let network = self.advisor.at_address(peer);
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
                start(Life::new(accepted, async move {
                    TlsStream::accept(still_there(stream).await?, tls).await
                }));
            }
            (Transport::WebSocket, Some(tls)) => start(Life::new(accepted, async move {
                let stream = TlsStream::accept(still_there(stream).await?, tls).await?;
                websocket::accept(stream, bytes_max).await
            })),
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
        tls: Option<Arc<rustls::ServerConfig>>,
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

/// A stream whose client has not given up while it waited for its turn: in a storm those who
/// have must not be served a handshake, or nobody is served in time.
async fn still_there(stream: TcpStream) -> io::Result<TcpStream> {
    if stream.ready(Interest::READABLE).await?.is_read_closed() {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    Ok(stream)
}

fn start<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(life: Life<S>) {
    drop(tasks::spawn("connection", life));
}

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// After a socket for which too few files are left: the loop turns some hundreds of them away
/// in a second, which costs next to nothing.
const FILES_PAUSE: Duration = Duration::from_millis(1);
/// For the CONNECT of somebody who is refused, and the answer.
const HEARING_WAIT: Duration = Duration::from_secs(2);
