//! A day of a fleet behind NATs: the SDK's real heartbeat and the gateway's real advisor, over simulated time.
//!
//! Prints how many connections the NATs killed and how many heartbeats were sent, against a fixed interval, every
//! device learning alone, and the best fixed interval that hindsight knows for each network. docs/HEARTBEAT.md has the
//! table of the large run: `cargo test --release --test heartbeat_fleet -- --ignored --nocapture`.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant as WallInstant},
};

use carillon::{
    base::ids::DeviceId,
    edge::advisor::{Advisor, NetworkKey, Report, Rules},
};
use carillon_sdk::heartbeat::{Due, Heartbeat, Learner, Lost, Parameters};
use tokio::time::Instant;

const HOUR_S: u64 = 3_600;
const DAY_S: u64 = 24 * HOUR_S;
/// Devices come one after the other.
const ARRIVALS_S: u64 = 6 * HOUR_S;
const KEEP_ALIVE_S: u64 = 600;
/// From the loss of a connection to the next.
const RECONNECT_S: u64 = 3;
/// How often a lying device reports.
const LIE_EVERY_S: u64 = 300;
/// Of a hundred devices.
const LIARS: u64 = 5;

/// A network with its NAT.
struct Network {
    name: &'static str,
    before_noon_s: u64,
    after_noon_s: u64,
    /// Heartbeats that are lost for other reasons, of a thousand.
    lost: u64,
}

const NETWORKS: [Network; 6] = [
    Network { name: "NAT 200 s", before_noon_s: 200, after_noon_s: 200, lost: 0 },
    Network { name: "NAT 300 s", before_noon_s: 300, after_noon_s: 300, lost: 0 },
    Network { name: "NAT 420 s", before_noon_s: 420, after_noon_s: 420, lost: 0 },
    Network { name: "NAT 900 s", before_noon_s: 900, after_noon_s: 900, lost: 0 },
    Network { name: "900 s, at noon 300 s", before_noon_s: 900, after_noon_s: 300, lost: 0 },
    Network { name: "420 s, 1 % lost", before_noon_s: 420, after_noon_s: 420, lost: 10 },
];

impl Network {
    fn timeout_s(&self, now_s: u64) -> u64 {
        if now_s < DAY_S / 2 { self.before_noon_s } else { self.after_noon_s }
    }

    /// The longest interval without a drop on that day, under CONNECT's keep-alive.
    fn best_s(&self) -> u64 {
        (self.before_noon_s.min(self.after_noon_s) - 1).min(KEEP_ALIVE_S)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Fixed240,
    Alone,
    Hindsight,
    Advised,
}

const WAYS: [Way; 4] = [Way::Fixed240, Way::Alone, Way::Hindsight, Way::Advised];

/// What one network cost.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Connections that the NAT killed.
    drops: u64,
    heartbeats: u64,
    /// The drops of the last tenth of the devices to come.
    late_drops: u64,
}

struct Phone {
    id: DeviceId,
    network: usize,
    key: NetworkKey,
    heartbeat: Heartbeat,
    is_lying: bool,
    /// The packets since the last ping left into nothing.
    is_cut: bool,
    is_up: bool,
}

struct World {
    start: Instant,
    advisor: Option<Advisor>,
    phones: Vec<Phone>,
    events: BinaryHeap<Reverse<(u64, usize)>>,
    costs: Vec<Cost>,
    random: u64,
}

