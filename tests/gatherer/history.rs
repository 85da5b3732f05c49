//! Histories from a seed.

use std::{collections::BTreeMap, time::Duration};

use carillon::config::Config;
use carillon_wire::idl;

use super::{Gatherer, Scene};
use crate::dice::Dice;

/// What was seen to happen, so that nobody believes a test in which nothing did.
#[derive(Debug, Default)]
pub struct Seen {
    pub histories: usize,
    snapshots: BTreeMap<i32, usize>,
    chunks: usize,
    switches: usize,
    digests: usize,
    messages: usize,
    /// Chunks that were followed by something else than the next one on the same visit.
    cuts: usize,
}

impl Seen {
    pub fn is_enough(&self) -> bool {
        let has = |reason: idl::JumpReason| self.snapshots.contains_key(&reason.0);
        has(idl::JumpReason::NEW)
            && has(idl::JumpReason::OVERFLOW)
            && (has(idl::JumpReason::SMALLER) || self.histories < 9)
            && self.cuts > 0
            && self.digests > 0
            && self.messages > 0
    }

    fn add(&mut self, device: &Gatherer) {
        for reason in device.reasons() {
            *self.snapshots.entry(reason.0).or_default() += 1;
        }
        self.chunks += device.chunks.len();
        self.switches += device.switches;
        self.digests += device.digests;
        self.messages += device.messages.len();
    }
}

/// Changes, messages, visits that are cut, days that pass: at last all hold the same.
pub async fn history(seed: u64, seen: &mut Seen) {
    let mut dice = Dice::new(seed);
    let mut config = Config::default();
    config.edge.window_per_registration = 1 + dice.below(3) as u16;
    config.edge.frame_entries_max = 1 + dice.below(8) as usize;
    let (mut scene, mut numbers) = (Scene::with(config).await, 0..);
    let mut devices: Vec<Gatherer> = Vec::new();
    for _ in 0..3 {
        for _ in 0..60 {
            let n = numbers.next().unwrap();
            match dice.below(24) {
                0..8 => scene.set(&format!("k{}", dice.below(12)), &text(&mut dice, n)).await,
                8..10 => scene.delete(&format!("k{}", dice.below(12))).await,
                10 => scene.message(&format!("m{n}")).await,
                11 if devices.len() < 5 => devices.push(Gatherer::bound(&scene).await),
                12 if dice.below(4) == 0 => {
                    for k in 0..80 {
                        scene.set(&format!("k{}", k % 12), &text(&mut dice, n)).await;
                    }
                }
                11..14 => tokio::time::sleep(Duration::from_millis(3)).await,
                _ if devices.is_empty() => {}
                what => {
                    let who = dice.below(devices.len() as u64) as usize;
                    let cut = (what < 20).then(|| dice.below(3) as usize);
                    let was_gathering = devices[who].is_gathering();
                    // While chunks are read, items change.
                    let changing = async {
                        for _ in 0..dice.below(3) {
                            tokio::task::yield_now().await;
                            scene.set(&format!("k{}", dice.below(12)), &text(&mut dice, n)).await;
                        }
                    };
                    futures_util::future::join(devices[who].visit(&scene, cut), changing).await;
                    seen.cuts += usize::from(was_gathering && devices[who].is_gathering());
                }
            }
        }
        for device in devices.iter_mut().filter(|_| dice.below(3) == 0) {
            device.catch_up(&scene).await;
            device.check(&scene).await;
        }
        let days = dice.below(2) * 20;
        scene = scene.later(days).await;
        devices.iter_mut().filter(|_| days > 0).for_each(Gatherer::was_away);
    }
    for mut device in devices {
        device.catch_up(&scene).await;
        device.check(&scene).await;
        device.check_messages(&scene);
        seen.add(&device);
    }
    seen.histories += 1;
}

fn text(dice: &mut Dice, n: u64) -> String {
    format!("{n} {}", "x".repeat([5, 200, 30_000, 60_000][dice.below(4) as usize]))
}
