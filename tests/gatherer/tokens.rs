//! Whatever position a device states, it ends with what the alias holds.

use std::collections::BTreeMap;

use super::{At, Gathered, Gatherer, Items, Scene, key_of};
use crate::dice::Dice;

/// Why deltas or chunks did not continue where the device said it was, by the reason's number;
/// `None`: they did.
pub type Told = BTreeMap<Option<i32>, usize>;

/// A place where a device was, with what it had there.
type Stand = (At, Items);

/// States so many positions: true ones, forged ones, old ones, and what is none.
pub async fn any_token(tokens: u64, seed: u64) -> Told {
    let mut dice = Dice::new(seed);
    let mut scene = Scene::new().await;
    let mut device = Gatherer::bound(&scene).await;
    let mut stands = Vec::new();
    for part in 0..3 {
        for n in 0..40 {
            match dice.below(8) {
                0 => scene.message(&format!("m{n}")).await,
                1 => scene.delete(&format!("k{}", dice.below(12))).await,
                _ => scene.set(&format!("k{}", dice.below(12)), &format!("{part} {n}")).await,
            }
            device.catch_up(&scene).await;
            stands.push(device.stand());
        }
        if part < 2 {
            scene = scene.later(5).await;
            device.was_away();
        }
    }
    let holds = scene.items().await;
    let mut told = Told::new();
    for _ in 0..tokens {
        let (stated, gathered, items) = token(&mut dice, &stands);
        let what = format!("{stated:?}, {gathered:?}");
        device.stands_at(stated, gathered, items);
        let reason = device.arrive(&scene, &what).await;
        assert_eq!(device.items, holds, "seed {seed}: {what}");
        *told.entry(reason).or_default() += 1;
    }
    told
}

/// What is stated of the alias's queue and of a snapshot of it, and what the device holds then.
fn token(dice: &mut Dice, stands: &[Stand]) -> (Option<At>, Option<Gathered>, Items) {
    let (mut at, mut items) = stands[dice.below(stands.len() as u64) as usize].clone();
    match dice.below(10) {
        0..3 => {}
        3 => at.tag = None,
        4 => at.tag = Some(random_bytes(dice, 8)),
        what => {
            if what > 5 {
                at.epoch = [0, 1, 1, 1, 2, i32::MAX][dice.below(6) as usize];
            }
            at.seq = match dice.below(8) {
                0 => i64::MAX,
                1 => 0,
                _ => dice.below(stands.len() as u64 + 9) as i64,
            };
            // Of what is held no more nobody can say which epoch it had; only digests tell then.
            let is_true = |(one, _): &&Stand| one.seq == at.seq && one.epoch >= at.epoch;
            items = match stands.iter().find(is_true) {
                Some((_, items)) => items.clone(),
                None if at.seq == 0 => Items::new(),
                None => ghosts(),
            };
        }
    }
    if dice.below(20) == 0 {
        return (None, None, ghosts());
    }
    let gathered = (dice.below(6) == 0).then(|| {
        let missing = match dice.below(2) {
            0 => Ok(random_bytes(dice, 16)),
            _ => Err((dice.below(200) as i64, dice.below(200) as i64)),
        };
        let at = At { seq: dice.below(200) as i64, tag: Some(random_bytes(dice, 8)), ..at.clone() };
        Gathered { tag: at.tag.clone(), at, items: ghosts(), missing }
    });
    (Some(at), gathered, items)
}

fn ghosts() -> Items {
    Items::from([("nobody's".to_owned(), (3, b"\"a ghost\"".to_vec()))])
}

fn random_bytes(dice: &mut Dice, max: u64) -> Vec<u8> {
    (0..=dice.below(max)).map(|_| dice.below(256) as u8).collect()
}

impl Gatherer {
    /// Where it is in the alias's queue.
    fn stand(&self) -> Stand {
        let is_alias = |at: &&At| at.queue.name.is_some();
        let at = self.held.values().find(is_alias).expect("it follows the alias");
        (at.clone(), self.items.clone())
    }

    fn stands_at(&mut self, stated: Option<At>, gathered: Option<Gathered>, items: Items) {
        self.held.retain(|_, at| at.queue.name.is_none());
        self.held.extend(stated.map(|at| (key_of(&at.queue), at)));
        (self.gathered, self.pretends, self.items) = (None, gathered, items);
        self.chunks.clear();
        self.jumps.clear();
    }

    /// Visits until nothing more comes.
    async fn arrive(&mut self, scene: &Scene, what: &str) -> Option<i32> {
        let mut visits = 0;
        while self.visit(scene, None).await > 0 {
            visits += 1;
            assert!(visits < 20, "the answers do not end: {what}");
        }
        let begun = self.reasons().first().copied();
        begun.or(self.jumps.first().copied()).map(|reason| reason.0)
    }
}
