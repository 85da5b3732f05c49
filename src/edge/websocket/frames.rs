//! WebSocket frames (RFC 6455) as a server reads and writes them. Pure.
//!
//! Data is taken out of its frames where it lies, so that nothing of it is held, however long
//! a frame is and in whatever pieces it comes.

use bytes::{BufMut, BytesMut};

/// Takes the frames of a client apart.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The longest payload of a frame.
    payload_bytes_max: u64,
    head: Head,
    /// Of the frame that has begun.
    kind: Option<Kind>,
    mask: [u8; 4],
    /// Of its payload.
    left: u64,
    /// A message has begun whose last frame has not.
    is_in_message: bool,
    /// The payload of a control frame, as far as it has come.
    control: Vec<u8>,
    /// What the client is owed: the answer to its newest ping, or to its end.
    answer: BytesMut,
    /// Frames without data since somebody asked.
    pub(super) extras: u32,
    /// The client has said that nothing more will come.
    pub(super) is_over: bool,
}

/// The first bytes of a frame.
#[derive(Debug, Default)]
struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Ping,
    Pong,
    Close,
}

/// Bytes that break the protocol, or text, which MQTT does not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(&'static str);

impl Reader {
    pub(super) fn new(payload_bytes_max: u64) -> Self {
        Self { payload_bytes_max, ..Self::default() }
    }

    /// Takes what has come, and moves what is data in it to its front. Returns how much that is.
    ///
    /// # Errors
    /// [`Broken`]: nothing more can be read.
    pub(super) fn open(&mut self, bytes: &mut [u8]) -> Result<usize, Broken> {
        let (mut from, mut into) = (0, 0);
        while from < bytes.len() && !self.is_over {
            let Some(kind) = self.kind else {
                self.head.push(bytes[from])?;
                from += 1;
                if self.head.is_whole() {
                    self.begin()?;
                }
                continue;
            };
            let rest = bytes.len() - from;
            let count = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
            let part = &mut bytes[from..from + count];
            for (byte, mask) in part.iter_mut().zip(self.mask.iter().cycle()) {
                *byte ^= mask;
            }
            self.mask.rotate_left(count % 4);
            match kind {
                Kind::Data => {
                    bytes.copy_within(from..from + count, into);
                    into += count;
                }
                Kind::Ping | Kind::Close => self.control.extend_from_slice(part),
                Kind::Pong => {}
            }
            from += count;
            self.left -= count as u64;
            if self.left == 0 {
                self.end(kind);
            }
        }
        Ok(into)
    }

    /// What is to be written to the client besides data, whole frames. Empty: nothing. A client
    /// that pings and does not read is owed one answer, whatever it asks.
    pub(super) fn take_answer(&mut self) -> BytesMut {
        std::mem::take(&mut self.answer)
    }

    pub(super) fn owes_answer(&self) -> bool {
        !self.answer.is_empty()
    }

    /// A head has come whole.
    fn begin(&mut self) -> Result<(), Broken> {
        let head = std::mem::take(&mut self.head);
        let [first, ..] = head.bytes;
        let is_last = first & FINAL != 0;
        let kind = match first & OPCODE {
            CONTINUATION if !self.is_in_message => {
                return Err(Broken("a message has no beginning"));
            }
            BINARY if self.is_in_message => return Err(Broken("a message has no end")),
            CONTINUATION | BINARY => {
                self.is_in_message = !is_last;
                Kind::Data
            }
            CLOSE => Kind::Close,
            PING => Kind::Ping,
            PONG => Kind::Pong,
            TEXT => return Err(Broken("a text message")),
            _ => return Err(Broken("an unknown kind of frame")),
        };
        self.left = head.payload_bytes();
        if self.left > self.payload_bytes_max {
            return Err(Broken("a frame is too long"));
        }
        if kind != Kind::Data && (!is_last || self.left > CONTROL_BYTES_MAX) {
            return Err(Broken("a control frame is too long"));
        }
        if kind != Kind::Close && (kind != Kind::Data || self.left == 0) {
            self.extras = self.extras.saturating_add(1);
        }
        self.mask = head.mask();
        if self.left == 0 {
            self.end(kind);
        } else {
            self.kind = Some(kind);
        }
        Ok(())
    }

    /// A frame has come whole.
    fn end(&mut self, kind: Kind) {
        self.kind = None;
        let payload = std::mem::take(&mut self.control);
        match kind {
            Kind::Data | Kind::Pong => {}
            Kind::Ping => self.answer = control_frame(PONG, &payload),
            Kind::Close => {
                self.is_over = true;
                // Its code, if it has one, and not its words.
                self.answer = control_frame(CLOSE, payload.get(..2).unwrap_or_default());
            }
        }
    }
}

impl Head {
    fn push(&mut self, byte: u8) -> Result<(), Broken> {
        self.bytes[self.count] = byte;
        self.count += 1;
        let [first, second, ..] = self.bytes;
        match self.count {
            1 if first & RESERVED != 0 => Err(Broken("a reserved bit is set")),
            2 if second & MASKED == 0 => Err(Broken("a frame is not masked")),
            _ => Ok(()),
        }
    }

    fn is_whole(&self) -> bool {
        self.count >= 2 && self.count == 2 + self.length_bytes() + 4
    }

    /// Bytes of its length, behind the first two.
    fn length_bytes(&self) -> usize {
        match self.bytes[1] & LENGTH {
            LENGTH_2 => 2,
            LENGTH_8 => 8,
            _ => 0,
        }
    }

    fn payload_bytes(&self) -> u64 {
        match self.length_bytes() {
            0 => u64::from(self.bytes[1] & LENGTH),
            count => {
                let bytes = &self.bytes[2..2 + count];
                bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))
            }
        }
    }

    fn mask(&self) -> [u8; 4] {
        let at = 2 + self.length_bytes();
        [self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]]
    }
}

/// A message of one frame.
pub(super) fn binary(data: &[u8]) -> BytesMut {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES_MAX + data.len());
    frame.put_u8(FINAL | BINARY);
    match (u8::try_from(data.len()), u16::try_from(data.len())) {
        (Ok(length @ ..LENGTH_2), _) => frame.put_u8(length),
        (_, Ok(length)) => {
            frame.put_u8(LENGTH_2);
            frame.put_u16(length);
        }
        (_, Err(_)) => {
            frame.put_u8(LENGTH_8);
            frame.put_u64(data.len() as u64);
        }
    }
    frame.extend_from_slice(data);
    frame
}

/// The end of what we say.
pub(super) fn close() -> BytesMut {
    control_frame(CLOSE, &[])
}

/// The payload is at most as long as that of a client's.
fn control_frame(opcode: u8, payload: &[u8]) -> BytesMut {
    let mut frame = BytesMut::with_capacity(2 + payload.len());
    frame.put_u8(FINAL | opcode);
    frame.put_u8(payload.len() as u8);
    frame.extend_from_slice(payload);
    frame
}

const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0F;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7F;
/// Two more bytes have the length.
const LENGTH_2: u8 = 126;
/// Eight more bytes.
const LENGTH_8: u8 = 127;
const CONTROL_BYTES_MAX: u64 = 125;
const HEAD_BYTES_MAX: usize = 14;

#[cfg(test)]
mod tests;
