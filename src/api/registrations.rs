//! One registration: what it follows, how far it is, and its end.

use axum::{Json, extract::State, http::StatusCode};

use super::{Shared, auth::Caller};
use crate::{
    base::http::{Problem, body::InPath},
    service::{bind::By, trace::RegistrationView},
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

pub(super) async fn unregister(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, regid)): One,
) -> Result<StatusCode, Problem> {
    let _room = api.busy.take()?;
    api.service.unregister(&regid, By::App(&app)).await?;
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
