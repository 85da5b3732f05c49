//! What the fleet knows of one network: a panel of devices is heard, a level is kept, a few explore above it. Pure.
//!
//! The panel is a sample of the network's devices that nobody can join by reporting often: those with the smallest
//! keyed hash of the day. Each has one opinion. So a device that lies weighs as much as one that does not, and the
//! memory is bounded. docs/HEARTBEAT.md tells the story.

use super::{Report, Rules};

/// Devices that are heard.
pub const PANEL_MAX: usize = 32;
/// Of these, the ones that try a longer interval.
pub const EXPLORERS: usize = 8;
/// A network of fewer devices is not explored: they learn for themselves and tell each other.
pub const FLEET_MIN: usize = 8;

/// One network.
#[derive(Clone, Debug)]
pub struct Network {
    salt: u32,
    panel: Vec<Member>,
    /// What is advised, in seconds; 0: not known yet.
    level_s: u16,
    /// The shortest interval that is known not to survive; 0: none.
    limit_s: u16,
    /// How far above the level it is explored.
    step_s: u16,
    /// Opinions on the level count from this second on.
    level_since_s: u32,
    /// The explorers of a round are others than those of the one before.
    round: u16,
    round_since_s: u32,
    /// Nothing is explored before this second.
    hold_until_s: u32,
    /// How often the search has ended without a better level.
    holds: u8,
}

/// A device that is heard, and its one opinion.
#[derive(Clone, Copy, Debug)]
struct Member {
    device: u32,
    heard_s: u32,
    /// The longest gap that survived, and when it was reported; 0: none.
    survived_s: u16,
    survived_at_s: u32,
    /// The gap that died last, and when it was reported; 0: none, or the device has survived it since.
    died_s: u16,
    died_at_s: u32,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Its device is on the panel.
    Taken,
    /// Others are on the panel.
    Aside,
}

/// How many devices are for an interval, and how many against.
#[derive(Clone, Copy, Debug, Default)]
struct Voices {
    pro: usize,
    con: usize,
}

impl Network {
    /// Nothing is known. The salt makes each network's panel another sample.
    pub fn new(salt: u32, rules: &Rules, now_s: u32) -> Self {
        Self {
            salt,
            panel: Vec::new(),
            level_s: 0,
            limit_s: 0,
            step_s: rules.step_s,
            level_since_s: now_s,
            round: 0,
            round_since_s: now_s,
            hold_until_s: 0,
            holds: 0,
        }
    }

    /// Devices on the panel.
    pub fn voices(&self) -> usize {
        self.panel.len()
    }

    /// A device tells how gaps fared.
    pub fn hear(&mut self, device: u32, report: Report, rules: &Rules, now_s: u32) -> Heard {
        let Some(member) = self.seat(device, now_s) else { return Heard::Aside };
        member.heard(report, now_s);
        if self.level_s == 0 && self.panel.len() >= FLEET_MIN {
            self.begin(rules, now_s);
        }
        if self.level_s > 0 {
            self.judge(rules, now_s);
        }
        Heard::Taken
    }

    /// The interval for a device, which heeds it at once or never.
    pub fn advice(&self, device: u32, rules: &Rules, now_s: u32) -> Option<u16> {
        let advised_s = match self.level_s {
            0 => self.neighbours(device, rules, now_s)?,
            level_s => self.trial_of(device, rules, now_s).unwrap_or(level_s),
        };
        // What is known may be from before the top was lowered.
        Some(advised_s.min(rules.top_s))
    }

    /// The keep-alive for a device that cannot be advised later: its own wish, unless that is known not to survive.
    pub fn cap(&self, device: u32, asked_s: u16, rules: &Rules, now_s: u32) -> Option<u16> {
        let is_fatal = self.level_s > 0 && self.limit_s > 0 && asked_s >= self.limit_s;
        let cap_s = if is_fatal { self.advice(device, rules, now_s) } else { None };
        cap_s.filter(|cap_s| *cap_s < asked_s)
    }

    /// In a small network a device hears what others have survived for longer than it has, so that one always goes on.
    fn neighbours(&self, device: u32, rules: &Rules, now_s: u32) -> Option<u16> {
        let own_s = self.panel.iter().find(|m| m.device == device).map_or(0, |m| m.survived_s);
        let is_borne = |gap_s: u16| {
            let voices = self.voices_on(gap_s, now_s.saturating_sub(MEMORY_S));
            voices.pro >= rules.voices_min && voices.con * 3 <= voices.pro
        };
        let gaps = self.panel.iter().map(|member| member.survived_s);
        let best_s = gaps.filter(|gap_s| *gap_s > 0 && is_borne(*gap_s)).max()?;
        let advised_s = best_s.saturating_sub(rules.margin_s);
        (advised_s > own_s.max(rules.safe_s)).then_some(advised_s)
    }

