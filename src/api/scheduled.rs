//! Messages that wait for their time.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};

use super::{Shared, auth::Caller};
use crate::{
    base::http::{
        Problem,
        body::{InPath, InQuery},
    },
    service::schedule::Waiting,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    after: Option<String>,
    limit: Option<i64>,
}

#[derive(Serialize)]
pub(super) struct Listed {
    scheduled: Vec<Waiting>,
    /// What to go on behind; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

pub(super) async fn list(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath(_): InPath<String>,
    InQuery(Page { after, limit }): InQuery<Page>,
) -> Result<Json<Listed>, Problem> {
    let limit = match usize::try_from(limit.unwrap_or(LIMIT)) {
        Ok(limit @ 1..=LIMIT_MAX) => limit,
        Ok(_) | Err(_) => return Err(Problem::out_of_bounds("limit", "1 to 1000")),
    };
    let (scheduled, next) = api.service.scheduled(&app, after.as_deref(), limit)?;
    let next = next.map(|id| id.to_string());
    Ok(Json(Listed { scheduled, next }))
}

/// Messages of one page, if the request does not say.
const LIMIT: i64 = 100;
const LIMIT_MAX: usize = 1_000;
