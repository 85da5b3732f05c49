//! The state machine against simulated NATs, and the timer on a paused clock; tests bear the numbers of the specification.

use super::*;

const DAY_S: u64 = 86_400;
const START_S: u64 = 1_700_000_000;

/// A device behind a NAT that forgets flows which are idle for `timeout_s` or longer.
struct Simulation {
    learner: Learner,
    timeout_s: u64,
    now_s: u64,
    beats: u32,
    drops: u32,
    bad_networks: u32,
    /// When the last change of the interval came, since the start.
    settled_after_s: u64,
}

impl Simulation {
    fn new(timeout_s: u64) -> Self {
        let mut learner = Learner::new(Parameters::default(), &[], START_S);
        learner.set_network(Some("cell:1".parse().unwrap()));
        Self::of(learner, timeout_s)
    }

    fn of(mut learner: Learner, timeout_s: u64) -> Self {
        learner.link_up(Duration::from_secs(600), START_S);
        let (now_s, settled_after_s) = (START_S, 0);
        Self { learner, timeout_s, now_s, beats: 0, drops: 0, bad_networks: 0, settled_after_s }
    }

    fn beat(&mut self) {
        let before = self.learner.record().cloned();
        let used = self.learner.interval();
        self.now_s += used.as_secs();
        self.beats += 1;
        if used.as_secs() < self.timeout_s {
            self.learner.survived(used, self.now_s);
        } else {
            self.now_s += 8;
            self.drops += 1;
            let finding = self.learner.failed(used, Lost::Silence, self.now_s);
            self.bad_networks += u32::from(finding == Finding::BadNetwork);
            self.learner.link_up(Duration::from_secs(600), self.now_s);
        }
        let place = |record: Option<Record>| record.map(|r| (r.interval, r.is_settled));
        if place(before) != place(self.learner.record().cloned()) {
            self.settled_after_s = self.now_s - START_S;
        }
    }

    fn run_for(&mut self, seconds: u64) {
        let end_s = self.now_s + seconds;
        while self.now_s < end_s {
            self.beat();
        }
    }

    fn settled_s(&self) -> u64 {
        let record = self.learner.record().unwrap();
        assert!(record.is_settled, "{record:?}");
        record.interval.as_secs()
    }
}

#[test]
fn w7_it_settles_at_the_specified_interval_within_the_specified_drops() {
    println!("timeout  settles at  after    drops  heartbeats in 24 h");
    for (timeout_s, settles_s, drops, within_s) in [
        (200, 150, 6, 1_400),
        (250, 210, 2, 4_300),
        (300, 250, 2, 4_700),
        (420, 370, 2, 9_300),
        (900, 580, 0, 20_400),
    ] {
        let mut simulation = Simulation::new(timeout_s);
        simulation.run_for(DAY_S);
        let (beats, after_s) = (simulation.beats, simulation.settled_after_s);
        println!(
            "{timeout_s:>5} s  {:>8} s  {after_s:>5} s  {:>5}  {beats:>8}",
            simulation.settled_s(),
            simulation.drops
        );
        assert_eq!((simulation.settled_s(), simulation.drops), (settles_s, drops), "T={timeout_s}");
        assert!(after_s <= within_s, "T={timeout_s}: {after_s} s");
    }
}

#[test]
fn w7_a_network_below_the_minimum_is_reported_and_gets_a_minimum_of_its_own() {
    let mut simulation = Simulation::new(130);
    simulation.run_for(DAY_S);
    assert_eq!((simulation.bad_networks, simulation.drops), (2, 12));
    assert_eq!(simulation.settled_s(), 90);
    // Below the floor nothing helps; it is reported again and again.
    let mut simulation = Simulation::new(50);
    simulation.run_for(DAY_S);
    assert_eq!(simulation.drops, simulation.beats);
    assert_eq!(simulation.bad_networks, simulation.drops / 6);
}

#[test]
fn w8_the_first_three_heartbeats_of_each_link_are_at_the_minimum() {
    let mut simulation = Simulation::new(900);
    simulation.run_for(DAY_S);
    for _ in 0..2 {
        simulation.learner.link_up(Duration::from_secs(600), simulation.now_s);
        let mut intervals = Vec::new();
        for _ in 0..5 {
            intervals.push(simulation.learner.interval().as_secs());
            simulation.beat();
        }
        assert_eq!(intervals, [210, 210, 210, 580, 580]);
    }
}

