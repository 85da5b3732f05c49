//! Packets that come too fast end their connection.

use carillon_wire::mqtt::Packet;

use super::Connection;
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
            self.pay(Cost::IGNORED, out);
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
