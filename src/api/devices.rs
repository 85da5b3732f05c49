//! Device accounts, made by whoever knows an app's key.

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use serde::{Deserialize, Serialize};

use super::{Authority, Shared};
use crate::{
    base::{
        http::{Peer, Problem, body::JsonBody},
        ids::{DeviceId, RegId},
        keys::Secret,
    },
    service::register::FirstRegistration,
};

/// Strangers send these requests: a body of this size holds every valid one.
pub(super) const BODY_BYTES_MAX: usize = 4 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    app_id: String,
    app_key: String,
    #[serde(default)]
    register: bool,
}

#[derive(Serialize)]
pub(super) struct Created {
    #[serde(serialize_with = "as_text")]
    device_id: DeviceId,
    secret: Secret,
    #[serde(skip_serializing_if = "Option::is_none")]
    regid: Option<String>,
}

pub(super) async fn create(
    State(api): State<Shared>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<Request>,
) -> Result<(StatusCode, Json<Created>), Problem> {
    if let Authority::Operator(token) = &api.authority
        && !token.is_shown_by(&headers)
    {
        return Err(Problem::unauthorized());
    }
    let is_limited = matches!(api.authority, Authority::AppSecrets);
    if let (true, Some(Extension(Peer(address)))) = (is_limited, peer) {
        api.device_rates.attempt(address)?;
    }
    if is_limited {
        api.device_rates.check_app(&request.app_id)?;
    }
    let _room = api.busy.take()?;
    let first = if request.register { FirstRegistration::Yes } else { FirstRegistration::No };
    let device = api.service.create_device(&request.app_id, &request.app_key, first).await?;
    if is_limited {
        // Counted only now: who does not know the key cannot use up the app's share.
        api.device_rates.count_app(&request.app_id);
    }
    let created = Created {
        device_id: device.device_id,
        secret: device.secret,
        regid: device.regid.as_ref().map(RegId::to_string),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

fn as_text<S: serde::Serializer>(id: &DeviceId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}
