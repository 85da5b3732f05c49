//! One registration: what it follows, how far it is, and its end.

use axum::{Json, extract::State, http::StatusCode};
use serde::Deserialize;

use super::{Shared, audience::StatedAttributes, auth::Caller};
use crate::{
    base::http::{
        Problem,
        body::{InPath, JsonBody},
    },
    service::{
        accept::{Accept, Hours},
        bind::By,
        trace::RegistrationView,
    },
};

/// `{app}` and `{regid}`.
type One = InPath<(String, String)>;
/// `{app}`, `{regid}` and the alias or topic.
type Followed = InPath<(String, String, String)>;

pub(super) async fn show(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, regid)): One,
) -> Result<Json<RegistrationView>, Problem> {
    Ok(Json(api.service.registration(&app, &regid)?))
}

pub(super) async fn describe(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, regid)): One,
    JsonBody(attributes): JsonBody<StatedAttributes>,
) -> Result<StatusCode, Problem> {
    let _room = api.busy.take()?;
    api.service.describe(&regid, attributes.into(), By::App(&app)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn unregister(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, regid)): One,
) -> Result<StatusCode, Problem> {
    let _room = api.busy.take()?;
    api.service.unregister(&regid, By::App(&app)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatedAccept {
    #[serde(default)]
    paused: bool,
    hours: Option<StatedHours>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatedHours {
    start_minute: i64,
    end_minute: i64,
    zone: String,
}

pub(super) async fn accept(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, regid)): One,
    JsonBody(StatedAccept { paused: is_paused, hours }): JsonBody<StatedAccept>,
) -> Result<StatusCode, Problem> {
    let _room = api.busy.take()?;
    let hours = hours.map(|h| Hours::of(h.start_minute, h.end_minute, &h.zone)).transpose()?;
    api.service.set_accept(&regid, Accept { is_paused, hours }, By::App(&app)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn accept_always(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, regid)): One,
) -> Result<StatusCode, Problem> {
    let _room = api.busy.take()?;
    api.service.set_accept(&regid, Accept::default(), By::App(&app)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn bind(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, regid, alias)): Followed,
) -> Result<StatusCode, Problem> {
    let _room = api.busy.take()?;
    api.service.bind(&regid, &alias, By::App(&app)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn unbind(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, regid, alias)): Followed,
) -> Result<StatusCode, Problem> {
    let _room = api.busy.take()?;
    api.service.unbind(&regid, &alias, By::App(&app)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn subscribe(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, regid, topic)): Followed,
) -> Result<StatusCode, Problem> {
    let _room = api.busy.take()?;
    api.service.subscribe(&regid, &[topic], By::App(&app)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn unsubscribe(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, regid, topic)): Followed,
) -> Result<StatusCode, Problem> {
    let _room = api.busy.take()?;
    api.service.unsubscribe(&regid, &[topic], By::App(&app)).await?;
    Ok(StatusCode::NO_CONTENT)
}
