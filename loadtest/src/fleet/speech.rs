//! What a device says first, and what it makes of each packet.

use anyhow::bail;

use super::frames::{self, Asked};
use super::seals::Keys;
use super::{Fleet, Slot};
use crate::clock;
use crate::mqtt::{self, Connect, Incoming};
use crate::order::{Report, Speech};

impl Fleet {
    /// CONNECT and, without waiting, what follows it.
    pub(super) fn greeting(&mut self, at: u32) -> anyhow::Result<Vec<u8>> {
        let number = self.setup.first + at as usize * self.setup.step;
        let now_s = self.now_s();
        let slot = &mut self.slots[at as usize];
        slot.sent_s = now_s;
        let (version, keep_alive_s) = (self.setup.version, self.setup.keep_alive_s);
        let mut out = Vec::with_capacity(256);
        if let Speech::Broker { topic, qos } = &self.setup.speech {
            let client_id = &topic.client_id(number);
            mqtt::connect(Connect { version, client_id, user: None, keep_alive_s }, &mut out);
            mqtt::subscribe(version, &topic.name(number), *qos, &mut out);
            return Ok(out);
        }
        let device = self.credentials.device(at as usize);
        let (client_id, user) = (device.device_id, Some((device.device_id, device.secret)));
        mqtt::connect(Connect { version, client_id, user, keep_alive_s }, &mut out);
        match self.setup.speech {
            Speech::Frames { .. } => {
                mqtt::publish(version, UP, 1, &frames::resume(&slot.places)?, &mut out);
            }
            Speech::Plain { .. } | Speech::Broker { .. } => {
                mqtt::subscribe(version, "push", 1, &mut out);
            }
        }
        Ok(out)
    }

    pub(super) fn on_packet(&mut self, at: u32, incoming: Incoming<'_>) -> anyhow::Result<()> {
        match incoming {
            Incoming::ConnAck { code: 0, .. } => {
                let since_us = self.since_us(at);
                if let Some(opening) = &mut self.opening {
                    opening.outcome.connack.add(since_us);
                }
            }
            Incoming::ConnAck { code, retry_after_ms } => {
                self.advice.extend(retry_after_ms.map(|after_ms| (at, after_ms)));
                bail!("CONNECT was refused with {code:#x}")
            }
            Incoming::SubAck(0..=2) => self.live(at),
            Incoming::SubAck(code) => bail!("SUBSCRIBE was refused with {code:#x}"),
            Incoming::Publish { packet_id, payload } => {
                if packet_id != 0 {
                    mqtt::puback(packet_id, &mut self.acks);
                }
                self.on_publish(at, payload)?;
            }
            Incoming::PubAck { code: 0x80.., .. } => bail!("a frame was refused"),
            Incoming::PubAck { .. } | Incoming::PingResp => {}
            Incoming::Disconnect(code) => bail!("the server said DISCONNECT {code:#x}"),
        }
        Ok(())
    }

    fn on_publish(&mut self, at: u32, payload: &[u8]) -> anyhow::Result<()> {
        let now_us = clock::unix_us();
        let (inbox, reports) = (&mut self.inbox, &mut self.reports);
        let mut on_message = |payload: &[u8]| {
            if let Some(inbox) = inbox
                && let Some(n) = inbox.take(at, payload, now_us)
            {
                reports.push(Report::Fanned { n });
            }
        };
        if !matches!(self.setup.speech, Speech::Frames { .. }) {
            on_message(payload);
            return Ok(());
        }
        let Slot { places, keys, .. } = &mut self.slots[at as usize];
        match frames::take(payload, places, keys.as_deref(), &mut on_message)? {
            Asked::Nothing => {}
            Asked::Resumed => match &self.setup.seal {
                Some(by) if keys.as_ref().is_none_or(|keys| !keys.is_agreed()) => {
                    let new = Keys::new()?;
                    let mut out = Vec::new();
                    mqtt::publish(self.setup.version, UP, 3, &new.register(by)?, &mut out);
                    *keys = Some(Box::new(new));
                    self.write(at, &out)?;
                }
                Some(_) | None => self.live(at),
            },
            Asked::Registered(regid) => {
                if let (Some(by), Some(keys)) = (&self.setup.seal, keys) {
                    keys.agree(by, regid)?;
                }
                self.live(at);
            }
            Asked::Positions => {
                if let Some(opening) = &mut self.opening {
                    opening.outcome.asked_positions += 1;
                }
                let mut out = Vec::new();
                mqtt::publish(self.setup.version, UP, 2, &frames::no_positions()?, &mut out);
                self.write(at, &out)?;
            }
            Asked::ComeBack(after_ms) => {
                self.advice.insert(at, after_ms);
            }
        }
        Ok(())
    }
}

const UP: &str = "up";
