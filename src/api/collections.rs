//! Collections: what an app declares, and the items of its aliases.
//!
//! A call of changes that cannot be read is refused whole; what a collection's rule makes of
//! each change is its result.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Api, Shared,
    auth::Caller,
    messages::{compact, present},
    once,
    page::{Page, limit_of},
};
use crate::{
    base::{
        http::{
            Code, Problem,
            body::{InPath, InQuery, JsonBody, JsonText},
        },
        ids::{Alias, AppId},
    },
    queue::{
        collection::{
            append::Ask,
            change::{Format, Kind, Origin, Stamp, Value},
            rule::{Outcome, Rule},
        },
        entry::{self, Body, Entry},
        position::{Epoch, Position, Seq},
    },
    service::{
        Error,
        collections::{self, Changed, Declared},
        items::{Cursor, ItemView},
        once::{Answer, Once},
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Declaration {
    rule: Rule,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    changes: Vec<StatedChange>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatedChange {
    collection: String,
    key: String,
    #[serde(default, deserialize_with = "present")]
    value: Option<Box<RawValue>>,
    #[serde(default)]
    delete: bool,
    format: Option<Format>,
    base: Option<String>,
}

/// What became of each change, in their order.
#[derive(Serialize)]
pub(super) struct Results {
    results: Vec<ChangeResult>,
}

#[derive(Serialize)]
struct ChangeResult {
    outcome: Word,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<Seq>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// An outcome, or that the rule could not read the change.
#[derive(Serialize)]
#[serde(untagged)]
enum Word {
    Decided(Outcome),
    Refused(&'static str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    epoch: Option<u32>,
    since: Option<u64>,
    limit: Option<i64>,
}

#[derive(Serialize)]
pub(super) struct Changes {
    epoch: Epoch,
    /// The next page is after this.
    since: Seq,
    is_more: bool,
    changes: Vec<ChangeView>,
}

#[derive(Serialize)]
struct ChangeView {
    seq: Seq,
    at_ms: u64,
    collection: String,
    key: String,
    kind: Kind,
    #[serde(flatten)]
    value: Option<ValueView>,
    /// Whose it is, if a device made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    regid: Option<String>,
}

#[derive(Serialize)]
struct ValueView {
    format: Format,
    value: Box<RawValue>,
}

#[derive(Serialize)]
pub(super) struct Snapshot {
    epoch: Epoch,
    /// Changes after this belong to it.
    since: Seq,
    items: Vec<Shown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Serialize)]
struct Shown {
    collection: String,
    key: String,
    seq: Seq,
    #[serde(flatten)]
    value: ValueView,
}

pub(super) async fn declare(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, name)): InPath<(String, String)>,
    JsonBody(Declaration { rule }): JsonBody<Declaration>,
) -> Result<Json<Declared>, Problem> {
    let _room = api.busy.take()?;
    Ok(Json(api.service.declare(&app, &name, rule).await?))
}

pub(super) async fn show(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, name)): InPath<(String, String)>,
) -> Result<Json<Declared>, Problem> {
    Ok(Json(api.service.declared(&app, &name)?))
}

pub(super) async fn end(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, name)): InPath<(String, String)>,
) -> Result<StatusCode, Problem> {
    let _room = api.busy.take()?;
    api.service.undeclare(&app, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn change(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, alias)): InPath<(String, String)>,
    key: once::Key,
    JsonText { value: Request { changes }, text }: JsonText<Request>,
) -> Result<Response, Problem> {
    let alias: Alias = alias.parse().map_err(Error::from)?;
    let asks = asks(&api, &app, changes)?;
    let _room = api.busy.take()?;
    let Some(once) = key.once(&app, &text) else {
        let done = api.service.change(&app, &alias, asks).await?;
        return Ok(Json(Results::of(&done)).into_response());
    };
    changed_once(&api, &app, &alias, asks, &once).await
}

async fn changed_once(
    api: &Api,
    app: &AppId,
    alias: &Alias,
    asks: Vec<Ask>,
    once: &Once,
) -> Result<Response, Problem> {
    let answer = |done: &[Changed]| once::text(&Results::of(done));
    match api.service.change_once(app, alias, asks, once, answer).await? {
        Answer::Kept(text) => Ok(once::replayed(StatusCode::OK, text)),
        Answer::Fresh(done) => Ok(Json(Results::of(&done)).into_response()),
    }
}

pub(super) async fn changes(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, alias)): InPath<(String, String)>,
    InQuery(After { epoch, since, limit }): InQuery<After>,
) -> Result<Json<Changes>, Problem> {
    let alias: Alias = alias.parse().map_err(Error::from)?;
    let seq = Seq(since.unwrap_or(0));
    if epoch.is_none() && seq != Seq(0) {
        return Err(Problem::out_of_bounds("epoch", "stated with `since`, from the same answer"));
    }
    let at = Position { epoch: Epoch(epoch.unwrap_or(0)), seq };
    let page = api.service.changes_after(&app, &alias, at, limit_of(limit)?).await?;
    let changes: Option<Vec<_>> = page.entries.iter().map(|entry| ChangeView::of(entry)).collect();
    Ok(Json(Changes {
        epoch: page.to.epoch,
        since: page.to.seq,
        is_more: page.is_more,
        changes: changes.ok_or_else(unreadable)?,
    }))
}

