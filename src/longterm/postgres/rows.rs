//! Rows as our types, and our types as columns.

use tokio_postgres::{
    Row,
    types::{FromSql, Type},
};

use super::{Param, sql};
use crate::{
    base::ids::RegId,
    longterm::{Advance, Commit, Error, Item, Name, Past, Step, fold::signed},
    queue::{
        collection::change::{Format, Hlc, Kind, Origin, Stamp, Value},
        entry::{Change, Entry},
        position::{Epoch, Position, Seq},
    },
};

/// A column, or what is wrong with it.
fn column<'a, T: FromSql<'a>>(row: &'a Row, name: &str) -> Result<T, Error> {
    row.try_get(name).map_err(|error| Error::Damaged(error.to_string()))
}

fn wrong(name: &str) -> Error {
    Error::Damaged(format!("a row with a wrong {name}"))
}

fn number(row: &Row, name: &str) -> Result<u64, Error> {
    column::<i64>(row, name).map(i64::cast_unsigned)
}

fn number_u32(row: &Row, name: &str) -> Result<u32, Error> {
    u32::try_from(column::<i64>(row, name)?).map_err(|_| wrong(name))
}

fn text(row: &Row, name: &str) -> Result<Box<str>, Error> {
    let text = std::str::from_utf8(column(row, name)?);
    text.map(Into::into).map_err(|_| wrong(name))
}

pub(super) fn commit_of(row: &Row) -> Result<Commit, Error> {
    Ok(Commit { epoch: Epoch(number_u32(row, "epoch")?), number: number(row, "number")? })
}

pub(super) fn position_of(row: &Row) -> Result<Position, Error> {
    Ok(Position { epoch: Epoch(number_u32(row, "epoch")?), seq: Seq(number(row, "seq")?) })
}

pub(super) fn past_of(row: &Row) -> Result<Past, Error> {
    let entry = Entry::from_stored(position_of(row)?.seq, column(row, "entry")?)?;
    Ok(Past { day: number_u32(row, "day")?, entry })
}

pub(super) fn item_of(row: &Row) -> Result<Item, Error> {
    let regid: Option<&[u8]> = column(row, "regid")?;
    let origin = match regid {
        None => Origin::Server,
        Some(bytes) => Origin::Device {
            regid: RegId::from_slice(bytes).ok_or_else(|| wrong("regid"))?,
            cseq: number(row, "cseq")?,
        },
    };
    let format = match column::<i16>(row, "format")? {
        JSON => Format::Json,
        THRIFT => Format::Thrift,
        _ => return Err(wrong("format")),
    };
    let collection = text(row, "collection")?.parse().map_err(|_| wrong("collection"))?;
    Ok(Item {
        name: Name { collection, key: text(row, "key")? },
        position: position_of(row)?,
        stamp: Stamp { clock: Hlc(number(row, "clock")?), origin },
        born: Seq(number(row, "born")?),
        value: Value { format, bytes: column::<Vec<u8>>(row, "value")?.into() },
    })
}

const JSON: i16 = 1;
const THRIFT: i16 = 2;

/// A statement with its parameters; none if it would have nothing to do.
type Statement<'a> = Option<(&'static str, Vec<Param<'a>>)>;

fn unless_empty<'a>(sql: &'static str, params: Vec<Param<'a>>, queues: &[&[u8]]) -> Statement<'a> {
    (!queues.is_empty()).then_some((sql, params))
}

/// The newest changes of items, as columns.
#[derive(Default)]
pub(super) struct Changes<'a> {
    deleted: Names<'a>,
    live: Names<'a>,
    epochs: Vec<i64>,
    seqs: Vec<i64>,
    born: Vec<i64>,
    clocks: Vec<i64>,
    regids: Vec<Option<&'a [u8]>>,
    cseqs: Vec<Option<i64>>,
    formats: Vec<i16>,
    values: Vec<&'a [u8]>,
}

#[derive(Default)]
struct Names<'a> {
    queues: Vec<&'a [u8]>,
    collections: Vec<&'a [u8]>,
    keys: Vec<&'a [u8]>,
}

impl<'a> Names<'a> {
    fn push(&mut self, advance: &'a Advance, (collection, key): (&'a str, &'a str)) {
        self.queues.push(advance.queue.as_bytes());
        self.collections.push(collection.as_bytes());
        self.keys.push(key.as_bytes());
    }

