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
        seals::{SealChange, SealState},
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    app_id: String,
    #[serde(default)]
    alias_policy: AliasPolicy,
    #[serde(default)]
    sealed: bool,
}

/// A new app, with its public key if it seals.
#[derive(Serialize)]
pub(super) struct Created {
    #[serde(flatten)]
    app: NewApp,
    #[serde(skip_serializing_if = "Option::is_none")]
    seal: Option<SealState>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seal {
    demanded: Option<bool>,
    #[serde(default)]
    new_key: bool,
    #[serde(default)]
    revoke_older: bool,
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
) -> Result<(StatusCode, Json<Created>), Problem> {
    let app = admin.service.create_app(&request.app_id, request.alias_policy).await?;
    let demanded = Some(true);
    let seal = match request.sealed {
        true => {
            let change = SealChange { demanded, ..SealChange::default() };
            Some(admin.service.seal_app(app.app_id.as_str(), change).await?)
        }
        false => None,
    };
    Ok((StatusCode::CREATED, Json(Created { app, seal })))
}

pub(super) async fn seal(
    _: Operator,
    State(admin): State<Shared>,
    InPath(app): InPath<String>,
    JsonBody(request): JsonBody<Seal>,
) -> Result<Json<SealState>, Problem> {
    let Seal { demanded, new_key, revoke_older } = request;
    let change = SealChange { demanded, new_key, revoke_older };
    Ok(Json(admin.service.seal_app(&app, change).await?))
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
