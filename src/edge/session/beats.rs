//! Idle gaps: what a device reports of them, and what its connection shows by itself.

use carillon_wire::{idl, mqtt::Qos};

use super::{
    Call, Effect, Mode, Output, Session, down,
    frames::{Frames, Ticket},
};
use crate::edge::advisor::{Report, ReportResult};

/// How long a device that has just reported is not heard, in seconds.
pub const REPORT_EVERY_S: u16 = 60;

impl Session {
    /// A packet is about to be counted: the gap before it has survived. What the device
    /// reports itself is not counted twice.
    pub(super) fn note_gap(&self, now_s: u64, out: &mut Output) {
        let gap_s = now_s.saturating_sub(self.last_rx_s);
        if gap_s >= GAP_MIN_S && self.is_observed() {
            let survived_s = u16::try_from(gap_s).ok();
            out.effects.push(Effect::Idle(Report { survived_s, died_s: None }));
        }
    }

    /// The connection is given up. A device that was silent for longer than its keep-alive
    /// has spoken into a connection that did not live any more, or is gone.
    pub(super) fn note_silence(&self, now_s: u64, out: &mut Output) {
        let keep_alive_s = self.terms.keep_alive_s();
        let silence_s = now_s.saturating_sub(self.last_rx_s);
        if silence_s > u64::from(keep_alive_s) && self.is_observed() {
            let died_s = Some(keep_alive_s);
            out.effects.push(Effect::Idle(Report { survived_s: None, died_s }));
        }
    }

    /// Whether silence of the device is silence of both sides, and it does not report itself.
    fn is_observed(&self) -> bool {
        match &self.mode {
            Mode::Undecided => true,
            Mode::Plain(plain) => plain.is_acknowledging(),
            Mode::Frames(frames) => frames.reported == 0 && frames.qos() == Some(Qos::AtLeastOnce),
        }
    }

    /// A device tells how gaps fared.
    pub(super) fn reported(
        &mut self,
        ticket: Ticket,
        report: idl::HeartbeatReport,
        out: &mut Output,
    ) {
        let Mode::Frames(frames) = &mut self.mode else { return };
        let judged = judge(&report, self.terms.keep_alive_s());
        let (code, text, result) = match (judged, frames.may_report(self.last_rx_s)) {
            (Ok(gaps), true) => {
                frames.note_report(self.last_rx_s);
                out.call = Some(Call::Report(ticket, report.network, gaps));
                return;
            }
            (Ok(_), false) => {
                (idl::ResultCode::LIMIT, "one report a minute", ReportResult::TooFrequent)
            }
            (Err(text), _) => (idl::ResultCode::INVALID, text, ReportResult::Invalid),
        };
        out.effects.push(Effect::Reported(result));
        self.reply(down::refused(ticket.request, code, text), Some(ticket), out);
    }

    /// The answer to a report, and the advice that follows from it.
    pub(super) fn advised(&mut self, ticket: Ticket, advised_s: Option<u16>, out: &mut Output) {
        self.reply(down::result(ticket.request, &Ok(None)), Some(ticket), out);
        if let Some(advised_s) = advised_s {
            let advised_s = advised_s.min(self.terms.keep_alive_s());
            self.reply(down::heartbeat_advice(advised_s), None, out);
        }
    }
}

impl Frames {
    fn may_report(&self, now_s: u64) -> bool {
        self.reported == 0 || stamp(now_s).wrapping_sub(self.reported) >= REPORT_EVERY_S
    }

    fn note_report(&mut self, now_s: u64) {
        self.reported = stamp(now_s);
    }
}

/// Seconds in two bytes, never 0: what is a multiple of 18 hours old may seem new.
fn stamp(now_s: u64) -> u16 {
    (now_s as u16).max(1)
}

/// A report whose values can be; otherwise what is wrong.
fn judge(report: &idl::HeartbeatReport, keep_alive_s: u16) -> Result<Report, &'static str> {
    let bytes = report.network.len();
    if !(1..=NETWORK_BYTES_MAX).contains(&bytes) || report.network.chars().any(char::is_control) {
        return Err("network: 1 to 64 bytes without control characters");
    }
    let gap = |gap_s: Option<i32>| match gap_s.map(u16::try_from) {
        None => Ok(None),
        Some(Ok(gap_s)) if (1..=keep_alive_s).contains(&gap_s) => Ok(Some(gap_s)),
        Some(_) => Err("a gap is at least 1 s and at most the keep-alive"),
    };
    Ok(Report { survived_s: gap(report.survived_s)?, died_s: gap(report.died_s)? })
}

/// Shorter gaps say nothing: every network survives them.
const GAP_MIN_S: u64 = 30;
/// As the IDL says.
const NETWORK_BYTES_MAX: usize = 64;
