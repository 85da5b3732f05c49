//! One thread, one epoll, and for each connection its descriptor and one byte. A fan-out is one `send()` a subscriber.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::{Heard, answer};
use crate::mqtt;

/// Until the process ends.
pub(super) fn serve(listener: net::TcpListener) -> anyhow::Result<()> {
    let mut listener = TcpListener::from_std(listener);
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut server = Bare {
        poll,
        listener,
        streams: Vec::new(),
        qos: Vec::new(),
        free: Vec::new(),
        unwritten: HashMap::new(),
        room: vec![0; ROOM_BYTES],
        packet_id: 0,
    };
    let mut events = Events::with_capacity(1024);
    loop {
        match server.poll.poll(&mut events, None) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.token() {
                LISTENER => server.accept(),
                Token(at) => server.turn(at),
            }
        }
    }
}

struct Bare {
    poll: Poll,
    listener: TcpListener,
    streams: Vec<Option<TcpStream>>,
    /// Of the subscription; [`NONE`] without one.
    qos: Vec<u8>,
    free: Vec<usize>,
    /// Of the few whose socket is full.
    unwritten: HashMap<usize, Vec<u8>>,
    room: Vec<u8>,
    packet_id: u16,
}

impl Bare {
    fn accept(&mut self) {
        loop {
            let Ok((mut stream, _)) = self.listener.accept() else { return };
            let at = self.free.pop().unwrap_or_else(|| {
                self.streams.push(None);
                self.qos.push(NONE);
                self.streams.len() - 1
            });
            // What cannot be set up is closed.
            let both = Interest::READABLE | Interest::WRITABLE;
            let is_ready = stream.set_nodelay(true).is_ok()
                && self.poll.registry().register(&mut stream, Token(at), both).is_ok();
            if is_ready {
                self.streams[at] = Some(stream);
            } else {
                self.free.push(at);
            }
        }
    }

    fn turn(&mut self, at: usize) {
        if let Some(waiting) = self.unwritten.remove(&at) {
            self.write(at, &waiting);
        }
        let mut room = std::mem::take(&mut self.room);
        while let Some(stream) = self.streams.get_mut(at).and_then(Option::as_mut) {
            match stream.read(&mut room) {
                Ok(read) if read > 0 => {
                    self.take(at, &room[..read]);
                    if read < room.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => {
                    self.close(at);
                    break;
                }
            }
        }
        self.room = room;
    }

    /// A packet that is cut in two does not occur on loopback with what the generator sends.
    fn take(&mut self, at: usize, bytes: &[u8]) {
        let (mut done, mut out) = (0, Vec::new());
        while let Ok(Some((first, body, length))) = mqtt::whole(&bytes[done..]) {
            done += length;
            match answer(first, body, &mut out) {
                Heard::Nothing => {}
                Heard::Subscribed(qos) => self.qos[at] = qos,
                Heard::Published(topic, payload) => self.fan_out(topic, payload),
                Heard::Ended => return self.close(at),
            }
        }
        if !out.is_empty() {
            self.write(at, &out);
        }
    }

    /// Encoded once for each QoS; all subscribers get the same packet id.
    fn fan_out(&mut self, topic: &[u8], payload: &[u8]) {
        self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
        let topic = std::str::from_utf8(&topic[2..]).unwrap_or_default();
        let (mut packets, ids) = ([Vec::new(), Vec::new()], [0, self.packet_id]);
        for (packet, id) in packets.iter_mut().zip(ids) {
            mqtt::publish(mqtt::Version::V311, topic, id, payload, packet);
        }
        for at in 0..self.qos.len() {
            if let Some(packet) = packets.get(usize::from(self.qos[at])) {
                self.write(at, packet);
            }
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        if let Some(waiting) = self.unwritten.get_mut(&at) {
            waiting.extend_from_slice(bytes);
            return;
        }
        let Some(stream) = &mut self.streams[at] else { return };
        let written = match stream.write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return self.close(at),
        };
        if written < bytes.len() {
            self.unwritten.insert(at, bytes[written..].to_vec());
        }
    }

    fn close(&mut self, at: usize) {
        if self.streams[at].take().is_some() {
            self.qos[at] = NONE;
            self.unwritten.remove(&at);
            self.free.push(at);
        }
    }
}

const LISTENER: Token = Token(usize::MAX - 1);
const NONE: u8 = u8::MAX;
const ROOM_BYTES: usize = 64 << 10;
