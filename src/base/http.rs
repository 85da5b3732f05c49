//! What the HTTP doors share: the shape of errors, who asks, and the loop that serves.
//!
//! A refused request is a [`Problem`] (RFC 9457). Handlers only name its [`Code`];
//! [`envelope`] writes the body, so that every error has the same shape and the
//! trace id of its request. Nothing here knows a business call.

pub mod body;
mod callers;
mod encoding;
pub mod envelope;
mod heard;
pub mod serve;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use aws_lc_rs::{constant_time, digest};
use axum::{
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
};
use data_encoding::{BASE64, HEXLOWER};

use super::{ids::random_bytes, keys::Secret};

/// Why a request was refused, as a stable text for programs. [`Code::row`] is the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It cannot be read: not JSON, an unknown field, a wrong type.
    InvalidRequest,
    /// No credential, or a wrong one.
    Unauthorized,
    /// No device's credential, or a wrong one.
    BadCredentials,
    /// The credential does not cover this.
    Forbidden,
    /// The app's aliases are not safe enough for collections.
    CollectionsNeedPolicy,
    /// There is no such thing.
    NotFound,
    /// There is no such path.
    UnknownPath,
    /// The path exists, but not for this method.
    MethodNotAllowed,
    /// The request did not arrive in time.
    RequestTimeout,
    /// It exists already.
    AlreadyExists,
    /// What followed the stated position is not held any more.
    PositionGone,
    /// A call with the same idempotency key runs.
    IdempotencyKeyInUse,
    /// The idempotency key was used for another call.
    IdempotencyKeyReused,
    /// The body is larger than allowed.
    BodyTooLarge,
    /// The body is not what the call takes, by its content type.
    UnsupportedMediaType,
    /// A field has a value out of its bounds.
    OutOfBounds,
    /// A bound on the number of things is reached.
    LimitReached,
    /// Too many requests of this kind.
    RateLimited,
    /// The app's quota of the day is used up.
    QuotaExceeded,
    /// A defect of ours.
    Internal,
    /// We cannot do it now.
    Unavailable,
    /// Long-term storage is behind.
    StorageBehind,
    /// We have as much in hand as we take.
    Overloaded,
}

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The one who asks must change something.
    Caller,
    /// We must.
    Ours,
}

/// Whether the same request may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Not before something else has changed.
    Never,
    /// After so many seconds.
    AfterS(u64),
}

