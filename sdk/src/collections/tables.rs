//! The tables of the database, and what is read from and written to them. Nothing here decides.
//!
//! Items are in copies: a shelf, which is the collections of one alias of one registration, has two, and `flip` says
//! which of them the app sees. The other one is there while a snapshot is gathered.

use carillon_wire::digest::{Digest, item_hash};
use carillon_wire::ranges::Bounds;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::items::{Format, Item, Side, Value};

/// The tables of a connection, in whatever transaction it is in.
#[derive(Clone, Copy)]
pub struct Tables<'a>(pub &'a Connection);

/// The collections of one alias of one registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShelfRow {
    pub id: i64,
    pub regid: String,
    pub alias: String,
    flip: i64,
    /// A snapshot is gathered.
    pub is_gathering: bool,
    /// Where its items are; `None`: nowhere yet.
    pub at: Option<(u32, u64)>,
    /// What added to an edit's number makes its cseq; `None`: the gateway has to say.
    pub base: Option<i64>,
    /// The number of the next edit.
    pub next: i64,
}

/// One row of items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemRow {
    pub key: String,
    pub seq: u64,
    pub value: Value,
    pub clock: u64,
    pub flag: Flag,
}

/// What the app's handler made of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// It took it, or there is no handler.
    Fine,
    /// It failed: the item is to be fetched once more.
    Refresh,
    /// It failed again.
    Skipped,
}

/// An edit that has not come back as an item yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EditRow {
    pub number: i64,
    pub collection: String,
    pub key: String,
    /// `None` deletes.
    pub value: Option<Value>,
    /// The value has only the fields that are changed.
    pub is_patch: bool,
    pub epoch: u32,
    pub base_seq: u64,
    pub clock: u64,
    /// The gateway has answered: the entry that it led to.
    pub answered: Option<u64>,
    /// It is an item of what is gathered.
    pub is_landed: bool,
}

/// What a copy holds of a collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DigestRow {
    pub items: u64,
    pub digest: Digest,
    /// The newest change that was applied.
    pub seq: u64,
}

type Sql<T> = rusqlite::Result<T>;

impl ShelfRow {
    /// The copy on this side.
    pub fn copy(&self, side: Side) -> i64 {
        let other = i64::from(matches!(side, Side::Gathered));
        self.id * 2 + (self.flip ^ other)
    }

    fn read(row: &Row<'_>) -> Sql<Self> {
        let (epoch, seq): (Option<u32>, Option<u64>) = (row.get(5)?, row.get(6)?);
        Ok(Self {
            id: row.get(0)?,
            regid: row.get(1)?,
            alias: row.get(2)?,
            flip: row.get(3)?,
            is_gathering: row.get(4)?,
            at: epoch.zip(seq),
            base: row.get(7)?,
            next: row.get(8)?,
        })
    }
}

