//! The MQTT decoder of both roles and versions, whole and split anywhere.
//!
//! Input: who reads (1 byte), the largest packet (1), where the stream is cut (2), the stream.

use bytes::{Buf, BytesMut};
use carillon_wire::mqtt::{Connect, Decoder, Error, Packet, Version, encode};

use super::script::Script;

/// What came of a stream.
type Outcome = (Vec<Packet>, Option<Error>, usize);

pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let (reader, bytes_max) = (script.byte() % 5, MAXIMA[script.below(MAXIMA.len())]);
    let cut_by = script.number();
    let stream = script.rest();
    let decoder = decoder(reader, bytes_max);
    let whole = read(decoder.clone(), stream, bytes_max, usize::MAX);
    assert_eq!(whole, read(decoder.clone(), stream, bytes_max, 1), "cut at every byte");
    let step = 1 + usize::from(cut_by) % stream.len().max(1);
    assert_eq!(whole, read(decoder, stream, bytes_max, step), "cut every {step} bytes");
    for packet in &whole.0 {
        comes_back(reader, packet);
    }
}

fn decoder(reader: u8, bytes_max: u32) -> Decoder {
    let connected = |version| {
        let mut decoder = Decoder::server(u32::MAX);
        let connect = Connect { version, client_id: "d".into(), ..Connect::default() };
        let mut bytes = BytesMut::new();
        encode(version, &Packet::Connect(Box::new(connect)), &mut bytes).expect("a CONNECT");
        decoder.decode(&mut bytes).expect("a CONNECT").expect("a whole one");
        decoder.set_max_packet_bytes(bytes_max);
        decoder
    };
    match reader {
        0 => Decoder::server(bytes_max),
        1 => connected(Version::V311),
        2 => connected(Version::V5),
        3 => Decoder::client(Version::V311, bytes_max),
        _ => Decoder::client(Version::V5, bytes_max),
    }
}

/// Reads a stream that comes in pieces of `step` bytes.
fn read(mut decoder: Decoder, stream: &[u8], bytes_max: u32, step: usize) -> Outcome {
    let (mut buf, mut packets) = (BytesMut::new(), Vec::new());
    for piece in stream.chunks(step.min(stream.len()).max(1)) {
        buf.extend_from_slice(piece);
        loop {
            let before = buf.remaining();
            match decoder.decode(&mut buf) {
                Ok(Some(packet)) => {
                    assert!(buf.remaining() < before, "a packet takes bytes");
                    packets.push(packet);
                }
                Ok(None) => {
                    let most = (bytes_max as usize).max(5);
                    assert!(buf.len() <= most, "{} bytes wait, at most {bytes_max}", buf.len());
                    break;
                }
                Err(error) => return (packets, Some(error), 0),
            }
        }
    }
    (packets, None, buf.len())
}

/// What was read can be written, and reads the same.
fn comes_back(reader: u8, packet: &Packet) {
    let version = match (reader, packet) {
        (0, Packet::Connect(connect)) => connect.version,
        (0, _) => return,
        (1 | 3, _) => Version::V311,
        _ => Version::V5,
    };
    let mut bytes = BytesMut::new();
    // A Will and AUTH are read and never written.
    if encode(version, packet, &mut bytes).is_err() {
        return;
    }
    let mut again =
        decoder(if matches!(packet, Packet::Connect(_)) { 0 } else { reader }, u32::MAX);
    let read = again.decode(&mut bytes).expect("what we write can be read");
    assert_eq!(read.as_ref(), Some(packet), "it comes back the same");
    assert!(bytes.is_empty());
}

const MAXIMA: [u32; 4] = [64, 300, 8 << 10, u32::MAX];
