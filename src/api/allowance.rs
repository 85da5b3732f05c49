//! What is left of an app's bounds, in the answers to its sends.
//!
//! The fields are those of the IETF's draft (draft-ietf-httpapi-ratelimit-headers): `RateLimit-Policy`
//! says what there is, `RateLimit` what is left.

use std::fmt::Write;

use axum::{
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};

use super::Api;
use crate::base::ids::AppId;

impl Api {
    /// The answer to a send, with what is left to its app.
    pub(super) fn with_allowance(&self, app: &AppId, answer: impl IntoResponse) -> Response {
        let mut answer = answer.into_response();
        let (mut policy, mut left) = (String::new(), String::new());
        for one in self.service.allowance(app).unwrap_or_default() {
            let comma = if policy.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(policy, "{comma}\"{}\";q={};w={}", one.name, one.quota, one.window_s);
            let _ = write!(left, "{comma}\"{}\";r={};t={}", one.name, one.left, one.reset_s);
        }
        for (name, text) in [(POLICY, policy), (LEFT, left)] {
            if let Ok(value) = HeaderValue::from_str(&text)
                && !text.is_empty()
            {
                answer.headers_mut().insert(name, value);
            }
        }
        answer
    }
}

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");
