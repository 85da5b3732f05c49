//! SUBSCRIBE and UNSUBSCRIBE: they decide how a connection is used.

use carillon_wire::mqtt::{Packet, SubAck, Subscribe, Unsubscribe, reason};

use super::{
    Call, Mode, Output, Session,
    feeds::{Begin, Use},
    filter::{self, Filter, Wanted},
    frames::Frames,
    plain::Plain,
};

impl Session {
    pub(super) fn subscribe(&mut self, subscribe: Subscribe, out: &mut Output) {
        let Subscribe { packet_id, filters, subscription_id } = subscribe;
        if subscription_id.is_some() {
            let reasons = vec![reason::SUBSCRIPTION_IDS_NOT_SUPPORTED; filters.len()];
            return self.suback(packet_id, reasons, out);
        }
        let parsed = filters.into_iter().enumerate().map(|(i, (text, qos))| {
            let filter =
                if i < FILTERS_MAX { filter::parse(&text) } else { Err(reason::QUOTA_EXCEEDED) };
            filter.map(|filter| Wanted { filter, text, qos })
        });
        let parsed: Vec<Result<Wanted, u8>> = parsed.collect();
        self.decide(parsed.iter().flatten().next());
        match &mut self.mode {
            Mode::Undecided => {
                let refused = parsed
                    .into_iter()
                    .map(|wanted| wanted.err().unwrap_or(reason::TOPIC_FILTER_INVALID));
                self.suback(packet_id, refused.collect(), out);
            }
            Mode::Frames(frames) => {
                let reasons = parsed.into_iter().map(|wanted| frames.subscribe(wanted)).collect();
                self.suback(packet_id, reasons, out);
            }
            Mode::Plain(_) => {
                out.call = Some(Call::Subscribe(
                    packet_id,
                    parsed.into_iter().map(filter::only_plain).collect(),
                ));
            }
        }
    }

    /// The first filter that is one of ours decides how the connection is used.
    fn decide(&mut self, first: Option<&Wanted>) {
        if let (Mode::Undecided, Some(wanted)) = (&self.mode, first) {
            self.mode = match wanted.filter {
                Filter::Down => Mode::Frames(Frames::default()),
                Filter::Push(_) | Filter::Topic(..) => Mode::Plain(Plain::default()),
            };
        }
    }

    pub(super) fn unsubscribe(&mut self, unsubscribe: Unsubscribe, out: &mut Output) {
        let Unsubscribe { packet_id, filters } = unsubscribe;
        let count = filters.len();
        match &mut self.mode {
            Mode::Undecided => self.unsuback(packet_id, vec![reason::NO_SUBSCRIPTION; count], out),
            Mode::Frames(frames) => {
                let reasons = filters.iter().map(|text| frames.unsubscribe(text)).collect();
                let is_over = !frames.is_subscribed();
                if is_over {
                    let all = |_: &_, _: &_| Use::Off;
                    self.feeds.merge(Vec::new(), &all, Begin::Reset, &mut self.window, out);
                }
                self.unsuback(packet_id, reasons, out);
            }
            Mode::Plain(plain) => {
                let results = filters.iter().take(FILTERS_MAX).map(|text| plain.take(text));
                let mut results: Vec<_> = results.collect();
                results.resize(count, Err(reason::QUOTA_EXCEEDED));
                out.call = Some(Call::Unsubscribe(packet_id, results));
            }
        }
    }

    pub(super) fn suback(&self, packet_id: u16, reasons: Vec<u8>, out: &mut Output) {
        out.packet(self.terms.version, &Packet::SubAck(SubAck { packet_id, reasons }));
    }

    pub(super) fn unsuback(&self, packet_id: u16, reasons: Vec<u8>, out: &mut Output) {
        out.packet(self.terms.version, &Packet::UnsubAck(SubAck { packet_id, reasons }));
    }
}

/// Filters of one SUBSCRIBE or UNSUBSCRIBE that are looked at; further ones are refused.
const FILTERS_MAX: usize = 64;
