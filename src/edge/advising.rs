//! Where connections and the advisor meet: what devices report and show goes in, advice comes out.

use super::{
    Edge,
    advisor::{Advice, Report, ReportResult, network::Heard},
    arrival::Arrival,
    session::handshake::Granted,
};

impl Edge {
    /// A gap fared like this on a connection whose device does not report itself.
    pub(super) fn saw(&self, arrival: &Arrival, report: Report) {
        if let Some(key) = arrival.network.network() {
            self.advisor.hear(key, &arrival.device(), report, self.now_s());
            self.metrics.edge.heartbeat_reports.of(ReportResult::Seen).increment(1);
        }
    }

    /// A device has reported; what it is advised.
    pub(super) fn heard(&self, arrival: &Arrival, network: &str, report: Report) -> Option<u16> {
        let (key, device, now_s) = (self.advisor.named(network), arrival.device(), self.now_s());
        let result = match self.advisor.hear(key, &device, report, now_s) {
            Heard::Taken => ReportResult::Taken,
            Heard::Aside => ReportResult::Aside,
        };
        self.metrics.edge.heartbeat_reports.of(result).increment(1);
        let advised_s = self.advisor.advice(key, &device, now_s)?;
        self.note_advice(Advice::Frame, advised_s);
        Some(advised_s)
    }

    /// Lowers the keep-alive of a device that asks for one which its network does not survive.
    pub(super) fn cap(&self, granted: &mut Granted, arrival: &Arrival) {
        let asked_s = granted.terms.keep_alive_s();
        let Some(key) = arrival.network.network() else { return };
        let cap_s = self.advisor.cap(key, &arrival.device(), asked_s, self.now_s());
        let cap_s = cap_s.map(|cap_s| cap_s.max(self.config().keep_alive_min_s));
        if let Some(cap_s) = cap_s.filter(|cap_s| granted.lower_keep_alive(*cap_s)) {
            self.note_advice(Advice::KeepAlive, cap_s);
        }
    }

    fn note_advice(&self, kind: Advice, advised_s: u16) {
        self.metrics.edge.heartbeat_advice.of(kind).increment(1);
        self.metrics.edge.heartbeat_advised_seconds.record(f64::from(advised_s));
    }
}
