//! What one transaction does to the tables, and what the app is told once it is durable.
//!
//! What the app sees is an item with its edits made over it. Every function that can change that compares before
//! and after, so that the app hears of each change that it can see and of no other.

use super::edits::over;
use super::repairs::{Purpose, Repairs};
use super::tables::{EditRow, Flag, ShelfRow, Tables};
use super::{Error, Happening, ItemChange, Outcome, Who};
use crate::items::{Change, CollectionDigest, Item, Side, Step, To, Value, What};
use crate::names::RegId;

/// The app's code; an error says what it cannot do with the item.
pub type Handler = Box<dyn FnMut(&ItemChange) -> Result<(), String> + Send>;

/// See the module.
pub struct Work<'a> {
    pub tables: Tables<'a>,
    pub handler: Option<&'a mut Handler>,
    pub repairs: &'a mut Repairs,
    /// For the app, when all is durable.
    pub told: Vec<Happening>,
}

impl Work<'_> {
    /// Carries out one step of a frame.
    pub fn step(&mut self, step: &Step) -> Result<(), Error> {
        let mut shelf = self.tables.open_shelf(step.regid.as_str(), &step.alias)?;
        match &step.what {
            What::Changed { side, seq, change } => self.change(&shelf, *side, *seq, change),
            What::Moved { epoch, seq } => self.moved(&mut shelf, *epoch, *seq),
            What::Began => self.began(&mut shelf),
            What::Gathered(items) => self.gathered(&shelf, items),
            What::Switched { epoch, seq } => self.switched(&mut shelf, *epoch, *seq),
            What::Voided => self.voided(&mut shelf),
            What::Digest(digest) => self.compare(&shelf, digest),
            What::Renamed(regid) => self.renamed(&mut shelf, regid),
            What::Forgotten => self.forgotten(&shelf),
        }
    }

    /// What the app sees of an item.
    pub fn visible(&self, shelf: &ShelfRow, name: (&str, &str)) -> Result<Option<Value>, Error> {
        let item = self.tables.item(shelf.copy(Side::Items), name.0, name.1)?;
        let edits = self.tables.edits_of(shelf.id, name.0, name.1)?;
        Ok(over(item.map(|item| item.value), &edits))
    }

    fn change(
        &mut self,
        shelf: &ShelfRow,
        side: Side,
        seq: u64,
        change: &Change,
    ) -> Result<(), Error> {
        let (collection, key) = (change.collection.as_str(), change.key.as_str());
        let (name, copy) = ((collection, key), shelf.copy(side));
        self.tables.saw_clock(change.clock)?;
        let edit = self.own_edit(shelf, seq, change)?;
        let value = match (&change.to, &edit) {
            (To::Value(value), _) => Some(value.clone()),
            (To::Deleted, _) => None,
            (To::Own, Some(edit)) => edit.value.clone(),
            // Made before this database was: the gateway has to give it, unless it has come by another way.
            (To::Own, None) => {
                let item = self.tables.item(copy, collection, key)?;
                if item.is_none_or(|item| item.seq != seq) {
                    self.repairs.need(shelf.id, collection, Purpose::Digest);
                }
                return Ok(());
            }
        };
        let before = self.visible(shelf, name)?;
        match value {
            Some(value) => {
                let (collection, key) = (collection.to_owned(), key.to_owned());
                self.tables
                    .put(copy, &Item { collection, key, seq, value, clock: change.clock })?;
            }
            None => self.tables.delete(copy, collection, key, seq)?,
        }
        if let Some(edit) = edit {
            self.landed(shelf, side, &edit, &change.to)?;
        }
        if side == Side::Gathered {
            return Ok(());
        }
        self.repairs.touch(shelf.id, collection, key);
        self.seen(shelf, name, before, Who::Elsewhere)
    }

    /// The edit that led to a change, if it is ours and still in the queue. One that is answered has the entry's number:
    /// its cseq may be another edit's of a former life.
    fn own_edit(
        &self,
        shelf: &ShelfRow,
        seq: u64,
        change: &Change,
    ) -> Result<Option<EditRow>, Error> {
        let Some(cseq) = change.cseq else { return Ok(None) };
        let number = shelf.base.map(|base| cseq.saturating_sub(base));
        // A copy has a key of its own.
        let edits = self.tables.edits_of(shelf.id, &change.collection, &change.key)?;
        Ok(edits.into_iter().find(|edit| match edit.answered {
            Some(entry) => entry == seq,
            None => Some(edit.number) == number,
        }))
    }

    /// An edit has come back as an item.
    fn landed(
        &mut self,
        shelf: &ShelfRow,
        side: Side,
        edit: &EditRow,
        to: &To,
    ) -> Result<(), Error> {
        if edit.answered.is_none() && !edit.is_landed {
            let outcome = match to {
                To::Value(value) if Some(value) != edit.value.as_ref() => Outcome::Merged,
                To::Value(_) | To::Own | To::Deleted => Outcome::Applied,
            };
            self.settled(shelf, edit, outcome);
        }
        match side {
            Side::Items => self.tables.delete_edit(shelf.id, edit.number)?,
            Side::Gathered => self.tables.land_edit(shelf.id, edit.number)?,
        }
        Ok(())
    }

    pub fn settled(&mut self, shelf: &ShelfRow, edit: &EditRow, outcome: Outcome) {
        self.told.push(Happening::Settled {
            regid: RegId::from(shelf.regid.as_str()),
            alias: shelf.alias.clone(),
            collection: edit.collection.clone(),
            key: edit.key.clone(),
            number: edit.number.cast_unsigned(),
            outcome,
        });
    }

    fn moved(&mut self, shelf: &mut ShelfRow, epoch: u32, seq: u64) -> Result<(), Error> {
        let continues = shelf.at.is_some_and(|(old, at)| old == epoch && at <= seq);
        if !continues {
            self.tables.forget_digest_seqs(shelf.copy(Side::Items))?;
        }
        let arrived = self.arrived(shelf, epoch, seq)?;
        shelf.at = Some((epoch, seq));
        self.tables.update_shelf(shelf)?;
        for edit in arrived {
            self.uncover(shelf, &edit)?;
        }
        Ok(())
    }

    /// Edits whose items are there, at a new position.
    fn arrived(&self, shelf: &ShelfRow, epoch: u32, seq: u64) -> Result<Vec<EditRow>, Error> {
        let up_to = up_to(shelf.at, (epoch, seq));
        Ok(self.tables.arrived(shelf.id, up_to)?)
    }

    /// An edit ends; what it hid is seen.
    pub fn uncover(&mut self, shelf: &ShelfRow, edit: &EditRow) -> Result<(), Error> {
        let name = (edit.collection.as_str(), edit.key.as_str());
        let before = self.visible(shelf, name)?;
        self.tables.delete_edit(shelf.id, edit.number)?;
        self.seen(shelf, name, before, Who::Elsewhere)
    }

    pub(super) fn began(&mut self, shelf: &mut ShelfRow) -> Result<(), Error> {
        self.voided(shelf)?;
        self.repairs.interrupt(shelf.id);
        shelf.is_gathering = true;
        Ok(self.tables.update_shelf(shelf)?)
    }

    fn gathered(&mut self, shelf: &ShelfRow, items: &[Item]) -> Result<(), Error> {
        for item in items {
            self.tables.saw_clock(item.clock)?;
            self.tables.put(shelf.copy(Side::Gathered), item)?;
        }
        Ok(())
    }

    fn voided(&mut self, shelf: &mut ShelfRow) -> Result<(), Error> {
        self.tables.clear(shelf.copy(Side::Gathered))?;
        self.tables.unland_edits(shelf.id)?;
        shelf.is_gathering = false;
        Ok(self.tables.update_shelf(shelf)?)
    }

    pub(super) fn switched(
        &mut self,
        shelf: &mut ShelfRow,
        epoch: u32,
        seq: u64,
    ) -> Result<(), Error> {
        self.repairs.interrupt(shelf.id);
        let (old, new) = (shelf.copy(Side::Items), shelf.copy(Side::Gathered));
        let mut names = self.tables.differing(old, new)?;
        let arrived = self.arrived(shelf, epoch, seq)?;
        names.extend(arrived.iter().map(|edit| (edit.collection.clone(), edit.key.clone())));
        names.sort();
        names.dedup();
        let mut before = Vec::with_capacity(names.len());
        for (collection, key) in &names {
            before.push(self.visible(shelf, (collection, key))?);
        }
        self.tables.carry_flags(old, new)?;
        shelf.at = Some((epoch, seq));
        self.tables.flip(shelf)?;
        for edit in arrived {
            self.tables.delete_edit(shelf.id, edit.number)?;
        }
        for ((collection, key), before) in names.iter().zip(before) {
            self.seen(shelf, (collection, key), before, Who::Elsewhere)?;
        }
        Ok(())
    }

    /// Nothing is compared that moved on since, or has not come so far.
    fn compare(&mut self, shelf: &ShelfRow, theirs: &CollectionDigest) -> Result<(), Error> {
        let is_here = shelf.at.is_some_and(|(epoch, seq)| {
            epoch == theirs.epoch && seq >= theirs.seq && !shelf.is_gathering
        });
        let ours = self.tables.digest(shelf.copy(Side::Items), &theirs.collection)?;
        if !is_here || ours.seq > theirs.seq {
            return Ok(());
        }
        if (ours.items, ours.digest.to_idl()) != (theirs.items, theirs.digest) {
            tracing::warn!(
                collection = theirs.collection,
                "a collection differs from the gateway's"
            );
            self.repairs.need(shelf.id, &theirs.collection, Purpose::Digest);
        }
        Ok(())
    }

    /// The items stay until the successor's own take their place. The edits keep their numbers: the gateway knows by
    /// them which it has taken.
    fn renamed(&mut self, shelf: &mut ShelfRow, to: &RegId) -> Result<(), Error> {
        let Some(mut successor) = self.tables.shelf(to.as_str(), &shelf.alias)? else {
            shelf.regid = to.to_string();
            return self.voided(shelf);
        };
        self.tables.take_over_edits(shelf, &mut successor)?;
        self.repairs.forget(shelf.id);
        self.tables.delete_shelf(shelf)?;
        let Some(at) = successor.at else { return Ok(()) };
        for edit in self.tables.arrived(successor.id, up_to(shelf.at, at))? {
            self.uncover(&successor, &edit)?;
        }
        Ok(())
    }

    fn forgotten(&mut self, shelf: &ShelfRow) -> Result<(), Error> {
        self.tables.delete_shelf(shelf)?;
        self.repairs.forget(shelf.id);
        let (regid, alias) = (RegId::from(shelf.regid.as_str()), shelf.alias.clone());
        self.told.push(Happening::Forgotten { regid, alias });
        Ok(())
    }

    /// Gives what the app sees of an item to its handler and tells it, if that is not what it saw before.
    pub fn seen(
        &mut self,
        shelf: &ShelfRow,
        name: (&str, &str),
        before: Option<Value>,
        who: Who,
    ) -> Result<(), Error> {
        let Some(change) = self.tell(shelf, name, before, who)? else { return Ok(()) };
        if let Err(reason) = self.handle(&change) {
            match &change.new {
                Some(_) => {
                    let copy = shelf.copy(Side::Items);
                    self.tables.flag(copy, name.0, name.1, Flag::Refresh)?;
                }
                // There is nothing to fetch.
                None => self.skipped(&change, reason),
            }
        }
        Ok(())
    }

    /// The same without the handler.
    pub fn tell(
        &mut self,
        shelf: &ShelfRow,
        name: (&str, &str),
        before: Option<Value>,
        who: Who,
    ) -> Result<Option<ItemChange>, Error> {
        let after = self.visible(shelf, name)?;
        if before == after {
            return Ok(None);
        }
        let change = shelf.change(name, before, after, who);
        self.told.push(Happening::Changed(change.clone()));
        Ok(Some(change))
    }

    pub fn handle(&mut self, change: &ItemChange) -> Result<(), String> {
        match &mut self.handler {
            Some(handler) => handler(change),
            None => Ok(()),
        }
    }

    pub fn skipped(&mut self, change: &ItemChange, reason: String) {
        let ItemChange { regid, alias, collection, key, .. } = change.clone();
        self.told.push(Happening::Skipped { regid, alias, collection, key, reason });
    }
}

/// Up to which entry the items say what became of the edits that led to them.
fn up_to(before: Option<(u32, u64)>, (epoch, seq): (u32, u64)) -> u64 {
    // What another epoch answered compares with nothing.
    let is_other_epoch = before.is_some_and(|(old, _)| old != epoch);
    if is_other_epoch { i64::MAX.cast_unsigned() } else { seq }
}

impl ShelfRow {
    /// A change of what the app sees of an item.
    pub fn change(
        &self,
        (collection, key): (&str, &str),
        old: Option<Value>,
        new: Option<Value>,
        who: Who,
    ) -> ItemChange {
        ItemChange {
            regid: RegId::from(self.regid.as_str()),
            alias: self.alias.clone(),
            collection: collection.to_owned(),
            key: key.to_owned(),
            old,
            new,
            who,
        }
    }
}
