//! Reading what a request says: path, query and JSON body, each with our refusals.
//!
//! A body is read only after its caller is known (extractors run in order), up to
//! the limit of its route, and until the request's deadline.

use std::error::Error;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT},
        request::Parts,
    },
};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::timeout_at;

use super::{
    Code, Problem,
    envelope::{BodyMax, Deadline},
};

/// A JSON body of a known shape.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        Ok(Self(parsed(&json(request, state).await?)?))
    }
}

/// The text of a body that says that it is JSON.
#[derive(Debug)]
pub struct JsonBytes(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonBytes {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        Ok(Self(json(request, state).await?))
    }
}

/// A JSON body of a known shape, with its text.
#[derive(Debug)]
pub struct JsonText<T> {
    /// What it says.
    pub value: T,
    /// As sent.
    pub text: Bytes,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonText<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let text = json(request, state).await?;
        Ok(Self { value: parsed(&text)?, text })
    }
}

/// The bytes of a body of this content type.
///
/// # Errors
/// Another type, or as for JSON.
pub async fn of_type<S: Send + Sync>(
    wanted: &str,
    request: Request,
    state: &S,
) -> Result<Bytes, Problem> {
    if content_type(request.headers()) != wanted {
        let detail = format!("send `content-type: {wanted}`");
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    read(request, state).await
}

async fn json<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    if !is_json(request.headers()) {
        let detail = "send `content-type: application/json`";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    // Those that we know are taken off before.
    let encoding = request.headers().get(CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        let detail = "send the body as it is, or with `content-encoding: gzip` or `deflate`";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    read(request, state).await
}

/// Reads JSON of a known shape.
///
/// # Errors
/// Says where and why it is not.
pub fn parsed<T: DeserializeOwned>(text: &[u8]) -> Result<T, Problem> {
    match axum::Json::from_bytes(text) {
        Ok(axum::Json(value)) => Ok(value),
        // The rejection says "failed to deserialize"; its source says where and why.
        Err(rejection) => {
            let source = rejection.source().map(ToString::to_string);
            let reason = source.unwrap_or_else(|| rejection.to_string());
            Err(Problem::new(Code::InvalidRequest, without_value(&reason)))
        }
    }
}

/// The parameters in the path.
#[derive(Debug)]
pub struct InPath<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for InPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(Code::InvalidRequest, rejection.body_text())),
        }
    }
}

/// The parameters in the query.
#[derive(Debug)]
pub struct InQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for InQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(Code::InvalidRequest, rejection.body_text())),
        }
    }
}

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let deadline = request.extensions().get::<Deadline>().copied();
    let announced = request.headers().get(CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let max = request.extensions().get().map_or(u64::MAX, |BodyMax(max)| *max as u64);
    if let Some(bytes) = announced.filter(|bytes| *bytes > max) {
        // Who waits for 100 Continue hears at once; who sends anyway hears better if
        // somebody listened to the end, unless that is far away.
        let is_waiting = request.headers().contains_key(EXPECT);
        if !is_waiting && bytes <= max.saturating_mul(4) {
            discard(request.into_body(), deadline).await;
        }
        return Err(Problem::new(Code::BodyTooLarge, ""));
    }
    let reading = Bytes::from_request(request, state);
    let read = match deadline {
        Some(Deadline(at)) => timeout_at(at, reading)
            .await
            .map_err(|_| Problem::new(Code::RequestTimeout, "the body did not arrive in time"))?,
        None => reading.await,
    };
    read.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Code::BodyTooLarge, ""),
        _ => Problem::new(
            Code::InvalidRequest,
            "the body ended early, or is not what its content-encoding says",
        ),
    })
}

/// A reason of serde's without the text that it found: that may be a payload or a secret, and
/// whoever asked may log the refusal.
fn without_value(reason: &str) -> String {
    let Some((before, found)) = reason.split_once("string \"") else { return reason.to_owned() };
    let mut is_escaped = false;
    let end = found.find(|c| {
        let is_end = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    });
    let after = end.map_or("", |end| &found[end + 1..]);
    format!("{before}string{after}")
}

/// Reads a body to its end or to the request's deadline.
async fn discard(mut body: Body, deadline: Option<Deadline>) {
    let reading = async { while let Some(Ok(_)) = body.frame().await {} };
    match deadline {
        Some(Deadline(at)) => drop(timeout_at(at, reading).await),
        None => reading.await,
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = content_type(headers);
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Without its parameters.
fn content_type(headers: &HeaderMap) -> String {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_does_not_repeat_the_value() {
        for (reason, shown) in [
            (
                "ttl_s: invalid type: string \"s3\", expected i64",
                "ttl_s: invalid type: string, expected i64",
            ),
            ("invalid value: string \"a\\\\\\\"b\" at line 1", "invalid value: string at line 1"),
            ("invalid type: string \"", "invalid type: string"),
            ("missing field `target`", "missing field `target`"),
        ] {
            assert_eq!(without_value(reason), shown);
        }
    }
}
