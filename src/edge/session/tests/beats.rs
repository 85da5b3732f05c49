//! Heartbeats: gaps that the gateway sees, reports, and lost nudges.

use carillon_wire::{frame, idl};

use super::*;

/// What a step asks to be done for the advisor.
fn noted(rig: &mut Rig, input: Input) -> Vec<Effect> {
    let tag = |_: &QueueId, position: Position| position.seq.0.to_be_bytes();
    let (bounds, now_s) = (rig.bounds.clone(), rig.now_s);
    let cx = Context {
        bounds: &bounds,
        now_s,
        unix_ms: 10_000,
        dice: 7,
        farewell: None,
        tag: &tag,
        totals: &|_| None,
        is_held: &|_| false,
    };
    rig.session.step(&cx, input, &mut rig.out);
    let effects = rig.out.effects.drain(..);
    effects.filter(|e| matches!(e, Effect::Idle(_) | Effect::Reported(_))).collect()
}

fn survived(gap_s: u16) -> Effect {
    Effect::Idle(Report { survived_s: Some(gap_s), died_s: None })
}

fn died(gap_s: u16) -> Effect {
    Effect::Idle(Report { survived_s: None, died_s: Some(gap_s) })
}

fn ping() -> Input {
    Input::Packet(Packet::PingReq)
}

fn plain(qos: Qos) -> Rig {
    let mut rig = Rig::with(Connect { keep_alive_s: 300, ..Connect::default() });
    rig.subscribe(&[("push", qos)], &[registration(1, "demo", &[])]);
    rig.read();
    rig
}

fn report(network: &str, survived_s: Option<i32>, died_s: Option<i32>) -> Input {
    let report = idl::HeartbeatReport { network: network.into(), survived_s, died_s };
    let up = idl::Up { heartbeat: Some(report), request: Some(9), ..frame::empty_up() };
    let mut payload = Vec::new();
    frame::encode_up(&up, &mut payload).unwrap();
    let (topic, qos) = ("up".into(), Qos::AtMostOnce);
    let payload = payload.into();
    Input::Packet(Packet::Publish(Publish { topic, qos, payload, ..Publish::default() }))
}

fn downs(rig: &mut Rig) -> Vec<idl::Down> {
    publishes(rig.read()).iter().map(|p| frame::decode_down(&p.payload).unwrap()).collect()
}

#[test]
fn a_packet_behind_silence_shows_that_the_gap_survived() {
    let mut rig = plain(Qos::AtLeastOnce);
    rig.now_s = 29;
    assert_eq!(noted(&mut rig, ping()), [], "every network survives that");
    rig.now_s = 29 + 290;
    assert_eq!(noted(&mut rig, ping()), [survived(290)]);
}

#[test]
fn a_takeover_or_an_end_behind_the_keep_alive_shows_that_the_gap_died() {
    for (reasons, silence_s, expected) in [
        (Reasons::TAKEN_OVER, 300, vec![]),
        (Reasons::TAKEN_OVER, 301, vec![died(300)]),
        (Reasons::TICK, 451, vec![died(300)]),
        (Reasons::DRAIN, 451, vec![]),
    ] {
        let mut rig = plain(Qos::AtLeastOnce);
        rig.now_s = silence_s;
        assert_eq!(noted(&mut rig, Input::Nudged(reasons)), expected, "{silence_s}");
        assert!(rig.out.close.is_some());
    }
}

#[test]
fn silence_of_a_client_that_acknowledges_nothing_shows_nothing() {
    let mut rig = plain(Qos::AtMostOnce);
    rig.now_s = 290;
    assert_eq!(noted(&mut rig, ping()), [], "the gateway may have spoken meanwhile");
    rig.now_s = 1_000;
    assert_eq!(noted(&mut rig, Input::Nudged(Reasons::TICK)), []);
}

#[test]
fn a_report_is_a_call_and_its_answer_a_result_and_advice() {
    let mut rig = Rig::with(Connect { keep_alive_s: 300, ..Connect::default() });
    assert_eq!(noted(&mut rig, report("cell:1", Some(300), None)), []);
    let Some(Call::Report(ticket, network, gaps)) = rig.out.call.take() else { panic!("a call") };
    assert_eq!((network.as_str(), gaps.survived_s, gaps.died_s), ("cell:1", Some(300), None));
    rig.input(Input::Answer(Answer::Advised(ticket, Some(1_000))));
    let [result, advice] = &downs(&mut rig)[..] else { panic!("two frames") };
    let result = result.result.as_ref().unwrap();
    assert_eq!((result.request, result.code), (9, idl::ResultCode::OK));
    let advice = advice.advice.as_ref().unwrap();
    assert_eq!(advice.heartbeat_s, Some(300), "the keep-alive is the ceiling");
    assert_eq!((advice.reconnect_after_ms, &advice.server), (None, &None));
    rig.now_s = 290;
    assert_eq!(noted(&mut rig, ping()), [], "who reports is not observed besides");
}

#[test]
fn a_bad_report_is_refused_and_one_a_minute_is_heard() {
    let mut rig = Rig::with(Connect { keep_alive_s: 300, ..Connect::default() });
    let long = "x".repeat(65);
    for bad in [
        report("", None, None),
        report(&long, None, None),
        report("a\nb", None, None),
        report("a", Some(0), None),
        report("a", Some(-1), None),
        report("a", Some(301), None),
        report("a", None, Some(i32::MAX)),
    ] {
        let invalid = Effect::Reported(ReportResult::Invalid);
        assert_eq!(noted(&mut rig, bad), [invalid]);
        assert!(rig.out.call.is_none());
        let code = downs(&mut rig)[0].result.as_ref().unwrap().code;
        assert_eq!(code, idl::ResultCode::INVALID);
    }
    for (now_s, is_heard) in [(70_000, true), (70_059, false), (70_060, true)] {
        rig.now_s = now_s;
        let effects = noted(&mut rig, report(&long[1..], None, Some(1)));
        assert_eq!(rig.out.call.take().is_some(), is_heard, "at {now_s}");
        if !is_heard {
            assert_eq!(effects, [Effect::Reported(ReportResult::TooFrequent)]);
            let code = downs(&mut rig)[0].result.as_ref().unwrap().code;
            assert_eq!(code, idl::ResultCode::LIMIT);
        }
    }
}

#[test]
fn a_lost_nudge_is_repaired_by_the_next_ping() {
    for frames in [false, true] {
        let mut rig = Rig::v5();
        let registrations = [registration(1, "demo", &[])];
        match frames {
            false => assert_eq!(rig.subscribe(&[("push", Qos::AtLeastOnce)], &registrations), [1]),
            true => super::frames::resume(&mut rig, &registrations),
        }
        rig.pump();
        let entry = Entry { position: at(1), at_ms: 1_001, body: message("unheard") };
        rig.queues.entry(own(1).id()).or_default().push(Arc::new(entry));
        assert_eq!(publishes(rig.pump()).len(), 0, "nobody nudged");
        rig.packet(Packet::PingReq);
        assert_eq!(publishes(rig.pump()).len(), 1, "the ping looked");
    }
}
