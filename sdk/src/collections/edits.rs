//! The queue of edits: what the app changed here, until the gateway's answer and the item have come.

use rusqlite::{OptionalExtension, Row, params};
use serde_json::Map;

use super::tables::{EditRow, ShelfRow, Tables, unsigned};
use crate::items::{Format, Value};

type Sql<T> = rusqlite::Result<T>;

impl Tables<'_> {
    /// Appends an edit, and gives it its number.
    pub fn push_edit(self, shelf: &mut ShelfRow, edit: &EditRow) -> Sql<i64> {
        let number = shelf.next;
        shelf.next += 1;
        self.update_shelf(shelf)?;
        self.insert_edit(shelf.id, number, edit)?;
        Ok(number)
    }

    /// The edits of an item, in order.
    pub fn edits_of(self, shelf: i64, collection: &str, key: &str) -> Sql<Vec<EditRow>> {
        let sql = format!("{EDIT} WHERE shelf = ? AND collection = ? AND key = ? ORDER BY number");
        let mut statement = self.0.prepare_cached(&sql)?;
        statement.query_map(params![shelf, collection, key], read)?.collect()
    }

    pub fn edit(self, shelf: i64, number: i64) -> Sql<Option<EditRow>> {
        let mut statement =
            self.0.prepare_cached(&format!("{EDIT} WHERE shelf = ? AND number = ?"))?;
        statement.query_row([shelf, number], read).optional()
    }

    /// The edits of a collection, in order.
    pub fn edits_in(self, shelf: i64, collection: &str) -> Sql<Vec<EditRow>> {
        let sql = format!("{EDIT} WHERE shelf = ? AND collection = ? ORDER BY number");
        let mut statement = self.0.prepare_cached(&sql)?;
        statement.query_map(params![shelf, collection], read)?.collect()
    }

    /// The first edits that the gateway has not answered, in order.
    pub fn unanswered(self, shelf: i64, count: usize) -> Sql<Vec<EditRow>> {
        let sql = format!(
            "{EDIT} WHERE shelf = ? AND answered IS NULL AND landed = 0 ORDER BY number LIMIT ?"
        );
        let mut statement = self.0.prepare_cached(&sql)?;
        statement.query_map(params![shelf, count], read)?.collect()
    }

    /// How many edits are in the queue.
    pub fn edits(self, shelf: i64) -> Sql<u64> {
        self.0.query_row("SELECT count(*) FROM edits WHERE shelf = ?", [shelf], |row| row.get(0))
    }

    /// Edits whose entries are at or before `seq`, or that are items already.
    pub fn arrived(self, shelf: i64, seq: u64) -> Sql<Vec<EditRow>> {
        let sql =
            format!("{EDIT} WHERE shelf = ? AND (answered <= ? OR landed <> 0) ORDER BY number");
        let mut statement = self.0.prepare_cached(&sql)?;
        statement.query_map(params![shelf, seq], read)?.collect()
    }

    pub fn delete_edit(self, shelf: i64, number: i64) -> Sql<()> {
        self.run("DELETE FROM edits WHERE shelf = ? AND number = ?", [shelf, number])
    }

    pub fn answer_edit(self, shelf: i64, number: i64, seq: u64) -> Sql<()> {
        self.run(
            "UPDATE edits SET answered = ? WHERE shelf = ? AND number = ?",
            params![seq, shelf, number],
        )
    }

    pub fn land_edit(self, shelf: i64, number: i64) -> Sql<()> {
        self.run("UPDATE edits SET landed = 1 WHERE shelf = ? AND number = ?", [shelf, number])
    }

    /// What was gathered is void, and what landed there with it.
    pub fn unland_edits(self, shelf: i64) -> Sql<()> {
        self.run("UPDATE edits SET landed = 0 WHERE shelf = ?", [shelf])
    }

    /// A shelf goes on with the edits of another, and with their numbers; its own come behind them.
    pub fn take_over_edits(self, from: &ShelfRow, to: &mut ShelfRow) -> Sql<()> {
        let behind = from.next.max(to.next) - 1;
        self.run("UPDATE edits SET number = number + ? WHERE shelf = ?", [behind, to.id])?;
        let moved = "UPDATE edits SET shelf = ?, landed = 0 WHERE shelf = ?";
        self.run(moved, [to.id, from.id])?;
        to.next = if to.next == 1 { from.next } else { behind + to.next };
        to.base = from.base;
        self.update_shelf(to)
    }

    fn insert_edit(self, shelf: i64, number: i64, edit: &EditRow) -> Sql<()> {
        let value = edit.value.as_ref();
        self.run(
            "INSERT INTO edits (shelf, number, collection, key, format, value, epoch, base_seq, clock, patch) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                shelf,
                number,
                edit.collection,
                edit.key,
                value.map_or(0, |value| value.format.number()),
                value.map(|value| &value.bytes[..]),
                edit.epoch,
                edit.base_seq,
                edit.clock.cast_signed(),
                edit.is_patch
            ],
        )
    }
}

fn read(row: &Row<'_>) -> Sql<EditRow> {
    let format = Format::from_number(row.get(3)?);
    let bytes: Option<Vec<u8>> = row.get(4)?;
    Ok(EditRow {
        number: row.get(0)?,
        collection: row.get(1)?,
        key: row.get(2)?,
        value: bytes.map(|bytes| Value { format, bytes: bytes.into() }),
        epoch: row.get(5)?,
        base_seq: row.get(6)?,
        clock: unsigned(row, 7)?,
        answered: row.get(8)?,
        is_landed: row.get(9)?,
        is_patch: row.get(10)?,
    })
}

/// What an item is with edits made over it, in their order.
pub fn over(below: Option<Value>, edits: &[EditRow]) -> Option<Value> {
    edits.iter().fold(below, |below, edit| match &edit.value {
        Some(fields) if edit.is_patch => Some(patched(below.as_ref(), fields)),
        value => value.clone(),
    })
}

/// The fields of a JSON object.
pub fn fields(value: &Value) -> Option<Map<String, serde_json::Value>> {
    serde_json::from_slice(&value.bytes).ok().filter(|_| value.format == Format::Json)
}

fn patched(below: Option<&Value>, patch: &Value) -> Value {
    let mut document = below.and_then(fields).unwrap_or_default();
    for (name, value) in fields(patch).unwrap_or_default() {
        match value {
            serde_json::Value::Null => drop(document.remove(&name)),
            value => drop(document.insert(name, value)),
        }
    }
    Value::json(serde_json::Value::Object(document).to_string())
}

const EDIT: &str = "SELECT number, collection, key, format, value, epoch, base_seq, clock, answered, landed, patch \
                    FROM edits";