impl World {
    fn new(way: Way, devices: u64) -> Self {
        let start = Instant::now();
        let advisor = Advisor::new(Rules::default(), (1, 2));
        let mut phones = Vec::new();
        let mut events = BinaryHeap::new();
        for n in 0..devices {
            let network = (n % NETWORKS.len() as u64) as usize;
            let mut learner = Learner::new(Parameters::default(), &[], 1_700_000_000);
            learner.set_network(Some(NETWORKS[network].name.parse().unwrap()));
            learner.force(match way {
                Way::Fixed240 => Some(Duration::from_secs(240)),
                Way::Hindsight => Some(Duration::from_secs(NETWORKS[network].best_s())),
                Way::Alone | Way::Advised => None,
            });
            let mut bytes = [0; 10];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            phones.push(Phone {
                id: DeviceId(bytes),
                network,
                key: advisor.named(NETWORKS[network].name),
                heartbeat: Heartbeat::new(learner, start, 1_700_000_000),
                is_lying: (n / NETWORKS.len() as u64) % (100 / LIARS) == 7,
                is_cut: false,
                is_up: false,
            });
            events.push(Reverse((n * ARRIVALS_S / devices, n as usize)));
        }
        let advisor = (way == Way::Advised).then_some(advisor);
        let costs = vec![Cost::default(); NETWORKS.len()];
        Self { start, advisor, phones, events, costs, random: 7 }
    }

    fn run(mut self) -> Vec<Cost> {
        while let Some(Reverse((now_s, at))) = self.events.pop() {
            if now_s >= DAY_S {
                break;
            }
            let next_s = match self.phones[at].is_lying {
                true => self.lie(at, now_s),
                false => self.step(at, now_s),
            };
            self.events.push(Reverse((next_s, at)));
        }
        self.costs
    }

    /// One event of a phone; when its next one comes.
    fn step(&mut self, at: usize, now_s: u64) -> u64 {
        let now = self.start + Duration::from_secs(now_s);
        let is_late = at >= self.phones.len() * 9 / 10;
        let network = &NETWORKS[self.phones[at].network];
        let is_lost = self.dice() % 1_000 < network.lost;
        let phone = &mut self.phones[at];
        let cost = &mut self.costs[phone.network];
        if !phone.is_up {
            phone.heartbeat.link_up(Duration::from_secs(KEEP_ALIVE_S), now);
            phone.heartbeat.online();
            (phone.is_up, phone.is_cut) = (true, false);
            self.talk(at, now);
            return self.wake_s(at);
        }
        let gap_s = phone.heartbeat.wake_at().duration_since(self.start).as_secs();
        assert!(gap_s <= now_s, "events are in order");
        match phone.heartbeat.due(now) {
            Due::Nothing => {}
            Due::Ping => {
                cost.heartbeats += 1;
                let silence_s = phone.heartbeat.silence_before_ping().unwrap().as_secs();
                let is_dropped = silence_s >= network.timeout_s(now_s);
                cost.drops += u64::from(is_dropped);
                cost.late_drops += u64::from(is_dropped && is_late);
                phone.is_cut = is_dropped || is_lost;
                phone.heartbeat.sent(now);
                if !phone.is_cut {
                    phone.heartbeat.heard(now);
                    self.talk(at, now);
                }
            }
            Due::Dead => {
                assert!(phone.is_cut);
                phone.heartbeat.link_down(Some(Lost::Silence), now);
                phone.is_up = false;
                return now_s + RECONNECT_S;
            }
        }
        self.wake_s(at)
    }

    /// What the phone has to report, and the advice that it gets.
    fn talk(&mut self, at: usize, now: Instant) {
        let phone = &mut self.phones[at];
        let (Some(advisor), Some(report)) = (&self.advisor, phone.heartbeat.take_report(now))
        else {
            return;
        };
        phone.heartbeat.sent(now);
        let now_s = now.duration_since(self.start).as_secs();
        let seconds = |s: Option<i32>| s.map(|s| u16::try_from(s).unwrap());
        let report =
            Report { survived_s: seconds(report.survived_s), died_s: seconds(report.died_s) };
        advisor.hear(phone.key, &phone.id, report, now_s);
        if let Some(advised_s) = advisor.advice(phone.key, &phone.id, now_s) {
            phone.heartbeat.advise(Duration::from_secs(advised_s.into()), now);
        }
    }

