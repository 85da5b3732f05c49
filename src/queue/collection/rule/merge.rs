//! Merging documents: each top-level field is what its newest change made it.

use serde_json::Map;

use super::{Decision, Error, Outcome, Present, Put, after, kind};
use crate::queue::{
    collection::{
        change::{Format, Stamp, VALUE_BYTES_MAX, Value, Wish},
        head::Registers,
    },
    position::Seq,
};

/// Decides a change: the fields that it names, `null` removes one.
pub(super) fn decide(
    key: &str,
    present: &Present,
    wish: &Wish,
    next: Seq,
) -> Result<Decision, Error> {
    let before = present.head.as_ref();
    let mut registers =
        before.and_then(|head| head.registers.as_deref()).cloned().unwrap_or_default();
    let mut document = present.value.as_ref().map_or(Ok(Map::new()), object)?;
    let was = (registers.clone(), document.clone());
    let wanted = wish.value.as_ref().map(object).transpose()?;
    match &wanted {
        None => registers.deleted = registers.deleted.max(Some(wish.stamp)),
        Some(fields) => set(&mut registers, &mut document, fields, wish.stamp),
    }
    forget(&mut registers, &mut document);
    if was.0 == registers {
        return Ok(Decision::lost());
    }
    let is_deleted = registers.deleted.is_some_and(|deleted| deleted > registers.changed);
    let stamp = registers.deleted.unwrap_or_default().max(registers.changed);
    let mut head = after(before, stamp, is_deleted, next);
    let kind = kind(before, &head);
    head.registers = Some(Box::new(registers));
    let is_alone = wanted.is_none() == is_deleted && wanted.unwrap_or_default() == document;
    let value = if is_deleted { Value::default() } else { text(document) };
    if value.bytes.len() > VALUE_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    let outcome = if is_alone { Outcome::Applied } else { Outcome::Merged };
    let put = Put { key: key.into(), kind, value, head };
    Ok(Decision { outcome, ..Decision::applied(put) })
}

fn set(
    registers: &mut Registers,
    document: &mut Map<String, serde_json::Value>,
    fields: &Map<String, serde_json::Value>,
    stamp: Stamp,
) {
    registers.changed = registers.changed.max(stamp);
    for (name, value) in fields {
        if registers.fields.get(name.as_str()).is_some_and(|set| *set > stamp) {
            continue;
        }
        registers.fields.insert(name.as_str().into(), stamp);
        match value {
            serde_json::Value::Null => drop(document.remove(name)),
            value => drop(document.insert(name.clone(), value.clone())),
        }
    }
}

/// Drops the fields that were set before the item was deleted.
fn forget(registers: &mut Registers, document: &mut Map<String, serde_json::Value>) {
    let Some(deleted) = registers.deleted else { return };
    registers.fields.retain(|name, stamp| {
        let is_kept = *stamp > deleted;
        if !is_kept {
            document.remove(name.as_ref());
        }
        is_kept
    });
}

fn object(value: &Value) -> Result<Map<String, serde_json::Value>, Error> {
    match value.format {
        Format::Json => serde_json::from_slice(&value.bytes).map_err(|_| Error::NotAnObject),
        Format::Thrift => Err(Error::NotAnObject),
    }
}

fn text(document: Map<String, serde_json::Value>) -> Value {
    Value::json(serde_json::Value::Object(document).to_string())
}
