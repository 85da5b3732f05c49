//! Documents of apps and the entries around them, to be written as JSON or as Thrift.

use carillon_wire::idl;
use serde_json::{Map, Value, json};
use thrift::protocol::{
    TCompactOutputProtocol, TFieldIdentifier, TListIdentifier, TOutputProtocol, TStructIdentifier,
    TType,
};

/// One field of a document.
pub enum Field {
    Text(String),
    Number(i64),
    Flag(bool),
    /// Bytes that nothing makes smaller.
    Random(Vec<u8>),
    List(Vec<String>),
}

/// What an app keeps in an item or sends as a message. The order of fields gives their numbers and short names.
pub struct Document(pub Vec<(&'static str, Field)>);

/// What happened.
pub enum What {
    Change { collection: &'static str, key: String, kind: idl::ChangeKind, clock: i64 },
    Message { id: Vec<u8>, time_ms: i64 },
}

/// One entry of a queue, not yet written in any way.
pub struct Missed {
    pub seq: i64,
    pub what: What,
    /// Absent when an item is deleted.
    pub document: Option<Document>,
}

/// How documents are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// As the app names its fields.
    Long,
    /// A letter each.
    Short,
}

impl Document {
    pub fn json(&self, names: Names) -> Value {
        let member = |(at, (name, field)): (usize, &(&'static str, Field))| {
            let value = match field {
                Field::Text(text) => json!(text),
                Field::Number(number) => json!(number),
                Field::Flag(flag) => json!(flag),
                Field::Random(bytes) => json!(base64(bytes)),
                Field::List(items) => json!(items),
            };
            (named(names, name, at), value)
        };
        Value::Object(self.0.iter().enumerate().map(member).collect::<Map<_, _>>())
    }

    /// A struct in the compact protocol, as an app would define it.
    pub fn thrift(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut TCompactOutputProtocol::new(&mut bytes)).expect("written to memory");
        bytes
    }

    fn write(&self, out: &mut impl TOutputProtocol) -> thrift::Result<()> {
        out.write_struct_begin(&TStructIdentifier::new("Document"))?;
        for (number, (_, field)) in (1..).zip(&self.0) {
            let kind = match field {
                Field::Text(_) | Field::Random(_) => TType::String,
                Field::Number(_) => TType::I64,
                Field::Flag(_) => TType::Bool,
                Field::List(_) => TType::List,
            };
            out.write_field_begin(&TFieldIdentifier::new("", kind, number))?;
            match field {
                Field::Text(text) => out.write_string(text)?,
                Field::Random(bytes) => out.write_bytes(bytes)?,
                Field::Number(number) => out.write_i64(*number)?,
                Field::Flag(flag) => out.write_bool(*flag)?,
                Field::List(items) => {
                    let count = i32::try_from(items.len()).expect("a short list");
                    out.write_list_begin(&TListIdentifier::new(TType::String, count))?;
                    items.iter().try_for_each(|item| out.write_string(item))?;
                    out.write_list_end()?;
                }
            }
            out.write_field_end()?;
        }
        out.write_field_stop()?;
        out.write_struct_end()
    }
}

impl Missed {
    /// As the gateway puts it into a frame.
    pub fn entry(&self, format: idl::ValueFormat) -> idl::Entry {
        let document = self.document.as_ref().map(|document| match format {
            idl::ValueFormat::THRIFT => document.thrift(),
            _ => document.json(Names::Long).to_string().into_bytes(),
        });
        let mut entry = idl::Entry { seq: self.seq, ..empty_entry() };
        match &self.what {
            What::Message { id, time_ms } => {
                (entry.id, entry.time_ms) = (Some(id.clone()), Some(*time_ms));
                entry.payload = document;
            }
            What::Change { collection, key, kind, clock } => {
                let is_thrift = format == idl::ValueFormat::THRIFT && document.is_some();
                entry.change = Some(idl::Change {
                    collection: (*collection).to_owned(),
                    key: key.clone(),
                    kind: *kind,
                    value: document,
                    format: is_thrift.then_some(format),
                    clock: Some(*clock),
                    cseq: None,
                });
            }
        }
        entry
    }

    pub fn json(&self, names: Names) -> Value {
        let document = self.document.as_ref().map(|document| document.json(names));
        let mut entry = Map::new();
        let long = ["seq", "id", "time_ms", "payload", "", "", "", "", "", "change"];
        let mut put = |at: usize, value| entry.insert(named(names, long[at - 1], at - 1), value);
        put(1, json!(self.seq));
        match &self.what {
            What::Message { id, time_ms } => {
                put(2, json!(base32(id)));
                put(3, json!(time_ms));
                put(4, document.unwrap_or(Value::Null));
            }
            What::Change { collection, key, kind, clock } => {
                let mut change = Map::new();
                let mut put_in = |at: usize, name, value| {
                    change.insert(named(names, name, at), value);
                };
                put_in(0, "collection", json!(collection));
                put_in(1, "key", json!(key));
                put_in(2, "kind", json!(kind_name(*kind, names)));
                document.into_iter().for_each(|value| put_in(3, "value", value));
                put_in(5, "clock", json!(clock));
                put(10, Value::Object(change));
            }
        }
        Value::Object(entry)
    }
}

/// `Down{deltas}` of one queue.
pub fn frame(entries: Vec<idl::Entry>, queue: &str, regid: &str, tag: Vec<u8>) -> idl::Down {
    let (from_seq, to_seq) = bounds(entries.iter().map(|entry| entry.seq));
    let queue = idl::Queue { kind: idl::QueueKind::ALIAS, name: Some(queue.to_owned()) };
    let delta = idl::Delta {
        queue,
        epoch: 3,
        from_seq,
        to_seq,
        tag,
        entries,
        jump: None,
        wrapped_keys: None,
        key_number: None,
    };
    let deltas = idl::Deltas { regid: regid.to_owned(), deltas: vec![delta], digests: None };
    idl::Down { deltas: Some(deltas), ..idl::Down::default() }
}

/// The same as JSON.
pub fn json_frame(missed: &[Missed], queue: &str, regid: &str, tag: &[u8], names: Names) -> Value {
    let (from_seq, to_seq) = bounds(missed.iter().map(|one| one.seq));
    let entries: Vec<Value> = missed.iter().map(|one| one.json(names)).collect();
    match names {
        Names::Long => json!({ "deltas": { "regid": regid, "deltas": [{
            "queue": { "kind": "alias", "name": queue }, "epoch": 3, "from_seq": from_seq,
            "to_seq": to_seq, "tag": base64(tag), "entries": entries,
        }] } }),
        Names::Short => json!({ "b": { "a": regid, "b": [{
            "a": { "a": 2, "b": queue }, "b": 3, "c": from_seq,
            "d": to_seq, "e": base64(tag), "f": entries,
        }] } }),
    }
}

fn bounds(seqs: impl DoubleEndedIterator<Item = i64> + Clone) -> (i64, i64) {
    (seqs.clone().next().expect("an entry"), seqs.last().expect("an entry"))
}

fn kind_name(kind: idl::ChangeKind, names: Names) -> &'static str {
    match (kind, names) {
        (idl::ChangeKind::NEW, Names::Long) => "new",
        (idl::ChangeKind::UPDATE, Names::Long) => "update",
        (_, Names::Long) => "delete",
        (idl::ChangeKind::NEW, Names::Short) => "n",
        (idl::ChangeKind::UPDATE, Names::Short) => "u",
        (_, Names::Short) => "d",
    }
}

fn named(names: Names, long: &str, at: usize) -> String {
    match names {
        Names::Long => long.to_owned(),
        Names::Short => char::from(b'a' + at as u8).to_string(),
    }
}

/// For JSON, which has no bytes.
pub fn base64(bytes: &[u8]) -> String {
    data_encoding::BASE64URL_NOPAD.encode(bytes)
}

/// Message ids as the API writes them.
pub fn base32(bytes: &[u8]) -> String {
    data_encoding::BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

fn empty_entry() -> idl::Entry {
    idl::Entry {
        seq: 0,
        id: None,
        time_ms: None,
        payload: None,
        notification: None,
        follow: None,
        unfollow: None,
        recall: None,
        sealed: None,
        change: None,
    }
}
