//! The last words of a session whose node goes away.

use carillon_wire::mqtt::{Disconnect, Packet, Version, reason};

use super::{CloseReason, Context, Mode, Output, Session, down};

impl Session {
    /// The connection ends; the device is told when and where to come back, as far as its
    /// version can be told.
    pub(super) fn part(&mut self, cx: &Context<'_>, out: &mut Output) {
        if out.close.is_some() {
            return;
        }
        let server = cx.farewell.and_then(|farewell| farewell.server.clone());
        if matches!(self.mode, Mode::Frames(_)) {
            let within_ms = cx.farewell.map_or(0, |farewell| farewell.reconnect_ms);
            let after_ms = i64::from(cx.dice % within_ms.max(1));
            self.reply(down::advice(after_ms, server.clone()), None, out);
        }
        out.close = Some(CloseReason::Draining);
        if self.terms.version == Version::V5 {
            out.packet(Version::V5, &Packet::Disconnect(self.goodbye(server)));
        }
    }

    /// The reference is left out where the device takes no packet of that size.
    fn goodbye(&self, server: Option<String>) -> Disconnect {
        let fits = |server: &String| HEAD_BYTES + server.len() <= self.max_packet_bytes();
        match server.filter(fits) {
            Some(server) => Disconnect {
                reason: reason::USE_ANOTHER_SERVER,
                server_reference: Some(server),
                ..Disconnect::default()
            },
            None => Disconnect { reason: reason::SERVER_SHUTTING_DOWN, ..Disconnect::default() },
        }
    }

    fn max_packet_bytes(&self) -> usize {
        usize::try_from(self.terms.max_packet_bytes).unwrap_or(usize::MAX)
    }
}

/// What DISCONNECT has besides its Server Reference, at most.
const HEAD_BYTES: usize = 16;
