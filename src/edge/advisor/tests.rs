//! The advisor with fleets that report every ten minutes; tests/heartbeat_fleet.rs has the real device.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const TURN_S: u64 = 600;

struct Fleet {
    advisor: Advisor,
    key: NetworkKey,
    timeout_s: u16,
    now_s: u64,
    honest: Vec<DeviceId>,
    liars: Vec<(DeviceId, Report)>,
    drops: BTreeMap<DeviceId, u32>,
}

const BOAST: Report = Report { survived_s: Some(1_200), died_s: None };
const MOAN: Report = Report { survived_s: None, died_s: Some(20) };

fn device(n: u64) -> DeviceId {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    DeviceId(bytes)
}

impl Fleet {
    fn new(honest: u64, timeout_s: u16) -> Self {
        let advisor = Advisor::new(Rules::default(), (3, 4));
        Self {
            key: advisor.named("cell:1"),
            advisor,
            timeout_s,
            now_s: 0,
            honest: (0..honest).map(device).collect(),
            liars: Vec::new(),
            drops: BTreeMap::new(),
        }
    }

    fn with_liars(mut self, count: u64, lie: Report) -> Self {
        self.liars.extend((0..count).map(|n| (device(1_000_000 + n), lie)));
        self
    }

    fn advice(&self, n: u64) -> Option<u16> {
        self.advisor.advice(self.key, &device(n), self.now_s)
    }

    /// Every liar reports ten times and every honest device once; which gap each of these tried.
    fn turn(&mut self) -> Vec<u16> {
        self.now_s += TURN_S;
        for (liar, lie) in self.liars.iter().cycle().take(self.liars.len() * 10) {
            self.advisor.hear(self.key, liar, *lie, self.now_s);
        }
        let mut tried = Vec::new();
        for device in &self.honest {
            let advised = self.advisor.advice(self.key, device, self.now_s);
            let gap_s = advised.unwrap_or(210).clamp(60, 580);
            let report = match gap_s < self.timeout_s {
                true => Report { survived_s: Some(gap_s), died_s: None },
                false => Report { survived_s: None, died_s: Some(gap_s) },
            };
            *self.drops.entry(*device).or_default() += u32::from(report.died_s.is_some());
            self.advisor.hear(self.key, device, report, self.now_s);
            tried.push(gap_s);
        }
        tried
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }

    fn drops(&self) -> u32 {
        self.drops.values().sum()
    }
}

#[test]
fn a_fleet_finds_the_level_and_few_pay_for_it() {
    for (timeout_s, least_s) in [(200, 165), (300, 270), (420, 390), (900, 570)] {
        let mut fleet = Fleet::new(300, timeout_s);
        fleet.turns(3 * 144);
        let level_s = fleet.advice(777_777).unwrap();
        println!("NAT {timeout_s} s: advised {level_s} s, {} drops", fleet.drops());
        assert!((least_s..timeout_s).contains(&level_s), "{timeout_s}: {level_s}");
        let payers = fleet.drops.values().filter(|drops| **drops > 0).count();
        // In a network below what is expected of any, all of those who come first pay once.
        assert!(timeout_s == 200 || payers <= 60, "{timeout_s}: {payers}");
    }
}

#[test]
fn another_top_holds_for_what_is_known_and_for_what_is_tried() {
    let mut fleet = Fleet::new(300, 900);
    fleet.advisor.set_top(300);
    fleet.turns(144);
    let level_s = fleet.advice(777_777).unwrap();
    assert!((250..=300).contains(&level_s), "{level_s}");
    fleet.advisor.set_top(1_200);
    fleet.turns(3 * 144);
    assert!(fleet.advice(777_777).unwrap() >= 500);
    fleet.advisor.set_top(240);
    let advised_s: Vec<_> = (0..300).filter_map(|n| fleet.advice(n)).collect();
    assert!(advised_s.iter().all(|advised_s| *advised_s <= 240), "{advised_s:?}");
}

#[test]
fn no_more_than_eight_devices_explore_at_a_time() {
    let mut fleet = Fleet::new(500, 420);
    for _ in 0..300 {
        let level_s = fleet.advice(777_777).unwrap_or(210);
        let tried = fleet.turn();
        // A round may end, and another begin, once within a turn.
        let bold = tried.iter().filter(|gap_s| **gap_s > level_s).count();
        let is_raised = fleet.advice(777_777).unwrap() > level_s;
        assert!(bold <= 2 * network::EXPLORERS || is_raised, "{bold} above {level_s}");
    }
}