#[test]
fn w8_an_active_app_keeps_to_the_minimum_and_a_forced_interval_wins() {
    let mut simulation = Simulation::new(900);
    simulation.run_for(DAY_S);
    let learner = &mut simulation.learner;
    assert_eq!(learner.interval().as_secs(), 580);
    learner.set_app(AppState::Active);
    assert_eq!(learner.interval().as_secs(), 210);
    learner.force(Some(Duration::from_secs(45)));
    assert_eq!(learner.interval().as_secs(), 45);
    let before = learner.record().cloned();
    for _ in 0..9 {
        learner.failed(Duration::from_secs(45), Lost::Silence, START_S + DAY_S);
    }
    assert_eq!(learner.record().cloned(), before, "a forced interval says nothing of the network");
    learner.force(None);
    learner.set_app(AppState::Inactive);
    assert_eq!(learner.interval().as_secs(), 580);
    learner.set_network(None);
    assert_eq!(learner.interval().as_secs(), 210, "nothing is known of a network without a name");
}

#[test]
fn w8_no_heartbeat_is_later_than_the_ceiling() {
    let mut simulation = Simulation::new(900);
    simulation.run_for(DAY_S);
    simulation.learner.granted(Duration::from_secs(240), simulation.now_s);
    assert_eq!(simulation.learner.interval().as_secs(), 240);
    simulation.learner.link_up(Duration::from_secs(100), simulation.now_s);
    assert_eq!(simulation.learner.interval().as_secs(), 100);
}

#[test]
fn w9_a_settled_network_that_shrinks_is_searched_again() {
    let mut simulation = Simulation::new(900);
    simulation.run_for(DAY_S);
    assert_eq!((simulation.settled_s(), simulation.drops), (580, 0));
    simulation.timeout_s = 300;
    let shrunk_s = simulation.now_s;
    simulation.run_for(DAY_S);
    println!(
        "580 s shrinks to 300 s: settles at {} s after {} s and {} drops",
        simulation.settled_s(),
        START_S + simulation.settled_after_s - shrunk_s,
        simulation.drops
    );
    // Two prove that 580 s do not survive any more, two that 330 s do not.
    assert_eq!((simulation.settled_s(), simulation.drops), (250, 4));
}

#[test]
fn w9_a_settled_interval_is_probed_after_seven_days() {
    let mut simulation = Simulation::new(300);
    simulation.run_for(7 * DAY_S);
    assert_eq!((simulation.settled_s(), simulation.drops), (250, 2));
    simulation.timeout_s = 320;
    simulation.run_for(5_400);
    assert_eq!(simulation.learner.interval().as_secs(), 270, "a success step longer");
    simulation.run_for(DAY_S);
    assert_eq!((simulation.settled_s(), simulation.drops), (250, 4));
    let mut simulation = Simulation::new(420);
    simulation.run_for(DAY_S);
    simulation.timeout_s = 900;
    simulation.run_for(9 * DAY_S);
    assert_eq!((simulation.settled_s(), simulation.drops), (580, 2), "the search goes on");
}

#[test]
fn w10_records_survive_a_restart_and_the_21st_network_evicts_the_oldest() {
    let (parameters, ceiling) = (Parameters::default(), Duration::from_secs(600));
    let mut simulation = Simulation::new(300);
    simulation.run_for(DAY_S);
    let mut learner = simulation.learner;
    let label = |n: u64| Some(format!("wifi:{n}").parse().unwrap());
    for n in 0..19 {
        learner.set_network(label(n));
        learner.link_up(ceiling, simulation.now_s + 100 + n);
    }
    let bytes = serde_json::to_vec(&learner.take_unsaved().unwrap()).unwrap();
    assert_eq!(learner.take_unsaved(), None, "saved once");
    let stored: Vec<StoredRecord> = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(stored.len(), NETWORKS_MAX);
    let now_s = simulation.now_s + 1_000;
    let mut learner = Learner::new(parameters, &stored, now_s);
    learner.set_network(Some("cell:1".parse().unwrap()));
    let record = learner.record().unwrap();
    assert_eq!((record.interval.as_secs(), record.is_settled), (250, true));
    // Used again, it is not the oldest any more.
    learner.link_up(ceiling, now_s);
    learner.set_network(label(20));
    learner.link_up(ceiling, now_s + 1);
    let names: Vec<String> =
        learner.take_unsaved().unwrap().into_iter().map(|stored| stored.network).collect();
    assert_eq!(names.len(), NETWORKS_MAX);
    assert!(names.contains(&"cell:1".into()) && names.contains(&"wifi:20".into()));
    assert!(!names.contains(&"wifi:0".into()), "the oldest");
}

