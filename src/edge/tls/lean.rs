//! TLS 1.3 after the handshake, in the memory of its keys.
//!
//! rustls shakes hands, then hands over the traffic secrets and keeps the key schedule. Ciphers
//! expanded from a key take some 600 bytes each: they are made for the time of a call, and
//! what stays is the key itself. Records are those of RFC 8446, section 5.

use std::io;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{
    ConnectionTrafficSecrets, SupportedCipherSuite,
    kernel::KernelConnection,
    server::{ServerConnectionData, UnbufferedServerConnection},
};

use super::{HEADER_BYTES, Held, RECORD_BYTES, Sink};

/// One connection's keys.
pub(super) struct Lean {
    schedule: KernelConnection<ServerConnectionData>,
    ours: Way,
    theirs: Way,
    /// Records in a row that brought no data.
    idle_records: u8,
    /// The peer asked for another key of ours. One answer, with our next data, is for all that
    /// ask before: otherwise who asks and never reads would fill memory.
    is_update_owed: bool,
}

/// One direction.
struct Way {
    secrets: ConnectionTrafficSecrets,
    /// Of the next record.
    seq: u64,
}

impl Way {
    fn cipher(&self) -> io::Result<(LessSafeKey, [u8; NONCE_LEN])> {
        let (algorithm, key, iv) = match &self.secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(io::Error::other("a cipher suite that was not offered")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(io::Error::other)?;
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(iv.as_ref());
        for (byte, seq) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.seq.to_be_bytes()) {
            *byte ^= seq;
        }
        Ok((LessSafeKey::new(key), nonce))
    }

    /// Seals one record with content of this kind into `out`. Gives its length.
    fn seal(&mut self, kind: u8, content: &[u8], out: &mut [u8]) -> io::Result<usize> {
        let (inner, length) = (content.len() + 1, content.len() + 1 + TAG_BYTES);
        let [high, low] = u16::try_from(length).map_err(io::Error::other)?.to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let (key, nonce) = self.cipher()?;
        let (start, rest) = out.split_at_mut(HEADER_BYTES);
        start.copy_from_slice(&header);
        rest[..content.len()].copy_from_slice(content);
        rest[content.len()] = kind;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut rest[..inner])
            .map_err(io::Error::other)?;
        self.seq += 1;
        rest[inner..length].copy_from_slice(tag.as_ref());
        Ok(HEADER_BYTES + length)
    }
}

impl Lean {
    /// Takes over from rustls, which has nothing left to send.
    pub(super) fn take_over(tls: UnbufferedServerConnection) -> io::Result<Self> {
        let (secrets, schedule) =
            tls.dangerous_into_kernel_connection().map_err(io::Error::other)?;
        let way = |(seq, secrets)| Way { secrets, seq };
        let (ours, theirs) = (way(secrets.tx), way(secrets.rx));
        Ok(Self { schedule, ours, theirs, idle_records: 0, is_update_owed: false })
    }

    /// Takes whole records in. Gives how many bytes they are. After an error the peer is told why.
    pub(super) fn open(
        &mut self,
        records: &mut [u8],
        sink: &mut Sink<'_, '_>,
    ) -> io::Result<usize> {
        let mut at = 0;
        while !*sink.is_read_closed {
            let Some(header) = records[at..].first_chunk::<HEADER_BYTES>().copied() else { break };
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            let taken = match Self::check(header, length) {
                Ok(()) if records.len() - at < HEADER_BYTES + length => break,
                Ok(()) => {
                    let end = at + HEADER_BYTES + length;
                    self.open_record(header, &mut records[at + HEADER_BYTES..end], sink)
                }
                Err(alert) => Err(alert),
            };
            if let Err(alert) = taken {
                return Err(self.fail(alert, sink));
            }
            at += HEADER_BYTES + length;
        }
        Ok(at)
    }

    /// Says why, where the peer does not know.
    fn fail(&mut self, alert: Alert, sink: &mut Sink<'_, '_>) -> io::Error {
        let Alert(code, text) = alert;
        if code != NO_ALERT {
            // Without an alert the connection ends all the same.
            drop(self.append(ALERT, &[FATAL, code], sink.outgoing()));
        }
        io::Error::new(io::ErrorKind::InvalidData, text)
    }

    fn check(header: [u8; HEADER_BYTES], length: usize) -> Result<(), Alert> {
        match header[0] {
            APPLICATION_DATA if length > SEALED_BYTES_MAX => {
                Err(Alert(RECORD_OVERFLOW, "a TLS record is too long"))
            }
            APPLICATION_DATA => Ok(()),
            _ => Err(Alert(UNEXPECTED_MESSAGE, "a TLS record is not encrypted")),
        }
    }

