//! What the devices of one worker received, held against what was sent to them.

use std::collections::{HashMap, HashSet};

use anyhow::ensure;
use serde::Deserialize;

use crate::order::{Choice, Tally, Watch};

/// What a load message carries: its number and when it was sent, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Stamp {
    pub n: u32,
    pub t: u64,
}

/// See the module.
pub struct Inbox {
    kind: Kind,
    tally: Tally,
    /// Devices of this worker: the first one's number, and the step.
    first: usize,
    step: usize,
}

enum Kind {
    Fanout { fan: Fan, devices: usize },
    Unicast { choice: Choice, log: Vec<(u32, u32)> },
}

struct Fan {
    messages: u32,
    /// A bit for each device and message.
    seen: Vec<u64>,
    /// How many devices have each message.
    counts: Vec<u32>,
}

impl Inbox {
    pub fn new(watch: Watch, devices: usize, first: usize, step: usize) -> Self {
        let mut tally = Tally::default();
        let kind = match watch {
            Watch::Fanout { messages } => {
                tally.last_of_us = vec![0; messages as usize];
                let seen = vec![0; (devices * messages as usize).div_ceil(64)];
                let fan = Fan { messages, seen, counts: vec![0; messages as usize] };
                Kind::Fanout { fan, devices }
            }
            Watch::Unicast(choice) => Kind::Unicast { choice, log: Vec::new() },
        };
        Self { kind, tally, first, step: step.max(1) }
    }

    /// One message for one device; the number of a fan-out's message that all devices have now.
    pub fn take(&mut self, device: u32, payload: &[u8], now_us: u64) -> Option<u32> {
        let Ok(stamp) = serde_json::from_slice::<Stamp>(payload) else {
            self.tally.strange += 1;
            return None;
        };
        if let Kind::Unicast { choice, .. } = &self.kind
            && stamp.n < choice.from
        {
            return None;
        }
        self.tally.delivered += 1;
        self.tally.latency.add(now_us.saturating_sub(stamp.t));
        self.tally.last_us = self.tally.last_us.max(now_us);
        match &mut self.kind {
            Kind::Unicast { choice, log } => {
                log.push((device, stamp.n - choice.from));
                None
            }
            Kind::Fanout { fan, devices } => {
                if stamp.n >= fan.messages {
                    self.tally.strange += 1;
                    return None;
                }
                let bit = device as usize * fan.messages as usize + stamp.n as usize;
                let Some(word) = fan.seen.get_mut(bit / 64) else {
                    self.tally.strange += 1;
                    return None;
                };
                if *word >> (bit % 64) & 1 == 1 {
                    self.tally.doubled += 1;
                    return None;
                }
                *word |= 1 << (bit % 64);
                let n = stamp.n as usize;
                self.tally.last_of_us[n] = self.tally.last_of_us[n].max(now_us);
                fan.counts[n] += 1;
                (fan.counts[n] as usize == *devices).then_some(stamp.n)
            }
        }
    }

    pub fn delivered(&self) -> u64 {
        self.tally.delivered
    }

    /// The judgement. Devices beyond those that were open are nobody's loss.
    pub fn tally(self, devices: usize) -> anyhow::Result<Tally> {
        let mut tally = self.tally;
        match self.kind {
            Kind::Fanout { fan, .. } => {
                let had: u64 = fan.seen.iter().map(|word| u64::from(word.count_ones())).sum();
                tally.lost = (devices as u64 * u64::from(fan.messages)).saturating_sub(had);
            }
            Kind::Unicast { choice, log } => {
                ensure!(choice.devices > 0, "nobody to send to");
                judge(&choice, log, self.first, self.step, &mut tally);
            }
        }
        Ok(tally)
    }
}

fn judge(choice: &Choice, log: Vec<(u32, u32)>, first: usize, step: usize, tally: &mut Tally) {
    let mut owed: HashMap<u32, HashSet<u32>> = HashMap::new();
    for n in 0..choice.sends {
        for device in choice.devices(n) {
            if device % step == first {
                owed.entry((device / step) as u32).or_default().insert(n);
            }
        }
    }
    let mut seen = HashSet::with_capacity(log.len());
    for (device, n) in log {
        let is_owed = owed.get(&device).is_some_and(|owed| owed.contains(&n));
        tally.strange += u64::from(!is_owed);
        tally.doubled += u64::from(!seen.insert((device, n)));
    }
    for (device, owed) in owed {
        tally.lost += owed.iter().filter(|n| !seen.contains(&(device, **n))).count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(n: u32) -> Vec<u8> {
        format!(r#"{{"n":{n},"t":1,"pad":"xx"}}"#).into_bytes()
    }

    #[test]
    fn losses_doubles_and_strangers_of_a_unicast_are_counted() {
        let choice = Choice { seed: 9, batch: 3, sends: 4, devices: 5, from: 0 };
        let run = |take: &dyn Fn(&mut Inbox)| {
            let mut inbox = Inbox::new(Watch::Unicast(choice), 5, 0, 1);
            take(&mut inbox);
            let tally = inbox.tally(5).unwrap();
            (tally.lost, tally.doubled, tally.strange)
        };
        let all = run(&|inbox| {
            for n in 0..4 {
                for device in choice.devices(n) {
                    inbox.take(device as u32, &payload(n), 2);
                }
            }
        });
        assert_eq!(all, (0, 0, 0));
        let bad = run(&|inbox| {
            let first = choice.devices(0);
            let stranger = (0..5).find(|device| !first.contains(device)).unwrap();
            for device in [first[0], first[0], stranger] {
                inbox.take(device as u32, &payload(0), 2);
            }
        });
        assert_eq!(bad, (11, 1, 1));
    }

    #[test]
    fn a_fan_out_says_when_all_have_a_message() {
        let mut inbox = Inbox::new(Watch::Fanout { messages: 2 }, 2, 0, 1);
        assert_eq!(inbox.take(0, &payload(1), 5), None);
        assert_eq!(inbox.take(0, &payload(1), 6), None);
        assert_eq!(inbox.take(1, &payload(1), 9), Some(1));
        assert_eq!(inbox.take(1, &payload(7), 9), None);
        let tally = inbox.tally(2).unwrap();
        assert_eq!((tally.lost, tally.doubled, tally.strange), (2, 1, 1));
        assert_eq!(tally.last_of_us, [0, 9]);
        assert_eq!(tally.latency.percentiles().unwrap().p50_us, 5);
    }
}