#[test]
fn w10_dirty_records_are_dropped_and_values_out_of_range_are_clamped() {
    let stored = |network: &str, interval_ms: u64, modified_s: u64| {
        format!(
            r#"{{"network":"{network}","interval_ms":{interval_ms},"base_ms":1,"is_settled":true,
                "source":"own","modified_s":{modified_s},"used_s":{modified_s}}}"#
        )
    };
    let json = [
        stored("undated", 300_000, 0),
        stored("future", 300_000, START_S + DAY_S),
        stored("high", 3_600_000, START_S),
        stored("low", 5, START_S),
        stored("", 300_000, START_S),
    ];
    let json = format!("[{}]", json.join(","));
    let stored: Vec<StoredRecord> = serde_json::from_str(&json).unwrap();
    let mut learner = Learner::new(Parameters::default(), &stored, START_S + 1);
    let mut interval_of = |label: &str| {
        learner.set_network(Some(label.parse().unwrap()));
        learner.record().map(|record| record.interval.as_secs())
    };
    assert_eq!(interval_of("undated"), None);
    assert_eq!(interval_of("future"), None);
    assert_eq!(interval_of("high"), Some(580));
    assert_eq!(interval_of("low"), Some(60));
}

#[test]
fn advice_is_a_start_that_the_device_verifies_itself() {
    let mut simulation = Simulation::new(300);
    simulation.learner.advise(Duration::from_secs(280), START_S);
    simulation.run_for(DAY_S);
    assert_eq!((simulation.settled_s(), simulation.drops), (280, 0), "good advice costs nothing");
    simulation.learner.advise(Duration::from_secs(290), simulation.now_s);
    assert_eq!(simulation.settled_s(), 290, "who follows advice goes on following it");

    let mut simulation = Simulation::new(300);
    simulation.learner.advise(Duration::from_secs(580), START_S);
    simulation.run_for(DAY_S);
    assert_eq!((simulation.settled_s(), simulation.drops), (250, 4), "bad advice costs two drops");
    simulation.learner.advise(Duration::from_secs(580), simulation.now_s);
    simulation.learner.advise(Duration::from_secs(330), simulation.now_s);
    simulation.learner.advise(Duration::from_secs(220), simulation.now_s);
    assert_eq!(simulation.settled_s(), 250, "its own experience outranks advice");

    let mut simulation = Simulation::new(180);
    simulation.learner.advise(Duration::from_secs(160), START_S);
    simulation.run_for(DAY_S);
    assert_eq!((simulation.settled_s(), simulation.drops), (160, 0), "also below the minimum");
}

#[test]
fn wrong_advice_that_is_repeated_does_not_undo_what_the_device_has_found() {
    for (timeout_s, advised_s, settles_s, drops) in [(200, 210, 150, 6), (300, 400, 250, 4)] {
        let mut simulation = Simulation::new(timeout_s);
        for _ in 0..600 {
            simulation.learner.advise(Duration::from_secs(advised_s), simulation.now_s);
            simulation.beat();
        }
        assert_eq!((simulation.settled_s(), simulation.drops), (settles_s, drops), "{timeout_s}");
    }
}

#[test]
fn a_failure_behind_a_settled_interval_makes_the_device_listen() {
    let mut simulation = Simulation::new(900);
    simulation.run_for(DAY_S);
    simulation.learner.advise(Duration::from_secs(280), simulation.now_s);
    assert_eq!(simulation.settled_s(), 580);
    simulation.timeout_s = 300;
    while simulation.drops == 0 {
        simulation.beat();
    }
    simulation.learner.advise(Duration::from_secs(280), simulation.now_s);
    simulation.run_for(DAY_S);
    assert_eq!((simulation.settled_s(), simulation.drops), (280, 1));
}

struct Timer {
    heartbeat: Heartbeat,
    start: Instant,
}

