//! `Idempotency-Key`: who repeats a call with its key gets the answer of the first time.

use axum::{
    Json,
    extract::FromRequestParts,
    http::{HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;

use super::Shared;
use crate::{
    base::{http::Problem, ids::AppId},
    service::once::Once,
};

/// The key that a call states, if it does, with what it is asked of.
pub(super) struct Key(Option<(String, String)>);

impl FromRequestParts<Shared> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Problem> {
        let mut stated = parts.headers.get_all(KEY).iter();
        let Some(value) = stated.next() else { return Ok(Self(None)) };
        let is_key = |bytes: &[u8]| {
            (1..=KEY_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
        };
        match value.to_str() {
            Ok(text) if is_key(text.as_bytes()) && stated.next().is_none() => {
                Ok(Self(Some((text.to_owned(), parts.uri.path().to_owned()))))
            }
            _ => Err(Problem::out_of_bounds(
                "Idempotency-Key",
                "one, of 1 to 255 visible ASCII characters",
            )),
        }
    }
}

impl Key {
    /// The call that is to happen once.
    pub(super) fn once(&self, app: &AppId, body: &Bytes) -> Option<Once> {
        let (key, path) = self.0.as_ref()?;
        Some(Once::new(app, key, &[path.as_bytes(), &[0], body]))
    }
}

/// JSON that is kept and answered as it stands.
pub(super) fn text<T: Serialize>(answer: &T) -> Vec<u8> {
    serde_json::to_vec(answer).unwrap_or_default()
}

/// The answer of the first time.
pub(super) fn replayed(status: StatusCode, text: Vec<u8>) -> Response {
    mark((status, [(CONTENT_TYPE, "application/json")], text).into_response())
}

/// An answer that is made of kept ones.
pub(super) fn assembled<T: Serialize>(answer: T) -> Response {
    mark(Json(answer).into_response())
}

fn mark(mut answer: Response) -> Response {
    answer.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    answer
}

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const KEY_BYTES_MAX: usize = 255;
