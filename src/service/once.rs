//! Sends that happen once, however often they are asked for (`Idempotency-Key`).
//!
//! The answer to an accepted message is kept under its key for a day, and becomes durable with
//! the message itself: no crash can leave one without the other. A refused message keeps nothing,
//! because nothing has happened. While a call runs, another one with its key is refused.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::{
    Error, Service,
    collections::Changed,
    send::{Send, Sent},
};
use crate::{
    base::{
        clock::{DAY_MS, day_of},
        ids::{Alias, AppId},
    },
    queue::{
        collection::append::Ask,
        store::{Batch, Range, Space, decode, encode},
    },
};

/// For how long an answer is kept, in milliseconds.
const KEPT_MS: u64 = DAY_MS;
/// Answers of one call: the messages of a batch.
const ANSWERS_MAX: usize = 1_000;

/// A call that is to happen once: its app's key for it, and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    name: Name,
    fingerprint: [u8; 32],
}

/// Of an app and a key.
type Name = [u8; 20];

impl Once {
    /// `asked` is everything that makes the call what it is.
    pub fn new(app: &AppId, key: &str, asked: &[&[u8]]) -> Self {
        let name = hash(&[app.as_str().as_bytes(), &[0], key.as_bytes()]);
        let mut short = [0; 20];
        short.copy_from_slice(&name[..20]);
        Self { name: short, fingerprint: hash(asked) }
    }

    fn keep(&self, at: u16, answer: Vec<u8>, now_ms: u64, day: u32) -> Batch {
        let kept = Kept { at_ms: now_ms, fingerprint: self.fingerprint, answer };
        let mut batch = Batch::default();
        batch.put(Space::Once(day), self.key(at), encode(&kept));
        batch
    }

    fn key(&self, at: u16) -> Vec<u8> {
        [&self.name[..], &at.to_be_bytes()].concat()
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// What is stored under (key, place in the call).
#[derive(Serialize, Deserialize)]
struct Kept {
    at_ms: u64,
    fingerprint: [u8; 32],
    answer: Vec<u8>,
}

/// Kept answers by the place in the call.
type Answers = HashMap<u16, Vec<u8>>;

/// How what is to happen once was answered.
#[derive(Debug)]
pub enum Answer<T = Sent> {
    /// It happened now.
    Fresh(T),
    /// It happened before; the answer of then.
    Kept(Vec<u8>),
}

/// The calls that run now. As many as the doors let in at once.
#[derive(Default)]
pub struct Running(Mutex<HashSet<Name>>);

impl Running {
    fn begin(&self, once: &Once) -> Result<Turn<'_>, Error> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match names.insert(once.name) {
            true => Ok(Turn { running: self, name: once.name }),
            false => Err(Error::KeyInUse),
        }
    }
}

/// The right to be the only call with its key.
struct Turn<'a> {
    running: &'a Running,
    name: Name,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut names = self.running.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&self.name);
    }
}

impl Service {
    /// Sends a message unless that has happened; `answer` is kept with it.
    ///
    /// # Errors
    /// [`Error::KeyInUse`] while the same call runs, [`Error::KeyReused`] if the key was used for
    /// another one within a day, and those of [`Service::send`].
    pub async fn send_once(
        self: &Arc<Self>,
        app: &AppId,
        send: Send,
        once: &Once,
        answer: impl FnOnce(&Sent) -> Vec<u8> + std::marker::Send,
    ) -> Result<Answer, Error> {
        // What is only checked happens as often as it is asked for.
        if send.is_dry_run {
            return Ok(Answer::Fresh(self.send(app, send).await?));
        }
        let (_turn, mut kept) = self.begin(once, 1)?;
        if let Some(kept) = kept.remove(&0) {
            return Ok(Answer::Kept(kept));
        }
        let keep = |sent: &Sent| self.keep(once, 0, answer(sent));
        Ok(Answer::Fresh(self.send_with(app, send, keep).await?))
    }

