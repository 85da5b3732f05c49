//! Tenants and their secrets.

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};

use super::{Operator, Shared, devices::Revoked};
use crate::{
    base::{
        http::{
            Peer, Problem,
            body::{InPath, JsonBody},
        },
        keys::Secret,
    },
    service::{
        apps::{AppSummary, NewApp, OlderSecrets},
        records::AliasPolicy,
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    app_id: String,
    #[serde(default)]
    alias_policy: AliasPolicy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotate {
    #[serde(default)]
    revoke_older: bool,
}

#[derive(Serialize)]
pub(super) struct Rotated {
    app_secret: Secret,
}

pub(super) async fn create(
    _: Operator,
    State(admin): State<Shared>,
    JsonBody(request): JsonBody<Create>,
) -> Result<(StatusCode, Json<NewApp>), Problem> {
    let app = admin.service.create_app(&request.app_id, request.alias_policy).await?;
    Ok((StatusCode::CREATED, Json(app)))
}

pub(super) async fn list(
    _: Operator,
    State(admin): State<Shared>,
) -> Result<Json<Vec<AppSummary>>, Problem> {
    Ok(Json(admin.service.apps()?))
}

pub(super) async fn rotate(
    _: Operator,
    State(admin): State<Shared>,
    InPath(app): InPath<String>,
    JsonBody(request): JsonBody<Rotate>,
) -> Result<(StatusCode, Json<Rotated>), Problem> {
    let older = if request.revoke_older { OlderSecrets::Revoke } else { OlderSecrets::Keep };
    let app_secret = admin.service.rotate_secret(&app, older).await?;
    Ok((StatusCode::CREATED, Json(Rotated { app_secret })))
}

#[derive(Serialize)]
pub(super) struct NewKey {
    app_key: Secret,
}

pub(super) async fn rotate_key(
    _: Operator,
    State(admin): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    InPath(app): InPath<String>,
) -> Result<(StatusCode, Json<NewKey>), Problem> {
    tracing::info!(%peer, app, "audit: the operator changes an app's key");
    let app_key = admin.service.rotate_key(&app).await?;
    Ok((StatusCode::CREATED, Json(NewKey { app_key })))
}

pub(super) async fn revoke(
    _: Operator,
    State(admin): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    InPath(app): InPath<String>,
) -> Result<Json<Revoked>, Problem> {
    tracing::info!(%peer, app, "audit: the operator revokes an app");
    let registrations = admin.service.revoke_app(&app).await?;
    Ok(Json(Revoked { registrations }))
}