impl Timer {
    fn new() -> Self {
        let start = Instant::now();
        let mut learner = Learner::new(Parameters::default(), &[], START_S);
        learner.set_network(Some("cell:1".parse().unwrap()));
        let mut heartbeat = Heartbeat::new(learner, start, START_S);
        heartbeat.link_up(Duration::from_secs(600), start);
        Self { heartbeat, start }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn due(&mut self, seconds: u64) -> Due {
        self.heartbeat.due(self.start + Duration::from_secs(seconds))
    }

    /// `count` heartbeats, each answered at once; when the last one was.
    fn answered(&mut self, count: u32) -> u64 {
        let mut at = Instant::now();
        for _ in 0..count {
            at = self.heartbeat.wake_at();
            assert_eq!(self.heartbeat.due(at), Due::Ping);
            self.heartbeat.sent(at);
            self.heartbeat.heard(at);
        }
        at.duration_since(self.start).as_secs()
    }
}

#[tokio::test(start_paused = true)]
async fn w11_any_upstream_packet_delays_the_next_heartbeat() {
    let mut timer = Timer::new();
    assert_eq!(timer.due(209), Due::Nothing);
    timer.heartbeat.sent(timer.at(200));
    assert_eq!(timer.due(210), Due::Nothing);
    assert_eq!(timer.due(409), Due::Nothing);
    assert_eq!(timer.due(410), Due::Ping);
}

#[tokio::test(start_paused = true)]
async fn w11_a_missed_response_closes_in_8_s() {
    let mut timer = Timer::new();
    assert_eq!(timer.due(210), Due::Ping);
    timer.heartbeat.sent(timer.at(210));
    assert_eq!(timer.due(217), Due::Nothing);
    timer.heartbeat.sent(timer.at(217));
    assert_eq!(timer.due(218), Due::Dead, "more packets of ours do not help");
    let mut timer = Timer::new();
    assert_eq!(timer.due(210), Due::Ping);
    timer.heartbeat.heard(timer.at(217));
    timer.heartbeat.sent(timer.at(217));
    assert_eq!(timer.due(218), Due::Nothing, "any packet is a response");
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_was_broken_or_overslept_is_no_test_of_the_interval() {
    let mut timer = Timer::new();
    timer.heartbeat.heard(timer.at(100));
    assert_eq!(timer.due(210), Due::Ping);
    timer.heartbeat.heard(timer.at(210));
    assert_eq!(timer.heartbeat.longest, Duration::ZERO, "a packet came in between");
    // The device slept: what failed is another gap than the one that was planned.
    let last_s = timer.answered(3);
    assert_eq!(timer.due(last_s + 1_000), Due::Ping);
    timer.heartbeat.link_down(Some(Lost::Silence), timer.at(last_s + 1_008));
    assert_eq!(timer.heartbeat.died, None);
}

#[tokio::test(start_paused = true)]
async fn reports_say_what_survived_and_what_died_and_are_rare() {
    let mut timer = Timer::new();
    assert_eq!(timer.heartbeat.take_report(timer.at(0)), None, "nobody to tell it to");
    timer.heartbeat.online();
    let first = timer.heartbeat.take_report(timer.at(1)).unwrap();
    assert_eq!((first.network.as_str(), first.survived_s, first.died_s), ("cell:1", None, None));
    let at_s = timer.answered(1);
    let second = timer.heartbeat.take_report(timer.at(at_s)).unwrap();
    assert_eq!((second.survived_s, second.died_s), (Some(210), None));
    let at_s = timer.answered(1);
    assert_eq!(timer.heartbeat.take_report(timer.at(at_s)), None, "no news");
    let at_s = timer.answered(1);
    assert!(timer.heartbeat.take_report(timer.at(at_s)).is_some(), "the link has proved itself");
    assert_eq!(timer.due(at_s + 210), Due::Ping);
    timer.heartbeat.link_down(Some(Lost::Broken), timer.at(at_s + 211));
    timer.heartbeat.link_up(Duration::from_secs(600), timer.at(at_s + 212));
    timer.heartbeat.online();
    let report = timer.heartbeat.take_report(timer.at(at_s + 213)).unwrap();
    assert_eq!((report.survived_s, report.died_s), (None, Some(210)));
    timer.heartbeat.online();
    assert_eq!(timer.heartbeat.take_report(timer.at(at_s + 270)), None, "one a minute");
}