pub(super) async fn snapshot(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, alias)): InPath<(String, String)>,
    InQuery(Page { after, limit }): InQuery<Page>,
) -> Result<Json<Snapshot>, Problem> {
    let alias: Alias = alias.parse().map_err(Error::from)?;
    let after: Option<Cursor> = after.as_deref().map(str::parse).transpose()?;
    let page = api.service.items(&app, &alias, after, limit_of(limit)?).await?;
    let items: Option<Vec<_>> = page.items.iter().map(Shown::of).collect();
    Ok(Json(Snapshot {
        epoch: page.at.epoch,
        since: page.at.seq,
        items: items.ok_or_else(unreadable)?,
        next: page.next.map(|next| next.to_string()),
    }))
}

fn asks(api: &Api, app: &AppId, changes: Vec<StatedChange>) -> Result<Vec<Ask>, Problem> {
    if !(1..=CHANGES_MAX).contains(&changes.len()) {
        return Err(Problem::out_of_bounds("changes", "1 to 1000 of them"));
    }
    let (collections, stamp) = (api.service.collections(app)?, api.service.server_stamp());
    let ask = |change: StatedChange| Ok(collections.ask(change.read(stamp)?.borrowed())?);
    let all = changes.into_iter().enumerate();
    all.map(|(n, change)| ask(change).map_err(|problem: Problem| problem.of_change(n))).collect()
}

/// A [`collections::Change`] with its texts.
struct ReadChange {
    collection: String,
    key: String,
    value: Option<Value>,
    base: Option<Position>,
    stamp: Stamp,
}

impl StatedChange {
    fn read(self, stamp: Stamp) -> Result<ReadChange, Problem> {
        let value = match (self.value, self.delete) {
            (Some(value), false) => Some(read_value(&value, self.format)?),
            (None, true) if self.format.is_some() => {
                return Err(Problem::out_of_bounds("format", "only with a value"));
            }
            (None, true) => None,
            (Some(_), true) | (None, false) => {
                let detail = "exactly one of `value` and `\"delete\": true` is required";
                return Err(Problem::new(Code::InvalidRequest, detail));
            }
        };
        let base = self.base.as_deref().map(position).transpose()?;
        Ok(ReadChange { collection: self.collection, key: self.key, value, base, stamp })
    }
}

impl ReadChange {
    fn borrowed(&self) -> collections::Change<'_> {
        let Self { collection, key, value, base, stamp } = self;
        collections::Change { collection, key, value: value.clone(), base: *base, stamp: *stamp }
    }
}

fn read_value(stated: &RawValue, format: Option<Format>) -> Result<Value, Problem> {
    match format.unwrap_or_default() {
        Format::Json => Ok(Value::json(compact(stated.get()))),
        Format::Thrift => {
            let text: Option<String> = serde_json::from_str(stated.get()).ok();
            let bytes = text.and_then(|text| BASE64.decode(text.as_bytes()).ok());
            let rule = "with the format `thrift`, base64 (RFC 4648) with padding";
            let bytes = bytes.ok_or_else(|| Problem::out_of_bounds("value", rule))?;
            Ok(Value { format: Format::Thrift, bytes: bytes.into() })
        }
    }
}

/// `epoch:seq`, as answers show it.
fn position(text: &str) -> Result<Position, Problem> {
    let parts = text.split_once(':');
    let parsed = parts.and_then(|(epoch, seq)| Some((epoch.parse().ok()?, seq.parse().ok()?)));
    let (epoch, seq) = parsed.ok_or_else(|| Problem::out_of_bounds("base", "epoch:seq"))?;
    Ok(Position { epoch: Epoch(epoch), seq: Seq(seq) })
}

impl Results {
    fn of(done: &[Changed]) -> Self {
        let result = |one: &Changed| match one {
            Ok(done) => {
                let outcome = Word::Decided(done.outcome);
                ChangeResult { outcome, seq: done.seq, detail: None }
            }
            Err(refused) => {
                let (outcome, detail) = (Word::Refused("invalid"), Some(refused.to_string()));
                ChangeResult { outcome, seq: None, detail }
            }
        };
        Self { results: done.iter().map(result).collect() }
    }
}

impl ValueView {
    fn of(value: &Value) -> Option<Self> {
        let text = match value.format {
            Format::Json => String::from_utf8(Vec::from(value.bytes.clone())).ok()?,
            Format::Thrift => serde_json::to_string(&BASE64.encode(&value.bytes)).ok()?,
        };
        Some(Self { format: value.format, value: RawValue::from_string(text).ok()? })
    }
}

impl ChangeView {
    fn of(entry: &Entry) -> Option<Self> {
        let Body::Change(change) = &entry.body else { return None };
        let entry::Change { collection, key, kind, value, stamp, .. } = change;
        let value = match kind {
            Kind::New | Kind::Update => Some(ValueView::of(value)?),
            Kind::Delete => None,
        };
        Some(Self {
            seq: entry.position.seq,
            at_ms: entry.at_ms,
            collection: collection.to_string(),
            key: key.to_string(),
            kind: *kind,
            value,
            regid: match stamp.origin {
                Origin::Device { regid, .. } => Some(regid.to_string()),
                Origin::Server => None,
            },
        })
    }
}

impl Shown {
    fn of(item: &ItemView) -> Option<Self> {
        let (collection, key) = (item.collection.to_string(), item.key.to_string());
        Some(Self { collection, key, seq: item.seq, value: ValueView::of(&item.value)? })
    }
}

impl Problem {
    fn of_change(self, n: usize) -> Self {
        Self { detail: format!("changes[{n}]: {}", self.detail), ..self }
    }
}

fn unreadable() -> Problem {
    Problem::new(Code::Internal, "an item is not what its format says")
}

const CHANGES_MAX: usize = 1_000;
