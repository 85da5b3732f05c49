//! What the gateway answers to uploads and repairs.

use std::collections::BTreeMap;

use carillon_wire::idl;
use carillon_wire::ranges::{Bounds, KeyRange};

use super::courier::Verdict;
use super::repairs::{Purpose, Repair};
use super::tables::{Flag, ShelfRow};
use super::work::Work;
use super::{Comparison, Error, Happening, Outcome, Who};
use crate::items::{Item, Side};
use crate::names::RegId;

impl Work<'_> {
    /// The results of an upload.
    pub fn uploaded(&mut self, shelf: i64, results: Vec<idl::EditResult>) -> Result<(), Error> {
        let Some(shelf) = self.tables.shelf_of(shelf)? else { return Ok(()) };
        let Some(base) = shelf.base else { return Ok(()) };
        for result in results {
            let edit = self.tables.edit(shelf.id, result.cseq.saturating_sub(base))?;
            let Some(edit) = edit.filter(|edit| edit.answered.is_none()) else { continue };
            let outcome = Outcome::from_idl(result.outcome, result.message);
            if !edit.is_landed {
                self.settled(&shelf, &edit, outcome);
            }
            let entry = result.seq.and_then(|seq| u64::try_from(seq).ok());
            let ahead = entry.filter(|seq| shelf.at.is_none_or(|(_, at)| at < *seq));
            match ahead {
                // What it hides is older than the answer.
                Some(seq) => self.tables.answer_edit(shelf.id, edit.number, seq)?,
                None => self.uncover(&shelf, &edit)?,
            }
        }
        Ok(())
    }

    /// The gateway expects this cseq next: our numbers go on with it.
    pub fn learned(&mut self, shelf: i64, next: Option<i64>) -> Result<Verdict, Error> {
        let shelf = self.tables.shelf_of(shelf)?;
        let Some((mut shelf, next)) = shelf.zip(next) else { return Ok(Verdict::Later) };
        let first = self.tables.unanswered(shelf.id, 1)?;
        let first = first.first().map_or(shelf.next, |edit| edit.number);
        let base = Some(next.saturating_sub(first));
        // Told what we know already, we would ask the same again and again.
        let verdict = if shelf.base == base { Verdict::Later } else { Verdict::GoOn };
        shelf.base = base;
        self.tables.update_shelf(&shelf)?;
        Ok(verdict)
    }

    /// The answer to what the running repair stated last.
    pub fn repaired(&mut self, ranges: Vec<idl::RepairedRange>) -> Result<(), Error> {
        let Some(repair) = self.repairs.running().cloned() else { return Ok(()) };
        let shelf = self.tables.shelf_of(repair.shelf)?.filter(|shelf| !shelf.is_gathering);
        let Some(shelf) = shelf else {
            self.repairs.interrupt(repair.shelf);
            return Ok(());
        };
        let (mut differing, mut has_changed) = (Vec::new(), false);
        for range in ranges {
            let Ok(stated) = KeyRange::from_idl(range.range) else { continue };
            if let Some(items) = range.items {
                let items = items.into_iter().map(|item| *item);
                has_changed |= self.replace(&shelf, &repair, &stated.bounds, items)?;
            }
            for part in range.parts.unwrap_or_default() {
                let Ok(theirs) = KeyRange::from_idl(part) else { continue };
                let copy = shelf.copy(Side::Items);
                let seqs = self.tables.seqs(copy, &repair.collection, &theirs.bounds)?;
                let ours = KeyRange::of(&repair.collection, theirs.bounds.clone(), seqs);
                if ours != theirs || !repair.purpose.states_what_is_held() {
                    differing.push(theirs.bounds);
                }
            }
        }
        let Some(ended) = self.repairs.answered(differing, has_changed) else { return Ok(()) };
        match ended.purpose {
            Purpose::Refresh => self.refreshed(&shelf, &ended)?,
            Purpose::Digest | Purpose::Compare | Purpose::Fetch => {
                self.tables.recount(shelf.copy(Side::Items), &ended.collection)?;
            }
        }
        let outcome = if ended.is_cut { Comparison::Cut } else { Comparison::Complete };
        self.compared(ended, outcome)
    }

    /// A repair has ended; the app is told if it asked for it.
    pub fn compared(&mut self, ended: Repair, outcome: Comparison) -> Result<(), Error> {
        if !ended.purpose.is_asked_for() {
            return Ok(());
        }
        if let Some(shelf) = self.tables.shelf_of(ended.shelf)? {
            self.told.push(Happening::Compared {
                regid: RegId::from(shelf.regid),
                alias: shelf.alias,
                collection: ended.collection,
                outcome,
            });
        }
        Ok(())
    }

    /// Items within bounds become what the gateway gave, but for what is newer here. What is newer there than our
    /// position is left to the deltas: they also say if it is gone again.
    fn replace(
        &mut self,
        shelf: &ShelfRow,
        repair: &Repair,
        bounds: &Bounds,
        items: impl Iterator<Item = idl::Item>,
    ) -> Result<bool, Error> {
        let (collection, copy) = (repair.collection.as_str(), shelf.copy(Side::Items));
        let at = shelf.at.map_or(0, |(_, seq)| seq);
        let given = items.filter_map(Item::from_idl);
        let given =
            given.filter(|item| item.collection == collection && bounds.contains(&item.key));
        let given: BTreeMap<String, Item> = given.map(|item| (item.key.clone(), item)).collect();
        let mut has_changed = false;
        for (key, _) in self.tables.seqs(copy, collection, bounds)? {
            if !given.contains_key(&key) && repair.is_open(&key) {
                has_changed = true;
                let before = self.visible(shelf, (collection, &key))?;
                self.tables.delete(copy, collection, &key, 0)?;
                self.seen(shelf, (collection, &key), before, Who::Elsewhere)?;
            }
        }
        let fitting = given.values().filter(|item| item.seq <= at && repair.is_open(&item.key));
        for item in fitting {
            let ours = self.tables.item(copy, collection, &item.key)?;
            if ours.is_some_and(|ours| ours.seq == item.seq && ours.value == item.value) {
                continue;
            }
            has_changed = true;
            let before = self.visible(shelf, (collection, &item.key))?;
            self.tables.put(copy, item)?;
            match repair.purpose {
                Purpose::Digest | Purpose::Compare | Purpose::Fetch => {
                    self.seen(shelf, (collection, &item.key), before, Who::Elsewhere)?;
                }
                // Its handler is called behind this.
                Purpose::Refresh => {
                    self.tell(shelf, (collection, &item.key), before, Who::Elsewhere)?;
                }
            }
        }
        Ok(has_changed)
    }

    /// Items that the app's handler failed on have been fetched: it has one more chance.
    fn refreshed(&mut self, shelf: &ShelfRow, repair: &Repair) -> Result<(), Error> {
        let (collection, copy) = (repair.collection.as_str(), shelf.copy(Side::Items));
        for key in repair.refreshed.iter().filter(|key| repair.is_open(key)) {
            let Some(new) = self.visible(shelf, (collection, key))? else { continue };
            let change = shelf.change((collection, key), None, Some(new), Who::Elsewhere);
            match self.handle(&change) {
                Ok(()) => self.tables.flag(copy, collection, key, Flag::Fine)?,
                Err(reason) => {
                    self.tables.flag(copy, collection, key, Flag::Skipped)?;
                    self.skipped(&change, reason);
                }
            }
        }
        Ok(())
    }
}

impl Outcome {
    fn from_idl(outcome: idl::EditOutcome, message: Option<String>) -> Self {
        match outcome {
            idl::EditOutcome::APPLIED => Self::Applied,
            idl::EditOutcome::MERGED => Self::Merged,
            idl::EditOutcome::COPIED => Self::Copied,
            idl::EditOutcome::LOST => Self::Lost,
            _ => Self::Invalid(message.unwrap_or_default()),
        }
    }
}
