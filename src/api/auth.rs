//! Who asks: the app whose secret the request bears, or the operator for any app.
//!
//! A missing, malformed or wrong credential and an unknown app get the same answer.

use axum::{
    extract::{FromRequestParts, RawPathParams},
    http::request::Parts,
};

use super::{Authority, Shared};
use crate::{
    base::{
        http::{Code, Problem, bearer},
        ids::AppId,
    },
    service::Error,
};

/// The app of the path, for which the caller may act.
pub(super) struct Caller(pub AppId);

impl FromRequestParts<Shared> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let stated = stated_app(parts, api).await?;
        let found = match &api.authority {
            Authority::AppSecrets => {
                let secret = bearer(&parts.headers).ok_or_else(Problem::unauthorized)?;
                api.service.authorize(&stated, secret)
            }
            Authority::Operator(token) if token.is_shown_by(&parts.headers) => {
                api.service.app(&stated)
            }
            Authority::Operator(_) => return Err(Problem::unauthorized()),
        };
        match found {
            Ok(app) => Ok(Self(app)),
            Err(Error::Forbidden(_)) => Err(Problem::unauthorized()),
            Err(error) => Err(error.into()),
        }
    }
}

async fn stated_app(parts: &mut Parts, api: &Shared) -> Result<String, Problem> {
    let params = RawPathParams::from_request_parts(parts, api).await;
    let params = params
        .map_err(|_| Problem::new(Code::InvalidRequest, "the path is not UTF-8 behind its %XX"))?;
    let app = params.iter().find(|(name, _)| *name == "app");
    app.map(|(_, value)| value.to_owned()).ok_or_else(Problem::unauthorized)
}