    /// The place of a device on the panel, if it has one.
    fn seat(&mut self, device: u32, now_s: u32) -> Option<&mut Member> {
        self.panel.retain(|member| member.heard_s.saturating_add(MEMORY_S) >= now_s);
        // Each device's day begins at another time: there is no moment at which all seats are free for those who are
        // quick.
        let day = |device: u32| now_s.saturating_add(device % DAY_S) / DAY_S;
        let order = |device: u32| mix(device, self.salt, day(device));
        let at = match self.panel.iter().position(|member| member.device == device) {
            Some(at) => at,
            None if self.panel.len() < PANEL_MAX => {
                self.panel.push(Member::new(device));
                self.panel.len() - 1
            }
            None => {
                let last = (0..self.panel.len()).max_by_key(|at| order(self.panel[*at].device))?;
                if order(self.panel[last].device) <= order(device) {
                    return None;
                }
                self.panel[last] = Member::new(device);
                last
            }
        };
        self.panel.get_mut(at)
    }

    /// There are enough devices to explore: the level begins where most of them have been.
    fn begin(&mut self, rules: &Rules, now_s: u32) {
        let is_common = |gap_s: u16| {
            let voices = self.voices_on(gap_s, now_s.saturating_sub(MEMORY_S));
            voices.pro * 10 >= self.panel.len() * 6 && voices.con * 4 <= voices.pro
        };
        let gaps = self.panel.iter().map(|member| member.survived_s);
        let common_s = gaps.filter(|gap_s| is_common(*gap_s)).max().unwrap_or(0);
        self.level_s = common_s.saturating_sub(rules.margin_s).max(rules.safe_s).min(rules.top_s);
        self.level_since_s = now_s.saturating_sub(FRESH_S);
        self.next_round(now_s);
    }

    fn judge(&mut self, rules: &Rules, now_s: u32) {
        let since_s = self.level_since_s.max(now_s.saturating_sub(FRESH_S));
        let voices = self.voices_on(self.level_s, since_s);
        if voices.con >= DEATHS_MIN && voices.con * 10 >= (voices.pro + voices.con) * 4 {
            return self.retreat(rules, now_s);
        }
        self.learn_limit(now_s);
        self.narrow(rules, now_s);
        if let Some(trial_s) = self.trial(rules, now_s) {
            self.explore(trial_s, rules, now_s);
            self.narrow(rules, now_s);
        }
    }

    /// Concludes from what became of the explorers.
    fn explore(&mut self, trial_s: u16, rules: &Rules, now_s: u32) {
        let voices = self.explorers().fold(Voices::default(), |voices, explorer| {
            voices.with(explorer.opinion(trial_s, self.round_since_s))
        });
        if voices.pro >= SURVIVALS_MIN {
            self.level_s = trial_s - rules.margin_s;
            self.level_since_s = self.round_since_s;
            (self.step_s, self.holds) = ((self.step_s * 2).min(rules.step_s), 0);
            self.next_round(now_s);
        } else if voices.con >= DEATHS_MIN {
            self.limit_s = trial_s;
            self.next_round(now_s);
        } else if now_s >= self.round_since_s.saturating_add(ROUND_S) {
            self.next_round(now_s);
        }
    }

    /// The level does not survive any more: back to what is safe, and all above it is open again.
    fn retreat(&mut self, rules: &Rules, now_s: u32) {
        self.limit_s = self.level_s;
        let lower_s = (u32::from(self.level_s) * 7 / 10) as u16;
        self.level_s = lower_s.min(rules.safe_s).max(rules.floor_s);
        self.level_since_s = now_s;
        (self.step_s, self.hold_until_s, self.holds) = (rules.step_s, 0, 0);
        self.next_round(now_s);
    }

    /// What a good part of the panel died of need not be explored.
    fn learn_limit(&mut self, now_s: u32) {
        let since_s = self.level_since_s.max(now_s.saturating_sub(FRESH_S));
        let is_fatal = |gap_s: u16| {
            let voices = self.voices_on(gap_s, since_s);
            voices.con * 4 >= self.panel.len()
                && voices.con >= DEATHS_MIN
                && voices.con > voices.pro
        };
        let gaps = self.panel.iter().map(|member| member.died_s);
        let fatal = gaps.filter(|gap_s| *gap_s > self.level_s && is_fatal(*gap_s)).min();
        if let Some(fatal_s) = fatal.filter(|fatal_s| self.limit_s == 0 || *fatal_s < self.limit_s)
        {
            self.limit_s = fatal_s;
        }
    }

    /// Brings the step under the limit. A search that has come to its end rests, longer each time, and begins again.
    fn narrow(&mut self, rules: &Rules, now_s: u32) {
        if self.hold_until_s > 0 && now_s >= self.hold_until_s {
            // What was fatal may have been a lie, or may have passed: small steps find out cheaply.
            (self.hold_until_s, self.limit_s, self.step_s) = (0, 0, rules.fine_s);
            self.next_round(now_s);
        }
        let is_beyond = |step_s: u16| {
            let trial_s = u32::from(self.level_s) + u32::from(step_s) + u32::from(rules.margin_s);
            trial_s > u32::from(rules.top_s)
                || (self.limit_s > 0 && trial_s >= u32::from(self.limit_s))
        };
        let mut step_s = self.step_s;
        while step_s >= rules.fine_s && is_beyond(step_s) {
            step_s /= 2;
        }
        if step_s >= rules.fine_s {
            self.step_s = step_s;
        } else if self.hold_until_s == 0 {
            let rest_s = (HOLD_MIN_S << (2 * self.holds)).min(HOLD_MAX_S);
            self.hold_until_s = now_s.saturating_add(rest_s);
            self.holds = (self.holds + 1).min(5);
        }
    }

