//! The client's side of MQTT over WebSocket, which never waits: it asks for the upgrade, holds what is
//! written until that is granted, and takes data out of its frames in the reader's buffer.

use std::io::{self, ErrorKind, Read, Write};

/// See the module. Both buffers are empty while nothing waits.
pub struct WebSocket {
    /// The beginning of the answer; `None` when the upgrade is granted.
    answer: Option<Vec<u8>>,
    /// Goes to the socket as soon as it takes it.
    out: Vec<u8>,
    /// Frames for when the upgrade is granted.
    held: Vec<u8>,
    frames: Frames,
}

/// Where in the server's frames the reader is.
#[derive(Default)]
struct Frames {
    /// The head of the next frame, as far as it has come.
    head: [u8; HEAD_MAX],
    length: usize,
    /// Of the payload of this one.
    left: u64,
    is_data: bool,
    is_closed: bool,
}

impl WebSocket {
    /// Of a connection that begins.
    pub fn new() -> Self {
        Self {
            answer: Some(Vec::new()),
            out: REQUEST.as_bytes().to_vec(),
            held: Vec::new(),
            frames: Frames::default(),
        }
    }

    /// As `Read::read`, of the data.
    pub fn read(&mut self, stream: &mut (impl Read + Write), room: &mut [u8]) -> io::Result<usize> {
        while !self.frames.is_closed {
            let read = stream.read(room)?;
            if read == 0 {
                break;
            }
            let raw = match &mut self.answer {
                None => read,
                Some(answer) => {
                    answer.extend_from_slice(&room[..read]);
                    let Some(end) = end_of(answer)? else { continue };
                    let raw = answer.len() - end;
                    // What came behind the answer came with this read.
                    room[..raw].copy_from_slice(&answer[end..]);
                    (self.answer, self.out) = (None, std::mem::take(&mut self.held));
                    self.flush(stream)?;
                    raw
                }
            };
            let data = self.frames.data_in(&mut room[..raw])?;
            if data > 0 {
                return Ok(data);
            }
        }
        Ok(0)
    }

    /// Takes all bytes, as one frame. [`WebSocket::flush`] sends what the socket did not take.
    pub fn write(&mut self, stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
        let out = if self.answer.is_some() { &mut self.held } else { &mut self.out };
        frame(bytes, out);
        self.flush(stream)
    }

