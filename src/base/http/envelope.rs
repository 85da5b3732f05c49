//! What surrounds every call: its trace id, its deadline, its metrics, its encodings,
//! and the body of every error.
//!
//! A call runs in a task of its own and to its end, also if its caller hangs up:
//! what has begun to change is not left half changed. A panic ends that task and
//! nothing else.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{
        HeaderName, HeaderValue,
        header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::{Code, Fault, Problem, Retry, TraceId, encoding, serve::Slot};
use crate::base::{metrics::Metrics, tasks};

/// What a door wants around its calls.
#[derive(Clone)]
pub struct Envelope {
    /// From the head of a request to the end of its body; the answer may take as long again.
    pub request_timeout: Duration,
    /// The largest body, in bytes.
    pub body_bytes_max: usize,
    /// Where answers are counted.
    pub metrics: Option<Arc<Metrics>>,
}

/// Until when the body must have arrived, as an extension of each request.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// The largest body, in bytes, as an extension of each request.
#[derive(Clone, Copy, Debug)]
pub struct BodyMax(pub usize);

impl Envelope {
    /// Puts every route of the router, and its answers to unknown ones, into the envelope.
    pub fn around(self, router: Router) -> Router {
        encoding::around(router.layer(middleware::from_fn_with_state(Arc::new(self), call)))
    }
}

async fn call(State(envelope): State<Arc<Envelope>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let trace_id = TraceId::random();
    let body_by = started + envelope.request_timeout;
    request.extensions_mut().insert(trace_id.clone());
    request.extensions_mut().insert(Deadline(body_by));
    request.extensions_mut().insert(BodyMax(envelope.body_bytes_max));
    // The slot of the connection outlives it until the call has ended: this bounds the calls too.
    let slot = request.extensions_mut().remove::<Slot>();
    let running = tasks::spawn("request", async move {
        let _slot = slot;
        next.run(request).await
    });
    let answer = match timeout_at(body_by + envelope.request_timeout, running).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => {
            tracing::error!(trace_id = trace_id.as_str(), %panic, "call panicked");
            Problem::new(Code::Internal, "the call ended unexpectedly").into_response()
        }
        Err(_) => {
            let detail =
                "the call takes too long; it may still succeed, so ask before you repeat it";
            Problem::new(Code::Unavailable, detail).into_response()
        }
    };
    let answer = seal(answer, &trace_id);
    if let Some(metrics) = &envelope.metrics {
        metrics.api.response(answer.status().as_u16(), started.elapsed());
    }
    answer
}