impl Tables<'_> {
    pub fn state(self) -> Sql<Option<Vec<u8>>> {
        self.0.query_row("SELECT value FROM state", [], |row| row.get(0))
    }

    pub fn set_state(self, value: &[u8]) -> Sql<()> {
        self.run("UPDATE state SET value = ?", params![value])
    }

    /// The latest hybrid clock that was seen.
    pub fn clock(self) -> Sql<u64> {
        self.0.prepare_cached("SELECT clock FROM state")?.query_row([], |row| unsigned(row, 0))
    }

    pub fn saw_clock(self, clock: u64) -> Sql<()> {
        if clock <= self.clock()? {
            return Ok(());
        }
        self.run("UPDATE state SET clock = ?", params![clock.cast_signed()])
    }

    /// When an item was last fetched because the app's handler had failed, in ms since 1970; 0 if never.
    pub fn refreshed_ms(self) -> Sql<u64> {
        let mut statement = self.0.prepare_cached("SELECT refreshed_ms FROM state")?;
        statement.query_row([], |row| row.get(0))
    }

    pub fn set_refreshed_ms(self, ms: u64) -> Sql<()> {
        self.run("UPDATE state SET refreshed_ms = ?", params![ms])
    }

    pub fn shelf(self, regid: &str, alias: &str) -> Sql<Option<ShelfRow>> {
        let sql = format!("{SHELF} WHERE regid = ? AND alias = ?");
        let mut statement = self.0.prepare_cached(&sql)?;
        statement.query_row(params![regid, alias], ShelfRow::read).optional()
    }

    pub fn shelf_of(self, id: i64) -> Sql<Option<ShelfRow>> {
        let mut statement = self.0.prepare_cached(&format!("{SHELF} WHERE id = ?"))?;
        statement.query_row([id], ShelfRow::read).optional()
    }

    pub fn shelves(self) -> Sql<Vec<ShelfRow>> {
        let mut statement = self.0.prepare_cached(&format!("{SHELF} ORDER BY id"))?;
        statement.query_map([], ShelfRow::read)?.collect()
    }

    pub fn open_shelf(self, regid: &str, alias: &str) -> Sql<ShelfRow> {
        if let Some(shelf) = self.shelf(regid, alias)? {
            return Ok(shelf);
        }
        self.run("INSERT INTO shelves (regid, alias) VALUES (?, ?)", params![regid, alias])?;
        self.shelf(regid, alias)?.ok_or(rusqlite::Error::QueryReturnedNoRows)
    }

    /// Everything of a shelf but its identity.
    pub fn update_shelf(self, shelf: &ShelfRow) -> Sql<()> {
        let (epoch, seq) = shelf.at.unzip();
        self.run(
            "UPDATE shelves SET flip = ?, gathering = ?, epoch = ?, seq = ?, base = ?, next = ?, regid = ? \
             WHERE id = ?",
            params![
                shelf.flip,
                shelf.is_gathering,
                epoch,
                seq,
                shelf.base,
                shelf.next,
                shelf.regid,
                shelf.id
            ],
        )
    }

    /// The gathered copy takes the place of the other.
    pub fn flip(self, shelf: &mut ShelfRow) -> Sql<()> {
        self.clear(shelf.copy(Side::Items))?;
        shelf.flip ^= 1;
        shelf.is_gathering = false;
        self.update_shelf(shelf)
    }

    pub fn delete_shelf(self, shelf: &ShelfRow) -> Sql<()> {
        self.clear(shelf.copy(Side::Items))?;
        self.clear(shelf.copy(Side::Gathered))?;
        self.run("DELETE FROM edits WHERE shelf = ?", [shelf.id])?;
        self.run("DELETE FROM shelves WHERE id = ?", [shelf.id])
    }

    pub fn clear(self, copy: i64) -> Sql<()> {
        self.run("DELETE FROM items WHERE copy = ?", [copy])?;
        self.run("DELETE FROM digests WHERE copy = ?", [copy])
    }

    pub fn item(self, copy: i64, collection: &str, key: &str) -> Sql<Option<ItemRow>> {
        let sql = format!("{ITEM} WHERE copy = ? AND collection = ? AND key = ?");
        let mut statement = self.0.prepare_cached(&sql)?;
        statement.query_row(params![copy, collection, key], read_item).optional()
    }

    /// In the order of their keys.
    pub fn items(self, copy: i64, collection: &str) -> Sql<Vec<ItemRow>> {
        let sql = format!("{ITEM} WHERE copy = ? AND collection = ? ORDER BY key");
        let mut statement = self.0.prepare_cached(&sql)?;
        statement.query_map(params![copy, collection], read_item)?.collect()
    }

    /// Keys and seqs of items within bounds, in order.
    pub fn seqs(self, copy: i64, collection: &str, within: &Bounds) -> Sql<Vec<(String, u64)>> {
        let mut statement = self.0.prepare_cached(
            "SELECT key, seq FROM items WHERE copy = ?1 AND collection = ?2 AND key >= ?3 \
             AND (?4 IS NULL OR key < ?4) ORDER BY key",
        )?;
        let values = params![copy, collection, within.first, within.before];
        statement.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }

    /// Items that the app's handler failed on, with their collections.
    pub fn flagged(self, copy: i64, flag: Flag) -> Sql<Vec<(String, String)>> {
        let mut statement = self.0.prepare_cached(
            // SQLite does not see by itself that a parameter is not 0, and would look at all items.
            "SELECT collection, key FROM items INDEXED BY flagged \
             WHERE copy = ? AND flag = ? AND flag <> 0 ORDER BY collection, key",
        )?;
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        statement.query_map(params![copy, flag.number()], read)?.collect()
    }

    /// Collections and keys in which two copies differ.
    pub fn differing(self, one: i64, other: i64) -> Sql<Vec<(String, String)>> {
        let mut statement = self.0.prepare_cached(
            "SELECT new.collection, new.key FROM items AS new LEFT JOIN items AS old \
             ON old.copy = ?1 AND old.collection = new.collection AND old.key = new.key \
             WHERE new.copy = ?2 AND (old.key IS NULL OR old.seq <> new.seq OR old.format <> new.format \
             OR old.value <> new.value) \
             UNION ALL SELECT collection, key FROM items AS old WHERE copy = ?1 AND NOT EXISTS \
             (SELECT 1 FROM items AS new WHERE new.copy = ?2 AND new.collection = old.collection AND new.key = old.key)",
        )?;
        statement.query_map([one, other], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }

    /// The same item in another copy is flagged as it is here.
    pub fn carry_flags(self, from: i64, to: i64) -> Sql<()> {
        self.run(
            "UPDATE items SET flag = old.flag FROM items AS old WHERE items.copy = ?2 AND old.copy = ?1 \
             AND old.flag <> 0 AND old.collection = items.collection AND old.key = items.key \
             AND old.seq = items.seq AND old.value = items.value",
            [from, to],
        )
    }

    /// Puts an item in the place of what is there, and keeps the digest.
    pub fn put(self, copy: i64, item: &Item) -> Sql<()> {
        let old = self.seq_of(copy, &item.collection, &item.key)?;
        self.run(
            // Where the item is, its row stays, and with it the pages of the index.
            "INSERT INTO items (copy, collection, key, seq, format, value, clock, flag) \
             VALUES (?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (copy, collection, key) DO UPDATE SET seq = excluded.seq, \
             format = excluded.format, value = excluded.value, clock = excluded.clock, flag = 0",
            params![
                copy,
                item.collection,
                item.key,
                item.seq,
                item.value.format.number(),
                &item.value.bytes[..],
                item.clock.cast_signed()
            ],
        )?;
        self.count(copy, (&item.collection, &item.key), old, Some(item.seq), item.seq)
    }

    /// Deletes an item, if it is there, by the change at `seq`.
    pub fn delete(self, copy: i64, collection: &str, key: &str, seq: u64) -> Sql<()> {
        let old = self.seq_of(copy, collection, key)?;
        self.run(
            "DELETE FROM items WHERE copy = ? AND collection = ? AND key = ?",
            params![copy, collection, key],
        )?;
        self.count(copy, (collection, key), old, None, seq)
    }

    pub fn flag(self, copy: i64, collection: &str, key: &str, flag: Flag) -> Sql<()> {
        self.run(
            "UPDATE items SET flag = ? WHERE copy = ? AND collection = ? AND key = ?",
            params![flag.number(), copy, collection, key],
        )
    }

    pub fn digest(self, copy: i64, collection: &str) -> Sql<DigestRow> {
        let mut statement = self.0.prepare_cached(
            "SELECT items, digest, seq FROM digests WHERE copy = ? AND collection = ?",
        )?;
        let read = |row: &Row<'_>| {
            let digest = Digest::from_idl(row.get(1)?);
            Ok(DigestRow { items: row.get(0)?, digest, seq: row.get(2)? })
        };
        let found = statement.query_row(params![copy, collection], read).optional()?;
        Ok(found.unwrap_or_default())
    }

    /// Makes the digest anew from the items, which only damage can have parted from it.
    pub fn recount(self, copy: i64, collection: &str) -> Sql<()> {
        let items = self.seqs(copy, collection, &Bounds::everything())?;
        let hashes = items.iter().map(|(key, seq)| item_hash(collection, key, *seq));
        let digest = hashes.collect::<Digest>().to_idl();
        self.run(
            "UPDATE digests SET items = ?3, digest = ?4 WHERE copy = ?1 AND collection = ?2",
            params![copy, collection, items.len(), digest],
        )
    }

    /// The seqs of another epoch compare with nothing.
    pub fn forget_digest_seqs(self, copy: i64) -> Sql<()> {
        self.run("UPDATE digests SET seq = 0 WHERE copy = ?", [copy])
    }

    fn seq_of(self, copy: i64, collection: &str, key: &str) -> Sql<Option<u64>> {
        let mut statement = self.0.prepare_cached(
            "SELECT seq FROM items WHERE copy = ? AND collection = ? AND key = ?",
        )?;
        statement.query_row(params![copy, collection, key], |row| row.get(0)).optional()
    }

    fn count(
        self,
        copy: i64,
        (collection, key): (&str, &str),
        old: Option<u64>,
        new: Option<u64>,
        seq: u64,
    ) -> Sql<()> {
        let mut row = self.digest(copy, collection)?;
        if let Some(old) = old {
            row.digest.remove(item_hash(collection, key, old));
            row.items = row.items.saturating_sub(1);
        }
        if let Some(new) = new {
            row.digest.add(item_hash(collection, key, new));
            row.items += 1;
        }
        self.run(
            "INSERT OR REPLACE INTO digests (copy, collection, items, digest, seq) VALUES (?, ?, ?, ?, ?)",
            params![copy, collection, row.items, row.digest.to_idl(), row.seq.max(seq)],
        )
    }

    pub(super) fn run(self, sql: &str, values: impl rusqlite::Params) -> Sql<()> {
        self.0.prepare_cached(sql)?.execute(values).map(drop)
    }
}

