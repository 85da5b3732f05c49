//! Servers that do nothing but answer: the physical limit of this machine, measured in the same run.
//!
//! They speak just enough MQTT 3.1.1 for the generator, check nothing, keep nothing, and are no brokers: whatever is
//! published goes to every subscriber. Each runs as a process of its own, so that its cost is read like a server's.

mod bare;
mod tasks;

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::compare::{self, Plan};
use crate::mqtt;
use crate::peers::Kind;
use crate::report::Output;

/// Measure servers that do nothing else: the physical limit of this machine.
#[derive(Debug, Args)]
pub struct Floor {
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    output: Output,
}

impl Floor {
    pub async fn run(self) -> anyhow::Result<()> {
        let kinds = [Kind::FloorMio, Kind::FloorTokio];
        let columns = compare::measure_all(&kinds, &self.plan, None, &self.output).await?;
        let result = json!({ "kind": "floor", "results": columns });
        self.output.tell(&[compare::table("floors", &columns)], &result)
    }
}

/// A bare server, until stdin ends.
#[derive(Debug, Args)]
pub struct Serve {
    kind: Bare,
    /// Where to listen; the address is printed
    #[arg(default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bare {
    /// One thread, one epoll, one descriptor a connection
    Mio,
    /// A tokio task for each connection, no buffer held
    Tokio,
    /// The rumqttd broker, embedded
    Rumqttd,
}

impl Serve {
    pub fn run(self) -> anyhow::Result<()> {
        if self.kind == Bare::Rumqttd {
            return crate::peers::rumqttd::serve(self.listen);
        }
        let listener = listen(self.listen).context("cannot listen")?;
        println!("{}", listener.local_addr()?);
        end_with_stdin()?;
        match self.kind {
            Bare::Mio => bare::serve(listener),
            Bare::Tokio | Bare::Rumqttd => tasks::serve(listener),
        }
    }
}

/// The process ends when its parent does, or wants it to.
pub fn end_with_stdin() -> io::Result<()> {
    let wait = || {
        // Data is of no interest, and neither is how it ended.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(wait).map(drop)
}

/// With a backlog for a storm.
fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What a bare server makes of a packet.
#[derive(Debug, PartialEq, Eq)]
enum Heard<'a> {
    Nothing,
    /// With this QoS.
    Subscribed(u8),
    /// To everybody: the topic with its length, and the payload.
    Published(&'a [u8], &'a [u8]),
    Ended,
}

/// Appends the answer to one packet.
fn answer<'a>(first: u8, body: &'a [u8], out: &mut Vec<u8>) -> Heard<'a> {
    match first >> 4 {
        1 => out.extend_from_slice(&[0x20, 2, 0, 0]),
        8 => {
            let [high, low, .., qos] = body else { return Heard::Ended };
            let qos = *qos & 1;
            out.extend_from_slice(&[0x90, 3, *high, *low, qos]);
            return Heard::Subscribed(qos);
        }
        3 => {
            let Some(length) = body.first_chunk::<2>() else { return Heard::Ended };
            let topic_ends = 2 + usize::from(u16::from_be_bytes(*length));
            let Some((topic, mut payload)) = body.split_at_checked(topic_ends) else {
                return Heard::Ended;
            };
            if first & 2 != 0 {
                let [high, low, rest @ ..] = payload else { return Heard::Ended };
                mqtt::puback(u16::from_be_bytes([*high, *low]), out);
                payload = rest;
            }
            return Heard::Published(topic, payload);
        }
        12 => out.extend_from_slice(&[0xD0, 0]),
        14 => return Heard::Ended,
        _ => {}
    }
    Heard::Nothing
}

const BACKLOG: i32 = 32_768;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::{Connect, Incoming, Version};

    #[test]
    fn a_bare_server_answers_what_the_generator_says() {
        let version = Version::V311;
        let mut said = Vec::new();
        let connect = Connect { version, client_id: "d", user: None, keep_alive_s: 9 };
        mqtt::connect(connect, &mut said);
        mqtt::subscribe(version, "load/all", 1, &mut said);
        mqtt::publish(version, "load/all", 7, b"text", &mut said);
        let (mut out, mut heard, mut at) = (Vec::new(), Vec::new(), 0);
        while let Some((first, body, length)) = mqtt::whole(&said[at..]).unwrap() {
            heard.push(answer(first, body, &mut out));
            at += length;
        }
        let published = Heard::Published(b"\0\x08load/all", b"text");
        assert_eq!(heard, [Heard::Nothing, Heard::Subscribed(1), published]);
        let (first, length) = mqtt::parse(version, &out).unwrap().unwrap();
        assert_eq!(first, Incoming::ConnAck { code: 0, retry_after_ms: None });
        assert_eq!(out[length..], [0x90, 3, 0, 1, 1, 0x40, 2, 0, 7]);
    }
}