    /// Sends what waits.
    pub fn flush(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while !self.out.is_empty() {
            match stream.write(&self.out) {
                Ok(written) => drop(self.out.drain(..written)),
                Err(error) if super::line::would_wait(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.out = Vec::new();
        Ok(())
    }
}

/// Where the server's answer ends, if all of it is here.
fn end_of(answer: &[u8]) -> io::Result<Option<usize>> {
    const GRANTED: &[u8] = b"HTTP/1.1 101 ";
    const END: &[u8] = b"\r\n\r\n";
    let known = answer.len().min(GRANTED.len());
    let end = answer.windows(END.len()).position(|some| some == END).map(|at| at + END.len());
    if answer[..known] != GRANTED[..known] || (end.is_none() && answer.len() > ANSWER_BYTES_MAX) {
        return Err(broken("the server does not speak MQTT over WebSocket here"));
    }
    Ok(end)
}

/// A masked binary frame, as RFC 6455 asks of clients.
fn frame(bytes: &[u8], out: &mut Vec<u8>) {
    const BINARY: u8 = 0x82;
    const MASKED: u8 = 0x80;
    const MASK: [u8; 4] = [0x5A, 0xC3, 0x17, 0x8E];
    out.push(BINARY);
    match bytes.len() {
        length @ 0..126 => out.push(MASKED | length as u8),
        length @ 126..=0xFFFF => {
            out.push(MASKED | SHORT);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(MASKED | LONG);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(bytes.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

impl Frames {
    /// Moves the data of these bytes to their beginning, and says how much it is.
    fn data_in(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (mut at, mut data) = (0, 0);
        while at < bytes.len() && !self.is_closed {
            if self.left == 0 {
                self.head[self.length] = bytes[at];
                self.length += 1;
                at += 1;
                self.begin()?;
                continue;
            }
            let some = self.left.min((bytes.len() - at) as u64) as usize;
            if self.is_data {
                bytes.copy_within(at..at + some, data);
                data += some;
            }
            at += some;
            self.left -= some as u64;
        }
        Ok(data)
    }

    /// Begins a frame whose head is complete.
    fn begin(&mut self) -> io::Result<()> {
        const CLOSE: u8 = 8;
        let [first, second, ..] = self.head;
        let bytes = match second {
            _ if self.length < 2 => return Ok(()),
            SHORT => 2,
            LONG => 8,
            0..126 => 0,
            0x80.. => return Err(broken("the server masks what it sends")),
        };
        if self.length < 2 + bytes {
            return Ok(());
        }
        let length =
            self.head[2..2 + bytes].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        self.left = if bytes == 0 { second.into() } else { length };
        self.is_data = first & 0x0F <= 2;
        self.is_closed = first & 0x0F == CLOSE;
        self.length = 0;
        Ok(())
    }
}

fn broken(text: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}

const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: bG9hZCBnZW5lcmF0b3IhIQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: mqtt\r\n\r\n";
const ANSWER_BYTES_MAX: usize = 4 << 10;
/// A length of two bytes follows.
const SHORT: u8 = 126;
/// A length of eight.
const LONG: u8 = 127;
const HEAD_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what is to come in pieces; what is written goes nowhere.
    struct Script(Vec<Vec<u8>>, Vec<u8>);

    impl Read for Script {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let piece = self.0.remove(0);
            room[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const GRANTED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";

    /// All the data that comes in these pieces; what was sent.
    fn hear(pieces: Vec<Vec<u8>>) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let mut script = Script(pieces, Vec::new());
        let mut socket = WebSocket::new();
        socket.write(&mut script, b"hello")?;
        assert_eq!(script.1, REQUEST.as_bytes(), "nothing goes before the upgrade is granted");
        let (mut data, mut room) = (Vec::new(), vec![0; 1 << 17]);
        loop {
            match socket.read(&mut script, &mut room) {
                Ok(0) => return Ok((data, script.1)),
                Ok(read) => data.extend_from_slice(&room[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok((data, script.1)),
                Err(error) => return Err(error),
            }
        }
    }

    #[test]
    fn data_is_the_same_wherever_it_is_cut() {
        let large = vec![7; 70_000];
        let frames = [
            GRANTED,
            &[0x82, 3, 1, 2, 3],
            &[0x89, 2, 0, 0],
            &[0x82, SHORT, 0, 200],
            &[5; 200],
            &[0x02, LONG, 0, 0, 0, 0, 0, 1, 0x11, 0x70],
            &large,
            &[0x80, 1, 9],
        ];
        let all = frames.concat();
        let wanted = [&[1, 2, 3][..], &[5; 200], &large, &[9]].concat();
        for cut in (1..400).chain([all.len() - 1]) {
            let (head, tail) = all.split_at(cut);
            let (data, sent) = hear(vec![head.to_vec(), tail.to_vec()]).unwrap();
            assert!(data == wanted, "{} bytes, cut at {cut}", data.len());
            assert_eq!(sent.len(), REQUEST.len() + 2 + 4 + 5);
        }
    }

    #[test]
    fn what_is_written_can_be_unmasked() {
        for length in [0, 5, 125, 126, 65_535, 65_536] {
            let (bytes, mut out) = (vec![3; length], Vec::new());
            frame(&bytes, &mut out);
            let (head, payload) = out.split_at(out.len() - length);
            let mask = head.last_chunk::<4>().unwrap();
            let plain: Vec<u8> =
                payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            assert_eq!(plain, bytes);
            assert_eq!(head[0], 0x82);
        }
    }

    #[test]
    fn a_close_is_the_end_and_a_refusal_an_error() {
        let closed = [GRANTED, &[0x88, 0], &[0x82, 1, 1]].concat();
        assert!(hear(vec![closed]).unwrap().0.is_empty());
        let refused = hear(vec![b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()]);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
