//! The sending side of a plain broker: MQTT clients that publish, each on a blocking socket and a thread of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::clock;
use crate::mqtt::{self, Connect, Incoming, Version};
use crate::order::{Choice, TopicOf};

/// One connected publisher of QoS 1.
pub struct Publisher {
    stream: TcpStream,
    version: Version,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// Sent and not acknowledged.
    in_flight: usize,
    packet_id: u16,
}

/// How a publisher of a closed loop works.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Messages that may be unacknowledged.
    pub window: usize,
    /// Of a payload.
    pub bytes: usize,
}

impl Publisher {
    pub fn connect(target: SocketAddr, version: Version, number: usize) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(target).context("a publisher cannot connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut publisher = Self {
            stream,
            version,
            inbox: Vec::new(),
            outbox: Vec::new(),
            in_flight: 0,
            packet_id: 0,
        };
        let client_id = &format!("load-publisher-{number}");
        let connect = Connect { version, client_id, user: None, keep_alive_s: KEEP_ALIVE_S };
        mqtt::connect(connect, &mut publisher.outbox);
        publisher.flush()?;
        let mut is_connected = false;
        while !is_connected {
            is_connected = publisher.read()?;
        }
        Ok(publisher)
    }

    /// Sends one message and waits until the broker has it.
    pub fn publish(&mut self, topic: &str, payload: &str) -> anyhow::Result<()> {
        self.queue(topic, payload);
        self.flush()?;
        self.drain(0)
    }

    /// Sends every `step`-th message of a unicast run with `window` of them unacknowledged.
    pub fn publish_all(
        &mut self,
        choice: &Choice,
        first: u32,
        step: u32,
        pace: Pace,
    ) -> anyhow::Result<()> {
        for n in (first..choice.sends).step_by(step as usize) {
            if self.in_flight >= pace.window.max(1) {
                self.flush()?;
                self.drain(pace.window.max(1) - 1)?;
            }
            for device in choice.devices(n) {
                self.queue(&TopicOf::Each.name(device), &payload(n, pace.bytes));
            }
        }
        self.flush()?;
        self.drain(0)
    }

    /// Sends all messages of a unicast run, `rate` of them a second, whatever comes back.
    pub fn publish_at_rate(
        mut self,
        choice: &Choice,
        rate: f64,
        bytes: usize,
    ) -> anyhow::Result<()> {
        let stream = self.stream.try_clone()?;
        let writer = Self { stream, inbox: Vec::new(), outbox: Vec::new(), ..self };
        let total = choice.sends as usize;
        let choice = *choice;
        let sent = std::thread::spawn(move || writer.write_at_rate(&choice, rate, bytes));
        self.in_flight = total;
        self.drain(0)?;
        sent.join().map_err(|_| anyhow::anyhow!("the publisher has panicked"))?
    }

    fn write_at_rate(mut self, choice: &Choice, rate: f64, bytes: usize) -> anyhow::Result<()> {
        let start = Instant::now();
        for n in 0..choice.sends {
            wait_until(start + Duration::from_secs_f64(f64::from(n) / rate));
            for device in choice.devices(n) {
                self.queue(&TopicOf::Each.name(device), &payload(n, bytes));
            }
            self.flush()?;
        }
        Ok(())
    }

    fn queue(&mut self, topic: &str, payload: &str) {
        self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
        let bytes = payload.as_bytes();
        mqtt::publish(self.version, topic, self.packet_id, bytes, &mut self.outbox);
        self.in_flight += 1;
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.outbox).context("a publisher cannot write")?;
        self.outbox.clear();
        Ok(())
    }

    /// Reads until at most so many are unacknowledged.
    fn drain(&mut self, in_flight_max: usize) -> anyhow::Result<()> {
        while self.in_flight > in_flight_max {
            self.read()?;
        }
        Ok(())
    }

    /// Reads once; whether CONNACK was in it.
    fn read(&mut self) -> anyhow::Result<bool> {
        let mut room = [0; 16 << 10];
        let read = self.stream.read(&mut room).context("a publisher hears nothing")?;
        ensure!(read > 0, "the broker closed a publisher's connection");
        self.inbox.extend_from_slice(&room[..read]);
        let (mut done, mut is_connected) = (0, false);
        while let Some((incoming, length)) = mqtt::parse(self.version, &self.inbox[done..])? {
            done += length;
            match incoming {
                Incoming::ConnAck { code: 0, .. } => is_connected = true,
                Incoming::PubAck { code: 0..0x80, .. } => {
                    self.in_flight = self.in_flight.saturating_sub(1);
                }
                Incoming::PingResp => {}
                other => bail!("a publisher was answered {other:?}"),
            }
        }
        self.inbox.drain(..done);
        Ok(is_connected)
    }
}

/// A message's text: its number, the time, and what fills it up to `bytes`.
pub fn payload(n: u32, bytes: usize) -> String {
    payload_at(n, clock::unix_us(), bytes)
}

/// The same with a time of ours, in microseconds since 1970.
pub fn payload_at(n: u32, at_us: u64, bytes: usize) -> String {
    let mut text = format!(r#"{{"n":{n},"t":{at_us},"p":""#);
    let fill = bytes.saturating_sub(text.len() + 2);
    text.extend(std::iter::repeat_n('x', fill));
    text.push_str("\"}");
    text
}

/// Sleeps; a thread is more exact than a timer wheel of whole milliseconds.
pub fn wait_until(at: Instant) {
    let wait = at.saturating_duration_since(Instant::now());
    if !wait.is_zero() {
        std::thread::sleep(wait);
    }
}

/// More than a run takes; some brokers refuse 0.
const KEEP_ALIVE_S: u16 = 3600;
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_the_size_that_was_asked_for() {
        let text = payload(7, 100);
        assert_eq!(text.len(), 100);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["n"], 7);
    }
}