    fn params(&'a self, shard: &'a i32) -> Vec<Param<'a>> {
        vec![
            (shard, Type::INT4),
            (&self.queues, Type::BYTEA_ARRAY),
            (&self.collections, Type::BYTEA_ARRAY),
            (&self.keys, Type::BYTEA_ARRAY),
        ]
    }
}

impl<'a> Changes<'a> {
    pub(super) fn of(queues: &'a [Advance]) -> Self {
        let mut changes = Self::default();
        for advance in queues {
            for (name, (position, change)) in advance.latest() {
                match change.kind {
                    Kind::Delete => changes.deleted.push(advance, name),
                    Kind::New | Kind::Update => {
                        changes.live.push(advance, name);
                        changes.push(position, change);
                    }
                }
            }
        }
        changes
    }

    fn push(&mut self, at: Position, change: &'a Change) {
        self.epochs.push(at.epoch.0.into());
        self.seqs.push(signed(at.seq.0));
        self.born.push(signed(change.born.0));
        self.clocks.push(signed(change.stamp.clock.0));
        let (regid, cseq) = match &change.stamp.origin {
            Origin::Server => (None, None),
            Origin::Device { regid, cseq } => (Some(regid.as_bytes()), Some(signed(*cseq))),
        };
        self.regids.push(regid);
        self.cseqs.push(cseq);
        self.formats.push(match change.value.format {
            Format::Json => JSON,
            Format::Thrift => THRIFT,
        });
        self.values.push(&change.value.bytes);
    }

    pub(super) fn deletes(&'a self, shard: &'a i32) -> Statement<'a> {
        unless_empty(sql::DELETE_ITEMS, self.deleted.params(shard), &self.deleted.queues)
    }

    pub(super) fn puts(&'a self, shard: &'a i32) -> Statement<'a> {
        let mut params = self.live.params(shard);
        params.extend([
            (&self.epochs as _, Type::INT8_ARRAY),
            (&self.seqs as _, Type::INT8_ARRAY),
            (&self.born as _, Type::INT8_ARRAY),
            (&self.clocks as _, Type::INT8_ARRAY),
            (&self.regids as _, Type::BYTEA_ARRAY),
            (&self.cseqs as _, Type::INT8_ARRAY),
            (&self.formats as _, Type::INT2_ARRAY),
            (&self.values as _, Type::BYTEA_ARRAY),
        ]);
        unless_empty(sql::PUT_ITEMS, params, &self.live.queues)
    }
}

/// All entries, and where their queues stand behind them, as columns.
#[derive(Default)]
pub(super) struct Pasts<'a> {
    queues: Vec<&'a [u8]>,
    epochs: Vec<i64>,
    seqs: Vec<i64>,
    days: Vec<i64>,
    entries: Vec<Vec<u8>>,
    moved: Vec<&'a [u8]>,
    moved_epochs: Vec<i64>,
    moved_seqs: Vec<i64>,
}

impl<'a> Pasts<'a> {
    pub(super) fn of(queues: &'a [Advance]) -> Self {
        let mut pasts = Self::default();
        for advance in queues {
            for Step { day, entry } in &advance.steps {
                pasts.queues.push(advance.queue.as_bytes());
                pasts.epochs.push(entry.position.epoch.0.into());
                pasts.seqs.push(signed(entry.position.seq.0));
                pasts.days.push((*day).into());
                pasts.entries.push(entry.to_stored());
            }
            if let Some(position) = advance.position() {
                pasts.moved.push(advance.queue.as_bytes());
                pasts.moved_epochs.push(position.epoch.0.into());
                pasts.moved_seqs.push(signed(position.seq.0));
            }
        }
        pasts
    }

    pub(super) fn puts(&'a self, shard: &'a i32) -> Statement<'a> {
        let params = vec![
            (shard as _, Type::INT4),
            (&self.queues as _, Type::BYTEA_ARRAY),
            (&self.epochs as _, Type::INT8_ARRAY),
            (&self.seqs as _, Type::INT8_ARRAY),
            (&self.days as _, Type::INT8_ARRAY),
            (&self.entries as _, Type::BYTEA_ARRAY),
        ];
        unless_empty(sql::PUT_HISTORY, params, &self.queues)
    }

    pub(super) fn positions(&'a self, shard: &'a i32) -> Statement<'a> {
        let params = vec![
            (shard as _, Type::INT4),
            (&self.moved as _, Type::BYTEA_ARRAY),
            (&self.moved_epochs as _, Type::INT8_ARRAY),
            (&self.moved_seqs as _, Type::INT8_ARRAY),
        ];
        unless_empty(sql::PUT_POSITIONS, params, &self.moved)
    }
}
