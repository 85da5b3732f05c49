//! The tables and statements. Names, keys and values are bytes: their order is the same in
//! every database, whatever its locale, and a text may have any character.

/// The version of the tables.
pub(super) const VERSION: i32 = 1;

pub(super) const FORMAT: &str = "SELECT version FROM carillon_format";

pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS carillon_pointer (
    shard int4 NOT NULL, epoch int8 NOT NULL, number int8 NOT NULL,
    PRIMARY KEY (shard));
CREATE TABLE IF NOT EXISTS carillon_queue (
    shard int4 NOT NULL, queue bytea NOT NULL, epoch int8 NOT NULL, seq int8 NOT NULL,
    PRIMARY KEY (shard, queue));
CREATE TABLE IF NOT EXISTS carillon_item (
    shard int4 NOT NULL, queue bytea NOT NULL, collection bytea NOT NULL, key bytea NOT NULL,
    epoch int8 NOT NULL, seq int8 NOT NULL, born int8 NOT NULL, clock int8 NOT NULL,
    regid bytea, cseq int8, format int2 NOT NULL, value bytea NOT NULL,
    PRIMARY KEY (shard, queue, collection, key));
CREATE INDEX IF NOT EXISTS carillon_item_newest ON carillon_item (shard, queue, seq);
CREATE TABLE IF NOT EXISTS carillon_history (
    shard int4 NOT NULL, queue bytea NOT NULL, epoch int8 NOT NULL, seq int8 NOT NULL,
    day int8 NOT NULL, entry bytea NOT NULL,
    PRIMARY KEY (shard, queue, seq));
CREATE INDEX IF NOT EXISTS carillon_history_day ON carillon_history (shard, day);
CREATE TABLE IF NOT EXISTS carillon_format (version int4 NOT NULL, PRIMARY KEY (version));
INSERT INTO carillon_format VALUES (1) ON CONFLICT (version) DO NOTHING;
";

pub(super) const POINTER: &str = "SELECT epoch, number FROM carillon_pointer WHERE shard = $1";

pub(super) const START_POINTER: &str =
    "INSERT INTO carillon_pointer VALUES ($1, 0, 0) ON CONFLICT (shard) DO NOTHING";

pub(super) const MOVE_POINTER: &str = "UPDATE carillon_pointer SET epoch = $4, number = $5
    WHERE shard = $1 AND epoch = $2 AND number = $3";

pub(super) const POSITION: &str =
    "SELECT epoch, seq FROM carillon_queue WHERE shard = $1 AND queue = $2";

pub(super) const PUT_POSITIONS: &str = "INSERT INTO carillon_queue (shard, queue, epoch, seq)
    SELECT $1, * FROM unnest($2, $3, $4)
    ON CONFLICT (shard, queue) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq";

pub(super) const PUT_ITEMS: &str = "INSERT INTO carillon_item
    (shard, queue, collection, key, epoch, seq, born, clock, regid, cseq, format, value)
    SELECT $1, * FROM unnest($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    ON CONFLICT (shard, queue, collection, key) DO UPDATE SET
        epoch = excluded.epoch, seq = excluded.seq, born = excluded.born,
        clock = excluded.clock, regid = excluded.regid, cseq = excluded.cseq,
        format = excluded.format, value = excluded.value";

pub(super) const DELETE_ITEMS: &str = "DELETE FROM carillon_item
    WHERE shard = $1 AND (queue, collection, key) IN (SELECT * FROM unnest($2, $3, $4))";

pub(super) const PUT_HISTORY: &str = "INSERT INTO carillon_history
    (shard, queue, epoch, seq, day, entry)
    SELECT $1, * FROM unnest($2, $3, $4, $5, $6)
    ON CONFLICT (shard, queue, seq) DO UPDATE SET
        epoch = excluded.epoch, day = excluded.day, entry = excluded.entry";

macro_rules! items {
    ($which:literal, $order:literal, $entries:literal, $bytes:literal) => {
        concat!(
            "SELECT collection, key, epoch, seq, born, clock, regid, cseq, format, value FROM (",
            "SELECT *, sum(octet_length(value)) OVER (ORDER BY ",
            $order,
            ") - octet_length(value) AS before FROM (",
            "SELECT * FROM carillon_item WHERE shard = $1 AND queue = $2 AND ",
            $which,
            " ORDER BY ",
            $order,
            " LIMIT ",
            $entries,
            ") page) sized WHERE before < ",
            $bytes,
            " ORDER BY ",
            $order
        )
    };
}

pub(super) const ITEM: &str = "SELECT
    collection, key, epoch, seq, born, clock, regid, cseq, format, value FROM carillon_item
    WHERE shard = $1 AND queue = $2 AND collection = $3 AND key = $4";

pub(super) const BY_KEY: &str =
    items!("collection = $3 AND key >= $4 AND ($5::bytea IS NULL OR key < $5)", "key", "$6", "$7");

pub(super) const NEWEST: &str = items!("seq < $3", "seq DESC", "$4", "$5");

pub(super) const HISTORY: &str = "SELECT epoch, seq, day, entry FROM (
    SELECT *, sum(octet_length(entry)) OVER (ORDER BY seq) - octet_length(entry) AS before
    FROM (SELECT * FROM carillon_history WHERE shard = $1 AND queue = $2 AND seq > $3
        ORDER BY seq LIMIT $4) page) sized
    WHERE before < $5 ORDER BY seq";

pub(super) const REWIND_ITEMS: &str =
    "DELETE FROM carillon_item WHERE shard = $1 AND queue = $2 AND seq > $3";

pub(super) const REWIND_HISTORY: &str =
    "DELETE FROM carillon_history WHERE shard = $1 AND queue = $2 AND seq > $3";

pub(super) const REWIND_QUEUE: &str =
    "UPDATE carillon_queue SET seq = $3, epoch = $4 WHERE shard = $1 AND queue = $2";

pub(super) const TRIM: &str = "DELETE FROM carillon_history WHERE shard = $1 AND (queue, seq) IN
    (SELECT queue, seq FROM carillon_history WHERE shard = $1 AND day < $2 LIMIT $3)
    RETURNING 1";