    fn next_round(&mut self, now_s: u32) {
        self.round = self.round.wrapping_add(1);
        self.round_since_s = now_s;
    }

    /// What explorers try now, if anything.
    fn trial(&self, rules: &Rules, now_s: u32) -> Option<u16> {
        let is_open = self.panel.len() >= FLEET_MIN && self.hold_until_s <= now_s;
        is_open.then(|| self.level_s + self.step_s + rules.margin_s)
    }

    /// The same for one device: an explorer that has not died of it.
    fn trial_of(&self, device: u32, rules: &Rules, now_s: u32) -> Option<u16> {
        self.panel.iter().find(|member| member.device == device)?;
        let trial_s = self.trial(rules, now_s)?;
        let explorer = self.explorers().find(|explorer| explorer.device == device)?;
        (explorer.opinion(trial_s, self.round_since_s) != Some(false)).then_some(trial_s)
    }

    fn explorers(&self) -> impl Iterator<Item = &Member> {
        let order = |member: &Member| mix(member.device, self.salt, u32::from(self.round) | ROUNDS);
        let mut orders: Vec<u32> = self.panel.iter().map(order).collect();
        orders.sort_unstable();
        let last = orders.get(EXPLORERS - 1).or(orders.last()).copied().unwrap_or(0);
        self.panel.iter().filter(move |member| order(member) <= last)
    }

    fn voices_on(&self, gap_s: u16, since_s: u32) -> Voices {
        let opinions = self.panel.iter().map(|member| member.opinion(gap_s, since_s));
        opinions.fold(Voices::default(), Voices::with)
    }
}

impl Member {
    fn new(device: u32) -> Self {
        Self { device, heard_s: 0, survived_s: 0, survived_at_s: 0, died_s: 0, died_at_s: 0 }
    }

    fn heard(&mut self, report: Report, now_s: u32) {
        self.heard_s = now_s;
        if let Some(died_s) = report.died_s {
            (self.died_s, self.died_at_s) = (died_s, now_s);
            if self.survived_s >= died_s {
                self.survived_s = 0;
            }
        }
        let Some(survived_s) = report.survived_s else { return };
        if survived_s >= self.died_s {
            self.died_s = 0;
        }
        let is_stale = self.survived_at_s.saturating_add(FRESH_S) < now_s;
        if survived_s >= self.survived_s || is_stale {
            (self.survived_s, self.survived_at_s) = (survived_s, now_s);
        }
    }

    /// Whether it survives a gap; `None` if nothing that was reported since then says so.
    fn opinion(&self, gap_s: u16, since_s: u32) -> Option<bool> {
        if self.died_s > 0 && self.died_s <= gap_s && self.died_at_s >= since_s {
            return Some(false);
        }
        let is_borne = self.survived_s.saturating_add(CLOCK_S) >= gap_s && self.survived_s > 0;
        (is_borne && self.survived_at_s >= since_s).then_some(true)
    }
}

impl Voices {
    fn with(mut self, opinion: Option<bool>) -> Self {
        match opinion {
            Some(true) => self.pro += 1,
            Some(false) => self.con += 1,
            None => {}
        }
        self
    }
}

/// A hash that a device cannot foresee, because its number comes from a keyed one.
fn mix(device: u32, salt: u32, time: u32) -> u32 {
    let mut z = (u64::from(device) << 32 | u64::from(salt)) ^ u64::from(time).wrapping_mul(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 32) as u32
}

/// What the documented bound of a network's memory says.
const _: () = assert!(size_of::<Member>() * PANEL_MAX + size_of::<Network>() <= 720);
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// Keeps the hashes of rounds apart from those of days.
const ROUNDS: u32 = 1 << 31;
const DAY_S: u32 = 86_400;
/// Who is silent for so long leaves the panel.
const MEMORY_S: u32 = DAY_S;
/// How long an opinion on the level counts: longer than a device needs for its next report.
const FRESH_S: u32 = 2 * 3_600;
/// A round without a result gives way to other explorers.
const ROUND_S: u32 = 2 * 3_600;
/// The first rest between two searches, and the longest; each is four times the one before.
const HOLD_MIN_S: u32 = 1_800;
const HOLD_MAX_S: u32 = 7 * DAY_S;
/// So many deaths are needed for any conclusion.
const DEATHS_MIN: usize = 3;
/// So many explorers must survive.
const SURVIVALS_MIN: usize = 6;
/// Whole seconds on two clocks may differ by so much.
const CLOCK_S: u16 = 2;
