//! Packets that come too fast end their connection.

use carillon_wire::mqtt::Packet;

use super::{Carrier, CloseReason, Connection};
pub(super) use crate::edge::session::rate::Pace;
use crate::edge::session::{Input, Output, rate::Cost};

impl<S> Connection<S> {
    /// Lets the session handle a packet, unless too much was said lately.
    pub(super) fn packet(&mut self, packet: Packet, out: &mut Output) {
        let ignored = out.ignored.len();
        if !self.pay(Cost::of(&packet), out) {
            return;
        }
        self.step(Input::Packet(packet), out);
        if out.ignored.len() > ignored {
            self.pay(Cost::PACKET, out);
        }
    }

    fn pay(&mut self, cost: Cost, out: &mut Output) -> bool {
        if cost.is_free() {
            return true;
        }
        let edge = &self.device.arrival.edge;
        let paid = self.pace.take(&edge.limits.load(), cost, edge.now_ticks());
        if let Err(reason) = paid {
            self.look(out, |session, _, out| session.close(reason, out));
        }
        paid.is_ok()
    }
}

impl<S: Carrier> Connection<S> {
    /// What came besides MQTT costs what packets do, one by one.
    pub(super) fn pay_extras(&mut self) -> Result<(), CloseReason> {
        let extras = self.stream.take_extras();
        if extras == 0 {
            return Ok(());
        }
        let edge = &self.device.arrival.edge;
        let (limits, now) = (edge.limits.load(), edge.now_ticks());
        (0..extras).try_for_each(|_| self.pace.take(&limits, Cost::PACKET, now))
    }
}
