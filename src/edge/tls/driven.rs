//! TLS as rustls drives it: the handshake, and all of TLS 1.2.

use std::{io, sync::Arc};

use rustls::{
    ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus},
};

use super::{Held, RECORD_BYTES, Sink};

/// A connection of rustls without its buffers.
pub(super) struct Driven(pub(super) UnbufferedServerConnection);

impl Driven {
    pub(super) fn new(config: Arc<ServerConfig>) -> io::Result<Self> {
        UnbufferedServerConnection::new(config).map(Self).map_err(io::Error::other)
    }

    /// Takes whole records in. Gives how many bytes they are. After an error the peer is told why.
    pub(super) fn open(
        &mut self,
        records: &mut [u8],
        sink: &mut Sink<'_, '_>,
    ) -> io::Result<usize> {
        let mut at = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.0.process_tls_records(&mut records[at..]);
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
            self.0.process_tls_records(&mut []).state
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
            match self.0.process_tls_records(&mut []).state.map_err(io::Error::other)? {
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
            self.0.process_tls_records(&mut []).state
        {
            let mut notice = [0; NOTICE_BYTES];
            let bytes = traffic.queue_close_notify(&mut notice).map_err(exhausted)?;
            outgoing.extend_from_slice(&notice[..bytes]);
        }
        Ok(())
    }
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
