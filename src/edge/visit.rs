//! A visit: a device without a connection brings its frames and takes away what they lead to.
//!
//! It is let in as a connection is, by the same bounds and the same look at its credentials, and
//! counts as one while it lasts. But it has no stream, and it takes nothing over: a connection
//! of the same device goes on.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use carillon_wire::mqtt::Decoder;
use tokio::time::Instant;

use super::{
    Admission, Edge,
    advisor::AddressKey,
    arrival::Arrival,
    close::CloseReason,
    connection::{Connection, Device},
    gate::{Address, Refusal, Refused},
    greeting,
    listener::dice,
    session::{Session, handshake::Terms},
};
use crate::base::metrics::{Handshake, Transport};

/// A device that was let in.
pub struct Visit {
    arrival: Arrival,
    admission: Admission,
    began: Instant,
}

/// Why a visit is not let in, or ends without an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An unknown device and a wrong secret are the same.
    #[error("unknown device or wrong secret")]
    Credentials,
    /// The address or the device asks for too much at once.
    #[error("too much at once")]
    TooMuch {
        /// To be waited.
        after: Duration,
    },
    /// The node has no room.
    #[error("the gateway has no room for more devices")]
    Full {
        /// To be waited.
        after: Duration,
    },
    /// The node drains, or a call failed.
    #[error("the gateway cannot do this now")]
    Unavailable,
}

impl Error {
    fn of(Refusal { why, .. }: Refusal, after: Duration) -> Self {
        match why {
            Refused::AddressRate
            | Refused::AddressHandshakes
            | Refused::AddressConnections
            | Refused::AddressAuth => Self::TooMuch { after },
            Refused::Connections | Refused::AcceptRate | Refused::Memory | Refused::Files => {
                Self::Full { after }
            }
            Refused::Draining => Self::Unavailable,
        }
    }
}

impl Edge {
    /// Lets a device in by its credentials. An address unknown to the caller has no bound.
    ///
    /// # Errors
    /// [`Error`].
    pub fn visit(
        self: &Arc<Self>,
        peer: Option<IpAddr>,
        device_id: &str,
        secret: &[u8],
    ) -> Result<Visit, Error> {
        let (began, serial) = (Instant::now(), self.next_serial());
        let address = peer.map_or(Address::UNLIMITED, |peer| self.gate.address(peer));
        let admission = self.admit(address, dice(serial)).map_err(|refusal| {
            self.note_refused(refusal.why);
            Error::of(refusal, self.gate.advice(refusal))
        })?;
        let device = greeting::identify(self, device_id, secret).map_err(|refusal| {
            self.metrics.edge.handshakes.of(refusal.result).increment(1);
            if refusal.result != Handshake::BadCredentials {
                return Error::Unavailable;
            }
            self.gate.note_auth_failure(address);
            Error::Credentials
        })?;
        let network = peer.map_or(AddressKey::default(), |ip| self.advisor.at_address(ip));
        self.metrics.edge.handshakes.of(Handshake::Accepted).increment(1);
        Ok(Visit { arrival: Arrival::passing(self, device, network, serial), admission, began })
    }
}

impl Visit {
    /// Does what the frames ask for, in their order. Gives the answers, and then what is due to
    /// the device, up to a bound.
    ///
    /// # Errors
    /// [`Error::TooMuch`], [`Error::Unavailable`]: what was done before stays done.
    pub async fn exchange(self, ups: Vec<Bytes>) -> Result<Vec<Bytes>, Error> {
        let Self { arrival, admission, began } = self;
        let edge = arrival.edge.clone();
        let at_ms = edge.elapsed_ms().saturating_sub(began.elapsed().as_millis() as u64);
        let device = Device { arrival, transport: Transport::Https, at_ms, _admission: admission };
        let session = Session::new(Terms::of_visit(&edge.config()), edge.now_s());
        let bytes_in = ups.iter().map(|up| up.len() as u64).sum();
        let connection = Connection::new(device, (), session, Decoder::server(0), bytes_in);
        connection.exchange(ups).await.map_err(|reason| match reason {
            CloseReason::PacketRate | CloseReason::RequestRate => {
                Error::TooMuch { after: RETRY_PACE }
            }
            // Nothing else ends it but a failed call.
            _ => Error::Unavailable,
        })
    }
}

/// When who said too much at once may come again.
const RETRY_PACE: Duration = Duration::from_secs(5);