/// Gives an answer its trace id and, if it is an error, its body.
fn seal(mut answer: Response, trace_id: &TraceId) -> Response {
    let status = answer.status();
    let named = answer.extensions_mut().remove::<Problem>();
    let bare = || Problem::new(Code::of_status(status), "");
    let is_error = status.is_client_error() || status.is_server_error();
    if let Some(problem) = named.or_else(|| is_error.then(bare)) {
        let kept = KEPT.map(|name| answer.headers_mut().remove(&name).map(|value| (name, value)));
        answer = write(&problem, trace_id);
        answer.headers_mut().extend(kept.into_iter().flatten());
    }
    let headers = answer.headers_mut();
    if let Ok(value) = HeaderValue::from_str(trace_id.as_str()) {
        headers.insert(TRACE_ID, value);
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

fn write(problem: &Problem, trace_id: &TraceId) -> Response {
    let row = problem.code.row();
    // Refusals of an overloaded node are counted; a line for each would be work as well.
    if row.fault == Fault::Ours && problem.code != Code::Overloaded {
        tracing::warn!(
            trace_id = trace_id.as_str(),
            code = row.text,
            detail = problem.detail,
            "call failed"
        );
    }
    let body = Body {
        r#type: format!("urn:carillon:problem:{}", row.text),
        title: row.title,
        status: row.status.as_u16(),
        detail: if problem.detail.is_empty() { row.title } else { &problem.detail },
        code: row.text,
        field: problem.field,
        trace_id: trace_id.as_str(),
    };
    let mut answer = (row.status, axum::Json(body)).into_response();
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    let scheme = match problem.code {
        Code::Unauthorized => Some("Bearer"),
        Code::BadCredentials => Some("Basic realm=\"device\""),
        _ => None,
    };
    if let Some(scheme) = scheme {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
    if let Retry::AfterS(seconds) = problem.retry() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    answer
}

/// RFC 9457, with our members `code`, `field` and `trace_id`.
#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    trace_id: &'a str,
}

/// What an error answer keeps of the headers that it had.
const KEPT: [HeaderName; 3] =
    [ALLOW, HeaderName::from_static("ratelimit-policy"), HeaderName::from_static("ratelimit")];
const TRACE_ID: HeaderName = HeaderName::from_static("trace-id");

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        extract::DefaultBodyLimit,
        http::Method,
        routing::{get, post},
    };
    use serde::Deserialize;
    use tower::ServiceExt;

    use super::{super::body::JsonBody, *};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Input {
        count: u8,
    }

    async fn read(JsonBody(input): JsonBody<Input>) -> String {
        input.count.to_string()
    }

    fn door() -> Router {
        let router = Router::new()
            .route("/read", post(read))
            .route(
                "/panic",
                get(|| async {
                    if true {
                        panic!("on purpose")
                    }
                }),
            )
            .layer(DefaultBodyLimit::max(64));
        let other = Router::new().route("/other", get(|| async { "other" }));
        let envelope = Envelope {
            request_timeout: Duration::from_secs(5),
            body_bytes_max: 1 << 20,
            metrics: None,
        };
        // As the admin door does it: two enveloped routers become one.
        envelope.clone().around(router).merge(envelope.around(other))
    }

    async fn ask(method: Method, path: &str, kind: &str, body: Body) -> (u16, serde_json::Value) {
        let request =
            Request::builder().method(method).uri(path).header(CONTENT_TYPE, kind).body(body);
        let answer = door().oneshot(request.unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let trace_id = answer.headers()["trace-id"].to_str().unwrap().to_owned();
        let is_problem = answer.headers()[CONTENT_TYPE] == "application/problem+json";
        let bytes = to_bytes(answer.into_body(), 1 << 16).await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        assert_eq!(is_problem, status >= 400);
        if is_problem {
            assert_eq!(
                (json["status"].as_u64(), json["trace_id"].as_str()),
                (Some(u64::from(status)), Some(&*trace_id))
            );
        }
        (status, json)
    }

    async fn post_json(body: &'static [u8]) -> (u16, String, String) {
        let (status, json) = ask(Method::POST, "/read", "application/json", body.into()).await;
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        (status, text("code"), text("detail"))
    }

    #[tokio::test]
    async fn unreadable_bodies_are_refused_with_the_place() {
        assert_eq!(post_json(br#"{"count":3}"#).await.0, 200);
        let cases: [(&[u8], &str); 6] = [
            (br#"{"count":3,"cuont":4}"#, "unknown field `cuont`"),
            (br#"{"count":"3"}"#, "count: invalid type"),
            (br#"{"count":300}"#, "count: invalid value"),
            (br#"{}"#, "missing field `count`"),
            (b"{\"count\":", "line 1 column 9"),
            (b"{\"\xff\":3}", "line 1 column"),
        ];
        for (body, place) in cases {
            let (status, code, detail) = post_json(body).await;
            assert_eq!((status, code.as_str()), (400, "invalid_request"), "{detail}");
            assert!(detail.contains(place), "{detail} should have {place}");
        }
    }

    #[tokio::test]
    async fn every_other_refusal_is_a_problem_too() {
        let large = Body::from(vec![b' '; 65]);
        assert_eq!(
            ask(Method::POST, "/read", "application/json", large).await.1["code"],
            "body_too_large"
        );
        assert_eq!(
            ask(Method::POST, "/read", "text/plain", "{}".into()).await.1["code"],
            "unsupported_media_type"
        );
        assert_eq!(
            ask(Method::GET, "/read", "", Body::empty()).await.1["code"],
            "method_not_allowed"
        );
        assert_eq!(ask(Method::GET, "/nowhere", "", Body::empty()).await.1["code"], "unknown_path");
        assert_eq!(ask(Method::GET, "/panic", "", Body::empty()).await.1["code"], "internal");
        assert_eq!(ask(Method::GET, "/other", "", Body::empty()).await.0, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_arrive_times_out() {
        let never = Body::from_stream(futures_util::stream::pending::<
            Result<bytes::Bytes, std::io::Error>,
        >());
        let (status, json) = ask(Method::POST, "/read", "application/json", never).await;
        assert_eq!((status, json["code"].as_str()), (408, Some("request_timeout")));
    }
}
