//! Device accounts: in bulk, each with a registration, for load tests and factories; and
//! their end.

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};

use super::{Operator, Shared};
use crate::{
    base::{
        http::{
            Peer, Problem,
            body::{InPath, JsonBody},
        },
        ids::RegId,
        keys::Secret,
    },
    service::register::NewDevice,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    count: usize,
}

#[derive(Serialize)]
pub(super) struct Created {
    device_id: String,
    secret: Secret,
    regid: Option<String>,
}

pub(super) async fn create(
    _: Operator,
    State(admin): State<Shared>,
    InPath(app): InPath<String>,
    JsonBody(Create { count }): JsonBody<Create>,
) -> Result<(StatusCode, Json<Vec<Created>>), Problem> {
    if !(1..=COUNT_MAX).contains(&count) {
        return Err(Problem::out_of_bounds("count", "1 to 20000"));
    }
    let app = admin.service.app(&app)?;
    let devices = admin.service.create_devices(&app, count).await?;
    Ok((StatusCode::CREATED, Json(devices.into_iter().map(Created::from).collect())))
}

/// What a revocation ended.
#[derive(Serialize)]
pub(super) struct Revoked {
    pub(super) registrations: usize,
}

pub(super) async fn revoke(
    _: Operator,
    State(admin): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    InPath(device): InPath<String>,
) -> Result<Json<Revoked>, Problem> {
    tracing::info!(%peer, "audit: the operator revokes a device");
    let registrations = admin.service.revoke_device(&device).await?;
    Ok(Json(Revoked { registrations }))
}

impl From<NewDevice> for Created {
    fn from(device: NewDevice) -> Self {
        Self {
            device_id: device.device_id.to_string(),
            secret: device.secret,
            regid: device.regid.as_ref().map(RegId::to_string),
        }
    }
}

const COUNT_MAX: usize = 20_000;
