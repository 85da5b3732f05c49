//! Reading what an alias's collections hold: changes after a position, and all items.
//!
//! Both come in pages, and each page goes on where the one before ended, or says that it was the
//! last. Values are found by `Service::value_of` alone.

use std::{collections::HashSet, fmt, str::FromStr, sync::Arc};

use super::{
    Error, Service,
    deliver::{Claim, Following, Take},
    judge::Verdict,
};
use crate::{
    base::ids::{Alias, AppId, CollectionName, QueueId, QueueName, base32, from_base32},
    longterm::Name,
    queue::{
        collection::{
            change::{Hlc, Value},
            item::{Item, item_key, item_of},
        },
        entry::{Body, Entry},
        plan::{Jump, Stand, plan},
        position::{Epoch, Position, Seq},
        store::{self, Range, Space, decode},
    },
};

/// Changes of an alias's items after a position.
#[derive(Clone, Debug)]
pub struct ChangesPage {
    /// They lead here.
    pub to: Position,
    /// There are more.
    pub is_more: bool,
    /// Of each item the newest; what came and went is not among them.
    pub entries: Vec<Arc<Entry>>,
}

/// Items of an alias.
#[derive(Clone, Debug)]
pub struct ItemsPage {
    /// Where the changes begin that may be missing in them.
    pub at: Position,
    /// The items.
    pub items: Vec<ItemView>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<Cursor>,
}

/// An item with its value.
#[derive(Clone, Debug)]
pub struct ItemView {
    /// Its collection.
    pub collection: CollectionName,
    /// Its key.
    pub key: Box<str>,
    /// The change that made it so.
    pub seq: Seq,
    /// What it is.
    pub value: Value,
    /// When that change was made.
    pub clock: Hlc,
}

/// A place among the items of an alias. Its text says nothing to who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    at: Position,
    /// The collection and the key of the last item before it, as they are stored.
    after: Vec<u8>,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (epoch, seq) = (self.at.epoch.0.to_be_bytes(), self.at.seq.0.to_be_bytes());
        f.write_str(&base32(&[&epoch[..], &seq, &self.after].concat()))
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let rule = "the `next` of the answer before";
        let invalid = || Error::Invalid { field: "after", rule: rule.to_owned() };
        let bytes = from_base32(text).ok_or_else(invalid)?;
        let (epoch, rest) = bytes.split_first_chunk().ok_or_else(invalid)?;
        let (seq, after) = rest.split_first_chunk().ok_or_else(invalid)?;
        let epoch = Epoch(u32::from_be_bytes(*epoch));
        let seq = Seq(u64::from_be_bytes(*seq));
        Ok(Self { at: Position { epoch, seq }, after: after.to_vec() })
    }
}

impl Service {
    /// At most `limit` changes of an alias's items after a position, from history where the queue
    /// does not hold them any more.
    ///
    /// # Errors
    /// [`Error::Gone`] if what followed the position is in history no more, or was lost;
    /// [`Error::NeedsPolicy`], [`Error::Unavailable`].
    pub async fn changes_after(
        &self,
        app: &AppId,
        alias: &Alias,
        at: Position,
        limit: usize,
    ) -> Result<ChangesPage, Error> {
        self.collections(app)?;
        let queue = QueueName::Alias(app.clone(), alias.clone());
        let id = queue.id();
        let log = self.router.log(&id)?;
        let since = Position { seq: Seq(0), ..at };
        let claim = Claim::At { position: at, is_genuine: false };
        let stand = Stand { claim, stored: None, since };
        match plan(&log, self.router.oldest_day(), stand).jump {
            None => {}
            Some(Jump::Overflow) if self.is_in_history(&id, at).await? => {}
            Some(_) => return Err(Error::Gone),
        }
        let all = [Following { queue: queue.into(), since, control: Seq(0) }];
        let (mut to, mut entries, mut bytes, mut looked_at) = (at, Vec::new(), 0, 0);
        while entries.len() < limit && bytes < PAGE_BYTES && looked_at < LOOK_MAX {
            let take = Take { entries: limit - entries.len(), bytes: PAGE_BYTES - bytes };
            let read = self.entries_after(&id, to.seq, take).await?;
            let Some(last) = read.last() else { break };
            (to, looked_at) = (last.position, looked_at + read.len());
            for entry in read.into_iter().filter(|entry| matches!(entry.body, Body::Change(_))) {
                if self.judge(&entry, &all, 0, 0)? == Verdict::Deliver {
                    bytes += entry.body.bytes();
                    entries.push(entry);
                }
            }
        }
        let is_more = self.router.head(&id)?.seq > to.seq;
        Ok(ChangesPage { to, is_more, entries: coalesced(at.seq, entries) })
    }

