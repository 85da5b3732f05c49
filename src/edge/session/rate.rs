//! How fast one connection may say things, in eight bytes.

use std::time::Duration;

use carillon_wire::mqtt::Packet;

use crate::{base::gcra::Rate, config, edge::close::CloseReason};

/// The bounds of every connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    packets: Rate,
    requests: Rate,
}

/// What one connection has said lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    packets_paid_at: u32,
    requests_paid_at: u32,
}

impl Limits {
    /// As configured.
    pub fn new(gate: &config::Gate) -> Self {
        let rate = |per_s, burst| Rate::new(per_s, Duration::from_secs(1), burst);
        Self {
            packets: rate(gate.packets_per_s, gate.packets_burst),
            requests: rate(gate.requests_per_s, gate.requests_burst),
        }
    }
}

/// What a packet costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    packets: u32,
    requests: u32,
}

impl Cost {
    /// One packet that asks for nothing, or what counts as one.
    pub const PACKET: Self = Self { packets: 1, requests: 0 };

    /// Whether it need not be counted.
    pub fn is_free(self) -> bool {
        self.packets == 0 && self.requests == 0
    }

    /// Acknowledgements are free: we ourselves say how many there can be.
    pub fn of(packet: &Packet) -> Self {
        let filters = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        match packet {
            Packet::PubAck(_) | Packet::Disconnect(_) => Self { packets: 0, requests: 0 },
            Packet::Publish(_) => Self { packets: 1, requests: 1 },
            Packet::Subscribe(one) => Self { packets: 1, requests: filters(one.filters.len()) },
            Packet::Unsubscribe(one) => Self { packets: 1, requests: filters(one.filters.len()) },
            Packet::PingReq
            | Packet::PubRel(_)
            | Packet::PubRec(_)
            | Packet::PubComp(_)
            | Packet::Auth
            | Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => Self { packets: 1, requests: 0 },
        }
    }
}

impl Pace {
    /// Takes the cost of one packet at the time `now`, in ticks.
    ///
    /// # Errors
    /// Why the connection ends.
    pub fn take(&mut self, limits: &Limits, cost: Cost, now: u32) -> Result<(), CloseReason> {
        let packets = limits.packets.take(self.packets_paid_at, now, cost.packets);
        self.packets_paid_at = packets.map_err(|_| CloseReason::PacketRate)?;
        let requests = limits.requests.take(self.requests_paid_at, now, cost.requests);
        self.requests_paid_at = requests.map_err(|_| CloseReason::RequestRate)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use carillon_wire::mqtt::{Ack, Qos, Subscribe};

    use super::*;

    fn limits() -> Limits {
        let gate = config::Gate {
            packets_per_s: 10,
            packets_burst: 100,
            requests_per_s: 1,
            requests_burst: 20,
            ..config::Gate::default()
        };
        Limits::new(&gate)
    }

    fn said(packet: &Packet, times: u32) -> Result<(), CloseReason> {
        let mut pace = Pace::default();
        (0..times).try_for_each(|_| pace.take(&limits(), Cost::of(packet), 5))
    }

    #[test]
    fn each_kind_has_its_bound_and_acknowledgements_have_none() {
        assert_eq!(said(&Packet::PingReq, 100), Ok(()));
        assert_eq!(said(&Packet::PingReq, 101), Err(CloseReason::PacketRate));
        let subscribe = |count| {
            let filters = vec![("push".to_owned(), Qos::AtLeastOnce); count];
            Packet::Subscribe(Subscribe { packet_id: 1, filters, subscription_id: None })
        };
        assert_eq!(said(&subscribe(5), 4), Ok(()));
        assert_eq!(said(&subscribe(5), 5), Err(CloseReason::RequestRate));
        assert_eq!(said(&subscribe(1_000), 1), Ok(()), "one packet is never too much");
        assert_eq!(said(&Packet::PubAck(Ack { packet_id: 1, reason: 0 }), 10_000), Ok(()));
    }

    #[test]
    fn it_is_small() {
        assert_eq!(size_of::<Pace>(), 8);
    }
}
