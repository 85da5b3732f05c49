//! What must be true at rest.

use std::collections::BTreeMap;

use carillon::{
    longterm::LongTerm,
    queue::{
        collection::change::{Kind, Origin},
        entry::{Body, Change, Entry},
        position::Seq,
        reader::Take,
    },
};
use carillon_sdk::collections::Outcome;

use crate::{
    phone::{ALIAS, Edit, Phone},
    world::World,
};

/// Items with the changes that made them.
pub type Truth = BTreeMap<(String, String), (u64, String)>;

const ALL: Take = Take { entries: usize::MAX, bytes: usize::MAX };

impl World {
    /// All that the gateway accepted for the alias, in order.
    async fn history(&self) -> Vec<Entry> {
        let past = self.longterm.history(self.queue().id(), Seq(0), ALL).await.unwrap();
        past.into_iter().map(|past| past.entry).collect()
    }

    /// The items of the gateway, as an app server reads them.
    async fn snapshot(&self) -> Truth {
        let alias = ALIAS.parse().unwrap();
        let page = self.service().items(&self.app, &alias, None, 10_000).await.unwrap();
        let items = page.items.into_iter().map(|item| {
            let name = (item.collection.to_string(), item.key.to_string());
            (name, (item.seq.0, text(&item.value.bytes)))
        });
        items.collect()
    }

    pub async fn is_settled(&self) -> bool {
        let truth = self.snapshot().await;
        let folded = self.longterm.position(self.queue().id()).await.unwrap();
        let items = items_of(&truth);
        // What has no changes yet is not folded.
        folded.map_or(truth.is_empty(), |at| at.seq.0 == self.head())
            && self.phones.iter().all(|phone| {
                phone.held() == truth && phone.pending() == 0 && phone.visible() == items
            })
            && self.missing_messages().is_empty()
    }

    fn head(&self) -> u64 {
        self.service().head(&self.queue().id()).unwrap().seq.0
    }

    fn missing_messages(&self) -> Vec<String> {
        // What retention dropped is gone.
        if self.has_aged {
            return Vec::new();
        }
        let sent = self.answers.lock().unwrap().messages.clone();
        let missing = |phone: &Phone| {
            let got = phone.me.messages.lock().unwrap();
            let missing: Vec<_> = sent.difference(&got).copied().collect();
            let name = &phone.me.name;
            (!missing.is_empty()).then(|| format!("{name} did not get the messages {missing:?}"))
        };
        // Who comes later is owed only what is sent then.
        self.phones.iter().take(2).filter_map(missing).collect()
    }

    /// Every violation that can be seen at rest.
    pub async fn check(&mut self) -> Vec<String> {
        let (history, truth) = (self.history().await, self.snapshot().await);
        let mut wrong = self.missing_messages();
        let mut judge = |is_right: bool, what: &dyn Fn() -> String| {
            if !is_right {
                wrong.push(what());
            }
        };
        // It begins with the first change.
        let first = history.first().map_or(self.head() + 1, |entry| entry.position.seq.0);
        let seqs = history.iter().map(|entry| entry.position.seq.0);
        judge(seqs.eq(first..=self.head()), &|| "the history has a hole".into());
        let folded = fold(&history);
        judge(folded == truth, &|| format!("history makes {folded:?}, read is {truth:?}"));
        for (seq, text) in &self.answers.lock().unwrap().changes {
            let kept = history.get((seq.0 - first) as usize).and_then(change_of);
            let kept = kept.map(|change| self::text(&change.value.bytes));
            judge(kept.as_ref() == Some(text), &|| format!("{seq:?} was {text}, is {kept:?}"));
        }
        let seen = self.ether.watch.seen.lock().unwrap().clone();
        judge(seen.damages > 0 || seen.repairs == 0, &|| "what was whole was repaired".into());
        for (origin, count) in origins_of(&history) {
            judge(count == 1, &|| format!("{origin} made {count} changes"));
        }
        for phone in &mut self.phones {
            wrong.extend(judge_phone(phone, &truth, &history));
            phone.check_heard();
        }
        for phone in &mut self.phones {
            wrong.append(&mut phone.violations);
            self.ether.watch.seen.lock().unwrap().told += phone.told;
        }
        wrong
    }
}

fn judge_phone(phone: &Phone, truth: &Truth, history: &[Entry]) -> Vec<String> {
    let (held, visible, items) = (phone.held(), phone.visible(), items_of(truth));
    let mut wrong = Vec::new();
    if held != *truth {
        wrong.push(format!("holds {held:?}, right is {truth:?}"));
    }
    if visible != items {
        wrong.push(format!("shows {visible:?}, right is {items:?}"));
    }
    if phone.pending() > 0 {
        wrong.push(format!("has {} edits left", phone.pending()));
    }
    for (number, edit) in &phone.edits {
        let origin = Some((phone.regid.to_string(), *number));
        let mut changes = history.iter().filter_map(change_of);
        let is_there = changes.any(|change| origin_of(change) == origin);
        // Nobody but the rule may drop an edit; merged items have the stamp of the newest maker.
        let must = match (&edit.outcome, edit.collection.as_str()) {
            (Some(Outcome::Lost | Outcome::Invalid(_)), _) => Some(false),
            // A delete that knew a copy and not the item takes the copy away, which has no maker.
            (Some(Outcome::Applied), "keep_both") if edit.text.is_none() => None,
            (Some(Outcome::Applied | Outcome::Copied), _) => Some(true),
            (None, "keep_both") if edit.text.is_some() => Some(true),
            (Some(Outcome::Merged) | None, _) => None,
        };
        if must.is_some_and(|must| must != is_there) {
            let Edit { collection, text, outcome } = edit;
            wrong.push(format!("edit {number} of {collection}, {text:?}: {outcome:?}"));
        }
    }
    wrong.into_iter().map(|what| format!("{} {what}", phone.me.name)).collect()
}

fn change_of(entry: &Entry) -> Option<&Change> {
    match &entry.body {
        Body::Change(change) => Some(change),
        _ => None,
    }
}

fn origin_of(change: &Change) -> Option<(String, u64)> {
    match change.stamp.origin {
        Origin::Device { regid, cseq } => Some((regid.to_string(), cseq)),
        Origin::Server => None,
    }
}

/// How many changes each edit and each value led to. Copies and merged items have the stamps of
/// what they are made of.
fn origins_of(history: &[Entry]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for change in history.iter().filter_map(change_of) {
        if ["merge", "keep_both"].contains(&change.collection.as_str()) {
            continue;
        }
        let value = (!change.value.bytes.is_empty()).then(|| text(&change.value.bytes));
        let origin = origin_of(change).map(|origin| format!("{origin:?}"));
        for of in origin.into_iter().chain(value) {
            *counts.entry(of).or_default() += 1;
        }
    }
    counts
}

fn fold(history: &[Entry]) -> Truth {
    let mut truth = Truth::new();
    for entry in history {
        let Some(change) = change_of(entry) else { continue };
        let name = (change.collection.to_string(), change.key.to_string());
        match change.kind {
            Kind::New | Kind::Update => {
                truth.insert(name, (entry.position.seq.0, text(&change.value.bytes)));
            }
            Kind::Delete => drop(truth.remove(&name)),
        }
    }
    truth
}

fn items_of(truth: &Truth) -> BTreeMap<(String, String), String> {
    truth.iter().map(|(name, (_, text))| (name.clone(), text.clone())).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