/// What a code stands for.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The text in `code`; never changes.
    pub text: &'static str,
    /// The status.
    pub status: StatusCode,
    /// For people.
    pub title: &'static str,
    /// Whose fault it is.
    pub fault: Fault,
    /// Whether to try again.
    pub retry: Retry,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 23] = [
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::BadCredentials,
        Self::Forbidden,
        Self::CollectionsNeedPolicy,
        Self::NotFound,
        Self::UnknownPath,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::AlreadyExists,
        Self::PositionGone,
        Self::IdempotencyKeyInUse,
        Self::IdempotencyKeyReused,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::OutOfBounds,
        Self::LimitReached,
        Self::RateLimited,
        Self::QuotaExceeded,
        Self::Internal,
        Self::Unavailable,
        Self::StorageBehind,
        Self::Overloaded,
    ];

    /// The table of refusals.
    #[rustfmt::skip] // one line an entry
    pub fn row(self) -> Row {
        use Fault::{Caller, Ours};
        use Retry::{AfterS, Never};
        use StatusCode as S;
        let (text, status, title, fault, retry) = match self {
            Self::InvalidRequest => ("invalid_request", S::BAD_REQUEST, "The request cannot be read", Caller, Never),
            Self::Unauthorized => ("unauthorized", S::UNAUTHORIZED, "The credential is missing or wrong", Caller, Never),
            Self::BadCredentials => ("bad_credentials", S::UNAUTHORIZED, "The device or its secret is wrong", Caller, Never),
            Self::Forbidden => ("forbidden", S::FORBIDDEN, "The credential does not cover this", Caller, Never),
            Self::CollectionsNeedPolicy => ("collections_need_policy", S::FORBIDDEN, "The app's alias policy does not allow collections", Caller, Never),
            Self::NotFound => ("not_found", S::NOT_FOUND, "There is no such thing", Caller, Never),
            Self::UnknownPath => ("unknown_path", S::NOT_FOUND, "There is no such path", Caller, Never),
            Self::MethodNotAllowed => ("method_not_allowed", S::METHOD_NOT_ALLOWED, "The path does not know this method", Caller, Never),
            Self::RequestTimeout => ("request_timeout", S::REQUEST_TIMEOUT, "The request did not arrive in time", Caller, AfterS(1)),
            Self::AlreadyExists => ("already_exists", S::CONFLICT, "It exists already", Caller, Never),
            Self::PositionGone => ("position_gone", S::GONE, "The changes after the position are gone", Caller, Never),
            Self::IdempotencyKeyInUse => ("idempotency_key_in_use", S::CONFLICT, "The same call is still running", Caller, AfterS(1)),
            Self::IdempotencyKeyReused => ("idempotency_key_reused", S::UNPROCESSABLE_ENTITY, "The idempotency key was used for another call", Caller, Never),
            Self::BodyTooLarge => ("body_too_large", S::PAYLOAD_TOO_LARGE, "The body is too large", Caller, Never),
            Self::UnsupportedMediaType => ("unsupported_media_type", S::UNSUPPORTED_MEDIA_TYPE, "The body is of another type", Caller, Never),
            Self::OutOfBounds => ("out_of_bounds", S::UNPROCESSABLE_ENTITY, "A field is out of its bounds", Caller, Never),
            Self::LimitReached => ("limit_reached", S::UNPROCESSABLE_ENTITY, "A limit is reached", Caller, Never),
            Self::RateLimited => ("rate_limited", S::TOO_MANY_REQUESTS, "Too many requests", Caller, AfterS(60)),
            Self::QuotaExceeded => ("quota_exceeded", S::TOO_MANY_REQUESTS, "The quota of the day is used up", Caller, AfterS(3600)),
            Self::Internal => ("internal", S::INTERNAL_SERVER_ERROR, "The gateway has a defect", Ours, AfterS(1)),
            Self::Unavailable => ("unavailable", S::SERVICE_UNAVAILABLE, "The gateway cannot do this now", Ours, AfterS(1)),
            Self::StorageBehind => ("storage_behind", S::SERVICE_UNAVAILABLE, "Long-term storage is behind", Ours, AfterS(5)),
            Self::Overloaded => ("overloaded", S::SERVICE_UNAVAILABLE, "The gateway has too much to do", Ours, AfterS(1)),
        };
        Row { text, status, title, fault, retry }
    }

    /// The code of an error answer that names none, as routers make them.
    fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthorized,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::UnknownPath,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Self::RequestTimeout,
            StatusCode::PAYLOAD_TOO_LARGE => Self::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            StatusCode::SERVICE_UNAVAILABLE => Self::Unavailable,
            other if other.is_client_error() => Self::InvalidRequest,
            _ => Self::Internal,
        }
    }
}

/// A refused request. As a response it has no body yet: [`envelope`] writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Why.
    pub code: Code,
    /// This time, in words; may be empty.
    pub detail: String,
    /// The field that is out of its bounds.
    pub field: Option<&'static str>,
    /// Instead of the table's time.
    pub retry_after_s: Option<u64>,
}