    /// A lying device claims that everything survives, or that nothing does.
    fn lie(&mut self, at: usize, now_s: u64) -> u64 {
        let phone = &self.phones[at];
        let is_boasting = phone.id.0[7].count_ones().is_multiple_of(2);
        let report = match is_boasting {
            true => Report { survived_s: Some(600), died_s: None },
            false => Report { survived_s: None, died_s: Some(30) },
        };
        if let Some(advisor) = &self.advisor {
            advisor.hear(phone.key, &phone.id, report, now_s);
        }
        now_s + LIE_EVERY_S
    }

    fn wake_s(&self, at: usize) -> u64 {
        let wake_at = self.phones[at].heartbeat.wake_at();
        wake_at.duration_since(self.start).as_secs()
    }

    fn dice(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.random >> 33
    }
}

/// Runs all ways and prints the table; indexed by way, then by network.
fn compare(devices: u64) -> Vec<Vec<Cost>> {
    let began = WallInstant::now();
    let costs: Vec<Vec<Cost>> = WAYS.iter().map(|way| World::new(*way, devices).run()).collect();
    println!("{devices} devices, {LIARS} % of them lying, 24 h: drops / heartbeats");
    println!("| network | fixed 240 s | each alone | best in hindsight | with the advisor |");
    println!("|---|---|---|---|---|");
    let row = |name: &str, cost: &dyn Fn(usize) -> Cost| {
        let cells: Vec<String> = (0..WAYS.len())
            .map(|way| format!("{} / {}", cost(way).drops, cost(way).heartbeats))
            .collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    for (at, network) in NETWORKS.iter().enumerate() {
        row(network.name, &|way| costs[way][at]);
    }
    row("all", &|way| total(&costs[way]));
    let late = NETWORKS.iter().zip(&costs[3]).map(|(n, c)| format!("{}: {}", n.name, c.late_drops));
    println!("drops of the last tenth to come, advised: {}", late.collect::<Vec<_>>().join(", "));
    println!("in {} ms", began.elapsed().as_millis());
    costs
}

fn total(costs: &[Cost]) -> Cost {
    costs.iter().fold(Cost::default(), |sum, cost| Cost {
        drops: sum.drops + cost.drops,
        heartbeats: sum.heartbeats + cost.heartbeats,
        late_drops: sum.late_drops + cost.late_drops,
    })
}

/// What holds for any size of the fleet: what the first devices pay does not grow with it.
fn check(costs: &[Vec<Cost>], devices: u64) {
    let [_, alone, hindsight, advised] = costs else { panic!("four ways") };
    let honest = devices / NETWORKS.len() as u64 * (100 - LIARS) / 100;
    for (at, network) in NETWORKS.iter().enumerate() {
        let (alone, best, advised) = (alone[at], hindsight[at], advised[at]);
        let name = network.name;
        if network.before_noon_s == network.after_noon_s {
            assert!(advised.drops * 10 <= alone.drops, "{name}: {advised:?}, {alone:?}");
            assert!(advised.drops <= 100 && advised.late_drops <= 5, "{name}: {advised:?}");
            let near = best.heartbeats * 130 / 100;
            assert!(advised.heartbeats <= near, "{name}: {advised:?}, {best:?}");
        } else {
            assert!(advised.drops <= honest * 125 / 100, "{name}: {advised:?}");
            assert!(advised.drops * 2 <= alone.drops, "{name}: {advised:?}, {alone:?}");
        }
        assert_eq!(best.drops, 0, "{name}");
    }
    let (alone, advised) = (total(alone), total(advised));
    assert!(advised.heartbeats <= alone.heartbeats * 105 / 100, "{advised:?}, {alone:?}");
}

#[test]
fn a_fleet_of_1800_devices_learns_from_its_first_ones() {
    let costs = compare(1_800);
    check(&costs, 1_800);
}

#[test]
#[ignore = "slow in debug builds; scripts/slow runs it"]
fn a_fleet_of_10000_devices_learns_from_its_first_ones() {
    let costs = compare(10_000);
    check(&costs, 10_000);
}
