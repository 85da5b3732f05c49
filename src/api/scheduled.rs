//! Messages that wait for their time.

use axum::{Json, extract::State};
use serde::Serialize;

use super::{
    Shared,
    auth::Caller,
    page::{Page, limit_of},
};
use crate::{
    base::http::{
        Problem,
        body::{InPath, InQuery},
    },
    service::schedule::Waiting,
};

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
    let (scheduled, next) = api.service.scheduled(&app, after.as_deref(), limit_of(limit)?)?;
    let next = next.map(|id| id.to_string());
    Ok(Json(Listed { scheduled, next }))
}