impl Problem {
    /// A problem with words about this request.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), field: None, retry_after_s: None }
    }

    /// A field is out of its bounds.
    pub fn out_of_bounds(field: &'static str, rule: &str) -> Self {
        Self { field: Some(field), ..Self::new(Code::OutOfBounds, format!("{field}: {rule}")) }
    }

    /// The one answer to a missing, malformed or wrong credential.
    pub fn unauthorized() -> Self {
        Self::new(
            Code::Unauthorized,
            "send `Authorization: Bearer` with a valid credential for this app",
        )
    }

    /// The one answer to a device's missing, malformed or wrong credential.
    pub fn bad_credentials() -> Self {
        Self::new(
            Code::BadCredentials,
            "send `Authorization: Basic` with the device's device_id and secret",
        )
    }

    /// When the same request may be made again, if it may.
    pub fn retry(&self) -> Retry {
        match self.retry_after_s {
            Some(seconds) => Retry::AfterS(seconds),
            None => self.code.row().retry,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.row().status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// One request's id, in its answer and in every log line about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceId(Arc<str>);

impl TraceId {
    /// 16 random hexadecimal digits.
    pub fn random() -> Self {
        Self(HEXLOWER.encode(&random_bytes::<8>()).into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The address at the other end of the connection, as an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// Whether the node takes work; false before it serves and while it drains.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// Says so from now on.
    pub fn set(&self, is_ready: bool) {
        self.0.store(is_ready, Ordering::Release);
    }

    /// Whether it does.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// The answer to `/readyz`.
    ///
    /// # Errors
    /// A problem while the node takes no work.
    pub fn answer(&self) -> Result<&'static str, Problem> {
        if self.is_set() {
            return Ok("ready\n");
        }
        Err(Problem::new(Code::Unavailable, "the node is starting or draining"))
    }
}

/// The operator's credential: kept as a hash, compared in constant time.
#[derive(Clone)]
pub struct Token(digest::Digest);

impl From<&Secret> for Token {
    fn from(secret: &Secret) -> Self {
        Self(digest::digest(&digest::SHA256, secret.reveal().as_bytes()))
    }
}

impl Token {
    /// Whether this is what the caller shows.
    pub fn is_shown_by(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|stated| {
            let stated = digest::digest(&digest::SHA256, stated.as_bytes());
            constant_time::verify_slices_are_equal(self.0.as_ref(), stated.as_ref()).is_ok()
        })
    }
}

/// The credential of `Authorization: Bearer …`, if there is exactly one.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    authorization(headers, "bearer")
}

/// Name and password of `Authorization: Basic …`, if there is exactly one.
pub fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let pair = BASE64.decode(authorization(headers, "basic")?.as_bytes()).ok()?;
    let (name, password) = str::from_utf8(&pair).ok()?.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

fn authorization<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, credential) = value.to_str().ok()?.split_once(' ')?;
    let credential = credential.trim();
    (scheme.eq_ignore_ascii_case(wanted) && !credential.is_empty()).then_some(credential)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn only_a_single_bearer_credential_is_read() {
        assert_eq!(bearer(&with("Bearer abc")), Some("abc"));
        assert_eq!(bearer(&with("bearer  abc ")), Some("abc"));
        for wrong in ["abc", "Basic abc", "Bearer", "Bearer  "] {
            assert_eq!(bearer(&with(wrong)), None, "{wrong}");
        }
        let mut twice = with("Bearer abc");
        twice.append(AUTHORIZATION, "Bearer abc".parse().unwrap());
        assert_eq!(bearer(&twice), None);
    }

    #[test]
    fn only_a_single_pair_of_name_and_password_is_read() {
        let of = |value: &str| basic(&with(value));
        let pair = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        // RFC 7617's own example.
        assert_eq!(of("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), pair("Aladdin", "open sesame"));
        assert_eq!(of("basic YTpiOmM="), pair("a", "b:c"));
        for wrong in ["Bearer YTpi", "Basic", "Basic  ", "Basic YWI=", "Basic !", "Basic /zpi"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_token_is_the_whole_text() {
        let token = Token::from(&Secret::stated("abc"));
        assert!(token.is_shown_by(&with("Bearer abc")));
        assert!(!token.is_shown_by(&with("Bearer ab")));
        assert!(!token.is_shown_by(&with("Bearer abcd")));
        assert!(!token.is_shown_by(&HeaderMap::new()));
    }

    #[test]
    fn our_faults_can_be_retried_and_codes_are_distinct() {
        let mut texts = std::collections::HashSet::new();
        for row in Code::ALL.map(Code::row) {
            assert!(texts.insert(row.text));
            assert_eq!(row.fault == Fault::Ours, row.status.is_server_error(), "{}", row.text);
            assert!(row.fault == Fault::Caller || row.retry != Retry::Never, "{}", row.text);
        }
    }
}
