//! regIDs of an app that are no more.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};

use super::{
    Shared,
    auth::Caller,
    page::{LIMIT_MAX, limit_of},
};
use crate::{
    base::http::{Problem, body::InQuery},
    service::feedback::{Cursor, Invalid, Page},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    since: Option<String>,
    limit: Option<i64>,
}

#[derive(Serialize)]
pub(super) struct List {
    invalid: Vec<Entry>,
    next: String,
    is_more: bool,
}

#[derive(Serialize)]
struct Entry {
    regid: String,
    reason: &'static str,
    at_ms: u64,
}

pub(super) async fn invalid(
    State(api): State<Shared>,
    Caller(app): Caller,
    InQuery(asked): InQuery<Asked>,
) -> Result<Json<List>, Problem> {
    let since = match asked.since.as_deref() {
        None => Cursor::default(),
        Some(text) => Cursor::parse(text)
            .ok_or_else(|| Problem::out_of_bounds("since", "`next` of an earlier answer"))?,
    };
    let limit = limit_of(asked.limit.or(Some(LIMIT_MAX as i64)))?;
    let Page { invalid, next, is_more } = api.service.invalid_since(&app, since, limit)?;
    let entry = |one: Invalid| Entry {
        regid: one.regid.to_string(),
        reason: one.reason.name(),
        at_ms: one.at_ms,
    };
    let invalid = invalid.into_iter().map(entry).collect();
    Ok(Json(List { invalid, next: next.to_string(), is_more }))
}
