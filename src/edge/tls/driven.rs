//! TLS as rustls drives it: the handshake, and all of TLS 1.2.

use std::{io, sync::Arc};

use rustls::{
    ProtocolVersion, ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus},
};

use super::{HEADER_BYTES, Held, RECORD_BYTES, Sink};

/// A connection of rustls without its buffers.
pub(super) struct Driven {
    tls: UnbufferedServerConnection,
    /// Bytes at the front of what is held that rustls has seen: parts of a message.
    seen: usize,
}

impl Driven {
    pub(super) fn new(config: Arc<ServerConfig>) -> io::Result<Self> {
        let tls = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        Ok(Self { tls, seen: 0 })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Hands are shaken, and what follows is for keys alone.
    pub(super) fn is_over(&self) -> bool {
        !self.is_handshaking() && self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    pub(super) fn into_tls(self) -> UnbufferedServerConnection {
        self.tls
    }

    /// Takes whole records in, up to the end of the handshake of TLS 1.3: what comes behind it
    /// may change the keys that are to be handed over. Gives how many bytes are done with, and
    /// wants the others again with what follows. After an error the peer is told why.
    pub(super) fn open(
        &mut self,
        records: &mut [u8],
        sink: &mut Sink<'_, '_>,
    ) -> io::Result<usize> {
        let mut at = 0;
        while !self.is_over() {
            let record = record_bytes(&records[at + self.seen..]);
            // Also of what is not whole, rustls sees whether it can become a record.
            let end = record.map_or(records.len(), |bytes| at + self.seen + bytes);
            let taken = self.open_to(&mut records[at..end], sink)?;
            at += taken;
            if record.is_none() {
                break;
            }
            self.seen = end - at;
        }
        Ok(at)
    }

    /// Until rustls waits for more than these bytes. Gives how many of them are done with.
    fn open_to(&mut self, records: &mut [u8], sink: &mut Sink<'_, '_>) -> io::Result<usize> {
        let mut at = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.tls.process_tls_records(&mut records[at..]);
            let is_done = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(io::Error::other)?;
                        discard += record.discard;
                        sink.plain(record.payload);
                    }
                    false
                }
                Ok(ConnectionState::EncodeTlsData(encode)) => {
                    encode_into(encode, sink.outgoing())?;
                    false
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    false
                }
                Ok(ConnectionState::PeerClosed) => {
                    *sink.is_read_closed = true;
                    false
                }
                Ok(ConnectionState::Closed) => {
                    *sink.is_read_closed = true;
                    true
                }
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => true,
                Ok(_) => return Err(io::Error::other("early data, which was not offered")),
                Err(error) => {
                    self.queue_alert(sink.outgoing());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            at += discard;
            if is_done {
                return Ok(at);
            }
        }
    }

    /// After a failure rustls has an alert for the peer.
    fn queue_alert(&mut self, outgoing: &mut Vec<u8>) {
        while let Ok(ConnectionState::EncodeTlsData(encode)) =
            self.tls.process_tls_records(&mut []).state
        {
            if encode_into(encode, outgoing).is_err() {
                return;
            }
        }
    }

    /// Seals as much as one record takes, behind what rustls itself has to say.
    pub(super) fn seal(
        &mut self,
        data: &[u8],
        sealed: &mut [u8],
        held: &mut Option<Box<Held>>,
    ) -> io::Result<(usize, usize)> {
        let data = &data[..data.len().min(RECORD_BYTES)];
        loop {
            match self.tls.process_tls_records(&mut []).state.map_err(io::Error::other)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let count = traffic.encrypt(data, sealed).map_err(exhausted)?;
                    return Ok((data.len(), count));
                }
                ConnectionState::EncodeTlsData(encode) => {
                    encode_into(encode, &mut held.get_or_insert_default().outgoing)?;
                }
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                // What is to be read says so too.
                ConnectionState::PeerClosed => {}
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Says that we send nothing more.
    pub(super) fn close(&mut self, outgoing: &mut Vec<u8>) -> io::Result<()> {
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
            self.tls.process_tls_records(&mut []).state
        {
            let mut notice = [0; NOTICE_BYTES];
            let bytes = traffic.queue_close_notify(&mut notice).map_err(exhausted)?;
            outgoing.extend_from_slice(&notice[..bytes]);
        }
        Ok(())
    }
}

/// The length of the record at the front, if it is whole.
fn record_bytes(records: &[u8]) -> Option<usize> {
    let header = records.first_chunk::<HEADER_BYTES>()?;
    let bytes = HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]]));
    (bytes <= records.len()).then_some(bytes)
}

fn encode_into(
    mut encode: EncodeTlsData<'_, ServerConnectionData>,
    outgoing: &mut Vec<u8>,
) -> io::Result<()> {
    let at = outgoing.len();
    let required = match encode.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(EncodeError::AlreadyEncoded) | Ok(_) => return Ok(()),
    };
    outgoing.resize(at + required, 0);
    encode.encode(&mut outgoing[at..]).map_err(io::Error::other)?;
    Ok(())
}

fn exhausted(error: EncryptError) -> io::Error {
    io::Error::other(error)
}

/// Room for a close notice.
const NOTICE_BYTES: usize = 128;