impl Flag {
    fn number(self) -> i64 {
        match self {
            Self::Fine => 0,
            Self::Refresh => 1,
            Self::Skipped => 2,
        }
    }
}

fn read_item(row: &Row<'_>) -> Sql<ItemRow> {
    let flag = match row.get(5)? {
        0 => Flag::Fine,
        1 => Flag::Refresh,
        _ => Flag::Skipped,
    };
    let value =
        Value { format: Format::from_number(row.get(2)?), bytes: row.get::<_, Vec<u8>>(3)?.into() };
    Ok(ItemRow { key: row.get(0)?, seq: row.get(1)?, value, clock: unsigned(row, 4)?, flag })
}

/// 64 bits without a sign, which the database keeps with one.
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> Sql<u64> {
    row.get(column).map(i64::cast_unsigned)
}

/// Also kept as `user_version`.
pub const VERSION: i64 = 1;

/// All tables, made in one transaction.
pub const SCHEMA: &str = "
CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 0), value BLOB, clock INTEGER NOT NULL DEFAULT 0,
    refreshed_ms INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO state (id) VALUES (0);
CREATE TABLE shelves (id INTEGER PRIMARY KEY, regid TEXT NOT NULL, alias TEXT NOT NULL,
    flip INTEGER NOT NULL DEFAULT 0, gathering INTEGER NOT NULL DEFAULT 0, epoch INTEGER, seq INTEGER,
    base INTEGER, next INTEGER NOT NULL DEFAULT 1, UNIQUE (regid, alias)) STRICT;