    /// Whether history knows the entry of a position. Before the first entry there is none.
    async fn is_in_history(&self, queue: &QueueId, at: Position) -> Result<bool, Error> {
        if at.seq == Seq(0) {
            return Ok(true);
        }
        let take = Take { entries: 1, bytes: 0 };
        let past = self.storage.longterm.history(*queue, at.seq.prev(), take).await?;
        Ok(past.first().is_some_and(|first| first.entry.position == at))
    }

    /// The entries right after a number: of the queue, or of history if that has dropped them.
    async fn entries_after(
        &self,
        queue: &QueueId,
        after: Seq,
        take: Take,
    ) -> Result<Vec<Arc<Entry>>, Error> {
        let head = self.router.head(queue)?.seq;
        let read = self.router.read(queue, after, take)?;
        let begin = read.first().map_or(head.next(), |first| first.position.seq);
        if begin <= after.next() {
            return Ok(read);
        }
        let past = self.storage.longterm.history(*queue, after, take).await?;
        match past.first() {
            Some(first) if first.entry.position.seq == after.next() => {
                Ok(past.into_iter().map(|past| Arc::new(past.entry)).collect())
            }
            Some(_) | None => Err(Error::Gone),
        }
    }

    /// At most `limit` items of an alias, as they are at the position that all pages state; one that
    /// changed since is left out. The changes after it make of them what the alias holds.
    ///
    /// # Errors
    /// [`Error::NeedsPolicy`], [`Error::Unavailable`].
    pub async fn items(
        &self,
        app: &AppId,
        alias: &Alias,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<ItemsPage, Error> {
        self.collections(app)?;
        let queue = QueueName::Alias(app.clone(), alias.clone()).id();
        // Before the first item is read: what changes from now on is behind it.
        let mut cursor = match after {
            Some(cursor) => cursor,
            None => Cursor { at: self.router.head(&queue)?, after: Vec::new() },
        };
        let at = cursor.at;
        let (mut items, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
        while items.len() < limit && bytes < PAGE_BYTES && looked_at < LOOK_MAX {
            let mut from = [queue.as_bytes(), &cursor.after].concat();
            if !cursor.after.is_empty() {
                from.push(0);
            }
            let range = Range::prefix_after(queue.as_bytes(), from);
            let read = self.router.scan(Space::Items, &range, limit - items.len())?;
            if read.is_empty() {
                return Ok(ItemsPage { at, items, next: None });
            }
            looked_at += read.len();
            for (stored_key, item) in read {
                cursor.after = stored_key[size_of::<QueueId>()..].to_vec();
                let item: Item = decode(&item)?;
                if let Some(view) = self.view(&queue, at, &stored_key, &item).await? {
                    bytes += view.value.bytes.len();
                    items.push(view);
                }
            }
        }
        Ok(ItemsPage { at, items, next: Some(cursor) })
    }

    async fn view(
        &self,
        queue: &QueueId,
        at: Position,
        stored_key: &[u8],
        item: &Item,
    ) -> Result<Option<ItemView>, Error> {
        // What changed since then is brought by the changes; who had it from here, too, would
        // not be told where it came and went.
        if item.head.is_deleted || item.head.seq > at.seq {
            return Ok(None);
        }
        let named = item_of(stored_key);
        let (collection, key) = named.ok_or_else(|| damaged(queue))?;
        let value = self.value_of(queue, &collection, &key, item).await?;
        let (seq, clock) = (item.head.seq, item.head.stamp.clock);
        Ok(value.map(|value| ItemView { collection, key, seq, value, clock }))
    }

    /// The value of a live item. `None` if its change is not durable yet, or no longer the newest.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) async fn value_of(
        &self,
        queue: &QueueId,
        collection: &CollectionName,
        key: &str,
        item: &Item,
    ) -> Result<Option<Value>, Error> {
        let take = Take { entries: 1, bytes: 0 };
        let read = self.router.read(queue, item.head.seq.prev(), take)?;
        match read.first().map(|entry| (entry.position, &entry.body)) {
            Some((position, Body::Change(change)))
                if position == item.position()
                    && change.collection == *collection
                    && *change.key == *key =>
            {
                Ok(Some(change.value.clone()))
            }
            None if self.router.head(queue)?.seq < item.head.seq => Ok(None),
            // Retention has dropped the entry, so it is folded.
            Some(_) | None => self.folded_value(queue, collection, key, item).await,
        }
    }

    async fn folded_value(
        &self,
        queue: &QueueId,
        collection: &CollectionName,
        key: &str,
        item: &Item,
    ) -> Result<Option<Value>, Error> {
        let name = Name { collection: collection.clone(), key: key.into() };
        let folded = self.storage.longterm.item(*queue, name).await?;
        if let Some(folded) = folded.as_ref().filter(|folded| folded.position == item.position()) {
            return Ok(Some(folded.value.clone()));
        }
        let now = self.router.get(Space::Items, &item_key(queue, collection, key))?;
        let now: Option<Item> = now.map(|bytes| decode(&bytes)).transpose()?;
        if now.is_none_or(|now| now.position() != item.position()) {
            // It changed while it was looked for.
            return Ok(None);
        }
        // The queue lost what was folded, and the fold is taken back when it next changes.
        let take = Take { entries: 1, bytes: 0 };
        let past = self.storage.longterm.history(*queue, item.head.seq.prev(), take).await?;
        if let Some(entry) = past.into_iter().next().map(|past| past.entry)
            && entry.position == item.position()
            && let Body::Change(change) = entry.body
            && (&change.collection, &*change.key) == (collection, key)
        {
            return Ok(Some(change.value));
        }
        // The lost change will be made again, if it is the newest that is known.
        let newest = folded.filter(|folded| folded.position.seq > item.head.seq);
        if newest.is_none() {
            self.metrics.collections.without_value.increment(1);
            tracing::error!(%queue, %collection, "an item has no value anywhere, leaving it out");
        }
        Ok(newest.map(|folded| folded.value))
    }
}

/// Of each item the newest change, unless the item came and went behind `after`. Of what is
/// history the queue's own index does not tell which one that is.
fn coalesced(after: Seq, entries: Vec<Arc<Entry>>) -> Vec<Arc<Entry>> {
    let mut items = HashSet::new();
    let mut is_told = |entry: &Arc<Entry>| match &entry.body {
        Body::Change(change) => {
            items.insert((change.collection.clone(), change.key.clone()))
                && !change.ends_unseen(after)
        }
        _ => false,
    };
    let mut told: Vec<_> = entries.into_iter().rev().filter(|entry| is_told(entry)).collect();
    told.reverse();
    told
}

fn damaged(queue: &QueueId) -> Error {
    store::Error::Damaged(format!("an item of {queue}")).into()
}

/// A page ends when its values pass this.
const PAGE_BYTES: usize = 1 << 20;
/// Entries or items that are looked at for one page.
const LOOK_MAX: usize = 4_096;