    fn open_record(
        &mut self,
        header: [u8; HEADER_BYTES],
        sealed: &mut [u8],
        sink: &mut Sink<'_, '_>,
    ) -> Result<(), Alert> {
        let damaged = Alert(BAD_RECORD_MAC, "a TLS record is damaged");
        let (key, nonce) = self.theirs.cipher().map_err(|_| INTERNAL)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let inner = key.open_in_place(nonce, Aad::from(header), sealed).map_err(|_| damaged)?;
        self.theirs.seq += 1;
        let Some(end) = inner.iter().rposition(|byte| *byte != 0) else {
            return Err(Alert(UNEXPECTED_MESSAGE, "a TLS record has no type"));
        };
        if end > RECORD_BYTES {
            return Err(Alert(RECORD_OVERFLOW, "a TLS record is too long"));
        }
        let (content, kind) = (&inner[..end], inner[end]);
        if kind == APPLICATION_DATA && !content.is_empty() {
            self.idle_records = 0;
            sink.plain(content);
            return Ok(());
        }
        self.idle_records += 1;
        if self.idle_records > IDLE_RECORDS_MAX {
            return Err(Alert(UNEXPECTED_MESSAGE, "too many TLS records without data"));
        }
        match (kind, content) {
            (APPLICATION_DATA, _) | (ALERT, [_, USER_CANCELED]) => Ok(()),
            (ALERT, [_, CLOSE_NOTIFY]) => {
                *sink.is_read_closed = true;
                Ok(())
            }
            (ALERT, _) => Err(Alert(NO_ALERT, "the peer ended TLS with an alert")),
            // A key changes between two records, so that nothing follows in this one.
            (HANDSHAKE, [KEY_UPDATE, 0, 0, 1, is_asked @ (0 | 1)]) => {
                self.their_key_changes()?;
                self.is_update_owed |= *is_asked == 1;
                Ok(())
            }
            (HANDSHAKE, [KEY_UPDATE, 0, 0, 1, _]) => {
                Err(Alert(ILLEGAL_PARAMETER, "a TLS key update asks for something unknown"))
            }
            _ => Err(Alert(UNEXPECTED_MESSAGE, "a TLS message that has no place here")),
        }
    }

    fn their_key_changes(&mut self) -> Result<(), Alert> {
        let (seq, secrets) = self.schedule.update_rx_secret().map_err(|_| INTERNAL)?;
        self.theirs = Way { secrets, seq };
        Ok(())
    }

    fn change_our_key(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.append(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
        let (seq, secrets) = self.schedule.update_tx_secret().map_err(io::Error::other)?;
        self.ours = Way { secrets, seq };
        Ok(())
    }

    /// Changes our key if the peer asked, or once it has sealed half of what its suite allows.
    pub(super) fn refresh(&mut self, out: &mut Option<Box<Held>>) -> io::Result<()> {
        let limit = match self.schedule.negotiated_cipher_suite() {
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
        };
        if !std::mem::take(&mut self.is_update_owed) && self.ours.seq < limit / 2 {
            return Ok(());
        }
        self.change_our_key(&mut out.get_or_insert_default().outgoing)
    }

    /// Seals as much of the data as one record takes into `sealed`. Gives how much that is, and
    /// the length of the record.
    pub(super) fn seal(&mut self, data: &[u8], sealed: &mut [u8]) -> io::Result<(usize, usize)> {
        let data = &data[..data.len().min(RECORD_BYTES)];
        Ok((data.len(), self.ours.seal(APPLICATION_DATA, data, sealed)?))
    }

    /// Says that we send nothing more.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.append(ALERT, &[WARNING, CLOSE_NOTIFY], out)
    }

    fn append(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let at = out.len();
        out.resize(at + content.len() + OVERHEAD_BYTES, 0);
        self.ours.seal(kind, content, &mut out[at..])?;
        Ok(())
    }
}

/// What the peer is told, and what the log.
struct Alert(u8, &'static str);

const INTERNAL: Alert = Alert(80, "the TLS library failed");
const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const ILLEGAL_PARAMETER: u8 = 47;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
/// The peer knows.
const NO_ALERT: u8 = u8::MAX;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

// Types of content.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
// A type of handshake message.
const KEY_UPDATE: u8 = 24;

const TAG_BYTES: usize = 16;
/// What a record is longer than its content.
const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + TAG_BYTES;
/// Of a record without its header, at most.
const SEALED_BYTES_MAX: usize = RECORD_BYTES + 256;
/// More records without data, one after the other, are an attack.
const IDLE_RECORDS_MAX: u8 = 32;

#[cfg(test)]
mod tests;