CREATE TABLE items (copy INTEGER NOT NULL, collection TEXT NOT NULL, key TEXT NOT NULL, seq INTEGER NOT NULL,
    format INTEGER NOT NULL, value BLOB NOT NULL, clock INTEGER NOT NULL, flag INTEGER NOT NULL,
    PRIMARY KEY (copy, collection, key)) STRICT;
CREATE INDEX flagged ON items (copy, flag) WHERE flag <> 0;
CREATE TABLE digests (copy INTEGER NOT NULL, collection TEXT NOT NULL, items INTEGER NOT NULL,
    digest INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (copy, collection)) STRICT, WITHOUT ROWID;
CREATE TABLE edits (shelf INTEGER NOT NULL, number INTEGER NOT NULL, collection TEXT NOT NULL, key TEXT NOT NULL,
    format INTEGER NOT NULL, value BLOB, epoch INTEGER NOT NULL, base_seq INTEGER NOT NULL, clock INTEGER NOT NULL,
    patch INTEGER NOT NULL, answered INTEGER, landed INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (shelf, number)) STRICT;
CREATE INDEX edits_of_item ON edits (shelf, collection, key, number);
PRAGMA user_version = 1;
";

const SHELF: &str = "SELECT id, regid, alias, flip, gathering, epoch, seq, base, next FROM shelves";
const ITEM: &str = "SELECT key, seq, format, value, clock, flag FROM items";
