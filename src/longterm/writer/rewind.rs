//! A queue that lost entries is taken back in the fold too.
//!
//! An item that the lost entries changed becomes what it was before, as history says or the queue
//! still holds. Where neither knows that any more, nobody could read the item again: then the lost
//! change is made again, as an entry behind what is left.

use std::{collections::BTreeMap, sync::Arc};

use super::{READ, StorageWriter};
use crate::{
    base::ids::QueueId,
    longterm::{Error, Name, Past, Step},
    queue::{
        collection::{
            append::Ask,
            change::{Kind, Origin, Stamp, Value},
            item::{Item, item_key},
            rule::Rule,
        },
        entry::{Body, Change},
        position::{Position, Seq},
        reader::Take,
        store::{Space, decode},
    },
};

/// What became of an item by entries that were lost; no value: it was deleted.
type Lost = BTreeMap<Name, (Option<Value>, Stamp)>;

impl StorageWriter {
    /// Takes a queue back to a position.
    pub(super) async fn rewind(&self, queue: &QueueId, to: Position) -> Result<(), Error> {
        let (mut known, mut lost) = self.past(queue, to.seq).await?;
        self.lost_items(queue, to.seq, &mut lost).await?;
        let mut again = Vec::new();
        for (name, made) in &lost {
            if known.contains_key(name) {
                continue;
            }
            let Some(at) = self.live_at(queue, name, to)? else { continue };
            match self.held(queue, name, at)? {
                Some(step) => drop(known.insert(name.clone(), step)),
                None => again.push(ask(name, made, to)),
            }
        }
        if !again.is_empty() {
            tracing::error!(%queue, items = again.len(), "of items that lost a change nothing older is known, making the changes again");
            // Before what is lost is forgotten: whoever dies in between begins anew.
            (self.again)(*queue, again).await?;
        }
        known.retain(|name, _| lost.contains_key(name));
        self.longterm.rewind(*queue, to, known.into_values().collect()).await
    }

    /// What history knows: of each item the newest change up to `to`, and the newest behind it.
    async fn past(&self, queue: &QueueId, to: Seq) -> Result<(BTreeMap<Name, Step>, Lost), Error> {
        let (mut known, mut lost) = (BTreeMap::new(), Lost::new());
        let mut after = Seq(0);
        loop {
            let page = self.longterm.history(*queue, after, READ).await?;
            let Some(last) = page.last() else { return Ok((known, lost)) };
            after = last.entry.position.seq;
            for Past { day, entry } in page {
                let Body::Change(change) = &entry.body else { continue };
                let name = name_of(change);
                if entry.position.seq > to {
                    let value = (change.kind != Kind::Delete).then(|| change.value.clone());
                    lost.insert(name, (value, change.stamp));
                } else {
                    known.insert(name, Step { day, entry: Arc::new(entry) });
                }
            }
        }
    }

    /// Adds items that changed behind `to` so long ago that history has forgotten it.
    async fn lost_items(&self, queue: &QueueId, to: Seq, lost: &mut Lost) -> Result<(), Error> {
        let mut before = None;
        loop {
            let page = self.longterm.newest(*queue, before, READ).await?;
            let Some(last) = page.last() else { return Ok(()) };
            before = Some(last.position.seq);
            for item in page {
                if item.position.seq <= to {
                    return Ok(());
                }
                lost.entry(item.name).or_insert((Some(item.value), item.stamp));
            }
        }
    }

    /// The change that made an item what the queue has it for, if it lives and did not change
    /// behind `to`.
    fn live_at(
        &self,
        queue: &QueueId,
        name: &Name,
        to: Position,
    ) -> Result<Option<Position>, Error> {
        let key = item_key(queue, &name.collection, &name.key);
        let item = self.reader.store().get(Space::Items, &key)?;
        let item: Option<Item> = item.map(|bytes| decode(&bytes)).transpose()?;
        let live = item.filter(|item| !item.head.is_deleted && item.head.seq <= to.seq);
        Ok(live.map(|item| item.position()))
    }

    /// That change, if the queue still holds it.
    fn held(&self, queue: &QueueId, name: &Name, at: Position) -> Result<Option<Step>, Error> {
        let read = self.reader.read(queue, at.seq.prev(), Take { entries: 1, bytes: 0 })?;
        let found = read.into_iter().find(|entry| match &entry.body {
            Body::Change(change) => entry.position == at && name_of(change) == *name,
            _ => false,
        });
        let day = self.reader.log(queue)?.day_at(at.seq);
        Ok(found.zip(day).map(|(entry, day)| Step { day, entry }))
    }
}

/// A lost change as a new one, made by who stood at `to`.
fn ask(name: &Name, (value, stamp): &(Option<Value>, Stamp), to: Position) -> Ask {
    Ask {
        collection: name.collection.clone(),
        // It says what the whole item is, whatever the rule of its collection made that of.
        rule: Rule::Newest,
        key: name.key.clone(),
        value: value.clone(),
        base: Some(to),
        // Its maker's number of it may be another edit's by now.
        stamp: Stamp { origin: Origin::Server, ..*stamp },
    }
}

fn name_of(change: &Change) -> Name {
    Name { collection: change.collection.clone(), key: change.key.clone() }
}