    /// Sends those messages that were not accepted under this key before: a call that was cut in
    /// the middle is completed. Each has its place in the call, below 1000.
    ///
    /// # Errors
    /// Of the call: [`Error::KeyInUse`], [`Error::KeyReused`], [`Error::Unavailable`]. Of a
    /// message: those of [`Service::send`].
    pub async fn send_all_once(
        self: &Arc<Self>,
        app: &AppId,
        sends: Vec<(u16, Send)>,
        once: &Once,
        answer: impl Fn(&Sent) -> Vec<u8> + std::marker::Send + std::marker::Sync,
    ) -> Result<Vec<Result<Answer, Error>>, Error> {
        // None that could be read is no dry run: the key may have its answer, or be another body's.
        if !sends.is_empty() && sends.iter().all(|(_, send)| send.is_dry_run) {
            let sends = sends.into_iter().map(|(_, send)| send).collect();
            let sent = self.send_all(app, sends).await;
            return Ok(sent.into_iter().map(|sent| sent.map(Answer::Fresh)).collect());
        }
        let real = sends.iter().filter(|(_, send)| !send.is_dry_run).count();
        let (_turn, mut kept) = self.begin(once, real)?;
        let (mut places, mut fresh) = (Vec::new(), Vec::new());
        let mut results: Vec<Option<Result<Answer, Error>>> = Vec::with_capacity(sends.len());
        for (at, send) in sends {
            let before = kept.remove(&at);
            if before.is_none() {
                places.push((results.len(), at));
                fresh.push(send);
            }
            results.push(before.map(|answer| Ok(Answer::Kept(answer))));
        }
        let keep = |n: usize, sent: &Sent| self.keep(once, places[n].1, answer(sent));
        let sent = self.send_all_with(app, fresh, keep).await;
        for ((place, _), sent) in places.iter().zip(sent) {
            results[*place] = Some(sent.map(Answer::Fresh));
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Changes items of an alias unless that has happened; `answer` is kept with the changes.
    ///
    /// # Errors
    /// As [`Service::send_once`], and those of [`Service::change`].
    pub async fn change_once(
        &self,
        app: &AppId,
        alias: &Alias,
        asks: Vec<Ask>,
        once: &Once,
        answer: impl FnOnce(&[Changed]) -> Vec<u8> + Clone + std::marker::Send + 'static,
    ) -> Result<Answer<Vec<Changed>>, Error> {
        let _turn = self.running.begin(once)?;
        if let Some(kept) = self.kept(once)?.remove(&0) {
            return Ok(Answer::Kept(kept));
        }
        let (once, now_ms, day) = (once.clone(), self.now_ms(), self.day());
        let keep = move |done: &[Changed]| once.keep(0, answer(done), now_ms, day);
        Ok(Answer::Fresh(self.change_with(app, alias, asks, keep).await?))
    }

    /// The turn of a call of so many messages, and what is kept under its key. A refusal is counted.
    fn begin(&self, once: &Once, messages: usize) -> Result<(Turn<'_>, Answers), Error> {
        let turn = self.running.begin(once);
        let begun = turn.and_then(|turn| Ok((turn, self.kept(once)?)));
        if let Err(error) = &begun {
            self.metrics.sends.unsent.of(error.unsent()).increment(messages as u64);
        }
        begun
    }

    /// The answers that are kept under a key, by the place in the call.
    fn kept(&self, once: &Once) -> Result<Answers, Error> {
        let (now_ms, today) = (self.now_ms(), self.day());
        let mut answers = HashMap::new();
        for day in [today.saturating_sub(1), today] {
            let range = Range::prefix(&once.name);
            for (key, bytes) in self.router.scan(Space::Once(day), &range, ANSWERS_MAX)? {
                let kept: Kept = decode(&bytes)?;
                if kept.at_ms.saturating_add(KEPT_MS) <= now_ms {
                    continue;
                }
                if kept.fingerprint != once.fingerprint {
                    return Err(Error::KeyReused);
                }
                if let Some((_, at)) = key.split_last_chunk::<2>() {
                    answers.insert(u16::from_be_bytes(*at), kept.answer);
                }
            }
        }
        if !answers.is_empty() {
            self.metrics.sends.replays.increment(1);
        }
        Ok(answers)
    }

    fn keep(&self, once: &Once, at: u16, answer: Vec<u8>) -> Batch {
        once.keep(at, answer, self.now_ms(), self.day())
    }

    /// Today, or the oldest day that is held, if the clock was set back behind it.
    fn day(&self) -> u32 {
        day_of(self.now_ms()).max(self.router.oldest_day())
    }
}