#[test]
fn a_network_that_shrinks_is_learned_again() {
    let mut fleet = Fleet::new(500, 900);
    fleet.turns(144);
    assert!(fleet.advice(777_777).unwrap() >= 570);
    let before = fleet.drops();
    fleet.timeout_s = 300;
    fleet.turns(1);
    assert_eq!(fleet.advice(777_777), Some(210), "told at once: what is safe");
    fleet.turns(144);
    let level_s = fleet.advice(777_777).unwrap();
    assert!((270..300).contains(&level_s), "{level_s}");
    println!("shrunk: {} drops of 500 devices", fleet.drops() - before);
}

#[test]
fn liars_do_not_spoil_a_network_however_often_they_report() {
    for lie in [BOAST, MOAN] {
        for liars in [1, 30] {
            let mut fleet = Fleet::new(300, 420).with_liars(liars, lie);
            fleet.turns(150);
            let level_s = fleet.advice(777_777).unwrap();
            println!("{liars} liars say {lie:?}: {level_s} s, {} drops", fleet.drops());
            assert!((360..420).contains(&level_s), "{liars} of {lie:?}: {level_s}");
            assert!(fleet.drops() < 200, "{liars} of {lie:?}: {}", fleet.drops());
        }
    }
}

#[test]
fn a_network_recovers_from_liars_who_came_first() {
    let mut fleet = Fleet::new(0, 420).with_liars(20, MOAN);
    fleet.turns(10);
    assert_eq!(fleet.advice(777_777), Some(60));
    fleet.honest = (0..300).map(device).collect();
    fleet.turns(144);
    let level_s = fleet.advice(777_777).unwrap();
    assert!((360..420).contains(&level_s), "{level_s}");
}

#[test]
fn in_a_small_network_devices_hear_what_others_survived_and_one_goes_on() {
    let mut fleet = Fleet::new(3, 900);
    let tell = |fleet: &Fleet, n: u64, survived_s: u16| {
        let report = Report { survived_s: Some(survived_s), died_s: None };
        fleet.advisor.hear(fleet.key, &device(n), report, fleet.now_s);
    };
    tell(&fleet, 0, 580);
    assert_eq!(fleet.advice(1), None, "one voice is not enough");
    tell(&fleet, 1, 450);
    assert_eq!(fleet.advice(2), Some(440), "two have survived 450 s");
    assert_eq!((fleet.advice(0), fleet.advice(1)), (None, None), "they know better");
    fleet.now_s += 2 * 86_400;
    tell(&fleet, 3, 210);
    assert_eq!(fleet.advice(2), None, "what is old is forgotten");
}

#[test]
fn invented_names_push_out_only_each_other() {
    let mut fleet = Fleet::new(20, 420);
    fleet.turns(144);
    let level_s = fleet.advice(777_777);
    let report = Report { survived_s: Some(100), died_s: None };
    for n in 0..30_000 {
        let key = fleet.advisor.named(&format!("invented {n}"));
        fleet.advisor.hear(key, &device(n % 2), report, fleet.now_s);
        assert!(fleet.advisor.networks() <= 10_000);
    }
    assert_eq!(fleet.advice(777_777), level_s);
    assert!(fleet.advisor.networks() < 2_100, "{}", fleet.advisor.networks());
}

#[test]
fn a_keep_alive_is_capped_only_where_it_is_known_to_be_fatal() {
    let fleet = Fleet::new(0, 300);
    let key = fleet.key;
    let cap = |fleet: &Fleet, n: u64, asked_s: u16| {
        fleet.advisor.cap(key, &device(n), asked_s, fleet.now_s)
    };
    for n in 0..40 {
        let report = Report { survived_s: Some(60), died_s: None };
        fleet.advisor.hear(key, &device(n), report, fleet.now_s);
    }
    assert_eq!(cap(&fleet, 50, 600), None, "nobody has died");
    for n in 0..40 {
        let report = Report { survived_s: None, died_s: Some(600) };
        fleet.advisor.hear(key, &device(n), report, fleet.now_s);
    }
    let caps: BTreeSet<Option<u16>> = (100..200).map(|n| cap(&fleet, n, 600)).collect();
    assert_eq!(caps, [Some(210)].into(), "none of these explores");
    assert_eq!(cap(&fleet, 100, 120), None, "what is asked for is shorter");
}

#[test]
fn addresses_are_told_apart_by_their_network() {
    let advisor = Advisor::new(Rules::default(), (3, 4));
    let key = |text: &str| advisor.at_address(text.parse().unwrap());
    assert_eq!(key("192.0.2.1"), key("192.0.2.200"));
    assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.9"));
    assert_ne!(key("192.0.2.1"), key("192.0.3.1"));
    assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:ffff::2"));
    assert_ne!(key("2001:db8:1::1"), key("2001:db8:2::1"));
    assert_eq!(AddressKey::default().network(), None);
}
