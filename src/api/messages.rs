//! Sending, and where a message is.
//!
//! A request is parsed into a [`Send`] whose shape cannot be wrong: exactly one
//! target and exactly one payload. Bounds of values are the service's.

use std::borrow::Borrow;

use axum::{
    Extension, Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, value::RawValue};

use super::{Api, Shared, audience::StatedFilter, auth::Caller, once};
use crate::{
    base::{
        civil::rfc3339_ms,
        http::{
            Code, Problem, TraceId,
            body::{InPath, InQuery, JsonText},
        },
        ids::AppId,
        metrics::Label,
    },
    queue::entry::{Notification, Priority},
    service::{
        once::{Answer, Once},
        receipts::{EventKind, Events},
        schedule::Cancelled,
        send::{Asks, Callback, Send, Sent, Target, Timing},
        trace::{MessageState, Trace},
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(bound(deserialize = "P: Deserialize<'de>"))]
pub(super) struct Request<P = Box<RawValue>> {
    target: StatedTarget,
    /// The text itself: neither the order of keys nor a digit of a number may change.
    #[serde(default = "nothing", deserialize_with = "present")]
    payload: Option<P>,
    payload_b64: Option<String>,
    notification: Option<Map<String, Value>>,
    ttl_s: Option<i64>,
    priority: Option<Priority>,
    #[serde(default)]
    receipts: bool,
    callback: Option<StatedCallback>,
    send_at: Option<String>,
    max_rate_per_s: Option<i64>,
    filter: Option<StatedFilter>,
    collapse_key: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatedCallback {
    url: String,
    events: Vec<EventKind>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatedTarget {
    regids: Option<Vec<String>>,
    aliases: Option<Vec<String>>,
    topic: Option<String>,
    condition: Option<String>,
    all: Option<bool>,
}

#[derive(Serialize)]
pub(super) struct Accepted {
    id: String,
    target: Matched,
    state: &'static str,
    trace_id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    invalid: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Matched {
    kind: &'static str,
    matched: usize,
}

impl Matched {
    pub(super) fn of(sent: &Sent) -> Self {
        Self { kind: sent.kind.label(), matched: sent.matched }
    }
}

#[derive(Serialize)]
pub(super) struct TakenBack {
    id: String,
    state: &'static str,
}

impl Accepted {
    fn of(sent: &Sent, trace_id: &TraceId) -> Self {
        Self {
            id: sent.id.to_string(),
            target: Matched::of(sent),
            state: state_of(sent),
            trace_id: trace_id.as_str().to_owned(),
            invalid: sent.invalid.clone(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceOf {
    regid: String,
}

pub(super) async fn send(
    State(api): State<Shared>,
    Caller(app): Caller,
    Extension(trace_id): Extension<TraceId>,
    key: once::Key,
    JsonText { value: request, text }: JsonText<Request>,
) -> Response {
    let once = key.once(&app, &text);
    api.with_allowance(&app, sent(&api, &app, &trace_id, once, request).await)
}

async fn sent(
    api: &Api,
    app: &AppId,
    trace_id: &TraceId,
    once: Option<Once>,
    request: Request,
) -> Result<Response, Problem> {
    let _room = api.busy.take_for(request.priority == Some(Priority::High))?;
    let send = request.try_into()?;
    let Some(once) = once else {
        let sent = api.service.send(app, send).await?;
        return Ok((StatusCode::ACCEPTED, Json(Accepted::of(&sent, trace_id))).into_response());
    };
    let answer = |sent: &Sent| once::text(&Accepted::of(sent, trace_id));
    match api.service.send_once(app, send, &once, answer).await? {
        Answer::Kept(text) => Ok(once::replayed(StatusCode::ACCEPTED, text)),
        Answer::Fresh(sent) => {
            Ok((StatusCode::ACCEPTED, Json(Accepted::of(&sent, trace_id))).into_response())
        }
    }
}

pub(super) async fn show(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, id)): InPath<(String, String)>,
) -> Result<Json<MessageState>, Problem> {
    Ok(Json(api.service.message(&app, &id)?))
}

pub(super) async fn take_back(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, id)): InPath<(String, String)>,
) -> Result<Json<TakenBack>, Problem> {
    let _room = api.busy.take()?;
    match api.service.cancel(&app, &id).await? {
        Cancelled::Yes => Ok(Json(TakenBack { id, state: "cancelled" })),
        Cancelled::TooLate => {
            api.service.recall(&app, &id).await?;
            Ok(Json(TakenBack { id, state: "recalled" }))
        }
    }
}

pub(super) async fn trace(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, id)): InPath<(String, String)>,
    InQuery(TraceOf { regid }): InQuery<TraceOf>,
) -> Result<Json<Trace>, Problem> {
    Ok(Json(api.service.trace(&app, &id, &regid)?))
}

impl<P: Borrow<RawValue>> TryFrom<Request<P>> for Send {
    type Error = Problem;

    fn try_from(request: Request<P>) -> Result<Self, Problem> {
        let payload = match (request.payload, request.payload_b64) {
            (Some(json), None) => compact(json.borrow().get()),
            (None, Some(text)) => BASE64
                .decode(text.as_bytes())
                .map_err(|_| {
                    Problem::out_of_bounds("payload_b64", "base64 (RFC 4648) with padding")
                })?
                .into(),
            (Some(_), Some(_)) | (None, None) => {
                return Err(invalid("exactly one of `payload` and `payload_b64` is required"));
            }
        };
        let ttl_s = request.ttl_s.map(u64::try_from).transpose();
        Ok(Self {
            target: request.target.try_into()?,
            payload,
            notification: request.notification.map(notification).transpose()?,
            ttl_s: ttl_s.map_err(|_| Problem::out_of_bounds("ttl_s", "at least 1"))?,
            priority: request.priority,
            asks: Asks {
                receipts: request.receipts,
                callback: request.callback.map(Callback::from),
            },
            timing: timing(request.send_at.as_deref(), request.max_rate_per_s)?,
            filter: request.filter.map(TryInto::try_into).transpose()?,
            collapse_key: request.collapse_key,
            is_dry_run: request.dry_run,
        })
    }
}

impl From<StatedCallback> for Callback {
    fn from(stated: StatedCallback) -> Self {
        let events = stated.events.into_iter().fold(Events::default(), Events::with);
        Self { url: stated.url, events }
    }
}

impl TryFrom<StatedTarget> for Target {
    type Error = Problem;

    fn try_from(stated: StatedTarget) -> Result<Self, Problem> {
        let StatedTarget { regids, aliases, topic, condition, all } = stated;
        let all = match all {
            Some(false) => return Err(Problem::out_of_bounds("target.all", "only `true`")),
            Some(true) => Some(Self::All),
            None => None,
        };
        let stated = [
            regids.map(Self::Regids),
            aliases.map(Self::Aliases),
            topic.map(Self::Topic),
            condition.map(Self::Condition),
            all,
        ];
        let mut stated = stated.into_iter().flatten();
        match (stated.next(), stated.next()) {
            (Some(target), None) => Ok(target),
            (None, _) | (Some(_), Some(_)) => Err(invalid(
                "target: exactly one of `regids`, `aliases`, `topic`, `condition` and `all` is required",
            )),
        }
    }
}

fn timing(send_at: Option<&str>, max_rate_per_s: Option<i64>) -> Result<Timing, Problem> {
    let time = |text| {
        let rule = "an RFC 3339 time like 2026-03-29T08:00:00+02:00";
        rfc3339_ms(text).ok_or_else(|| Problem::out_of_bounds("send_at", rule))
    };
    let rate = |rate| {
        let rule = "1 to 4294967295";
        u32::try_from(rate).map_err(|_| Problem::out_of_bounds("max_rate_per_s", rule))
    };
    Ok(Timing {
        send_at_ms: send_at.map(time).transpose()?,
        max_rate_per_s: max_rate_per_s.map(rate).transpose()?,
    })
}

fn notification(mut fields: Map<String, Value>) -> Result<Notification, Problem> {
    let mut text = |key: &str| match fields.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(&format!("notification.{key}: must be a string"))),
    };
    let (title, body) = (text("title")?, text("body")?);
    let extra = (!fields.is_empty()).then(|| Value::Object(fields).to_string());
    Ok(Notification { title, body, extra })
}

/// In the API's words.
/// The state of what was only checked.
pub(super) const DRY_RUN: &str = "dry_run";

pub(super) fn state_of(sent: &Sent) -> &'static str {
    match (sent.is_dry_run, sent.is_scheduled) {
        (true, _) => DRY_RUN,
        (false, true) => "scheduled",
        (false, false) => "accepted",
    }
}

fn invalid(detail: &str) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}

/// A field that is there, also if it is `null`: `null` is a payload like any other.
pub(super) fn present<'de, P: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<P>, D::Error> {
    P::deserialize(deserializer).map(Some)
}

fn nothing<P>() -> Option<P> {
    None
}

/// Valid JSON without the whitespace between its tokens.
pub(super) fn compact(json: &str) -> Bytes {
    // Nearly all has none. This looks at many bytes at once, the loop below at each.
    if !json.bytes().fold(false, |any, c| any | c.is_ascii_whitespace()) {
        return Bytes::copy_from_slice(json.as_bytes());
    }
    let (mut in_string, mut is_escaped) = (false, false);
    let keep = |c: &u8| {
        if !in_string {
            in_string = *c == b'"';
            return !c.is_ascii_whitespace();
        }
        in_string = is_escaped || *c != b'"';
        is_escaped = *c == b'\\' && !is_escaped;
        true
    };
    // What is left out is ASCII, which is no part of another character.
    let mut kept = Vec::with_capacity(json.len());
    kept.extend(json.bytes().filter(keep));
    kept.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Send, Problem> {
        serde_json::from_str::<Request>(text).unwrap().try_into()
    }

    #[test]
    fn a_payload_keeps_its_order_and_digits() {
        let text = r#"{"target":{"all":true},"payload": { "b" : 1.10, "a" : [ 12345678901234567890123, "x \" y\\" ] } }"#;
        assert_eq!(
            parsed(text).unwrap().payload,
            r#"{"b":1.10,"a":[12345678901234567890123,"x \" y\\"]}"#
        );
        assert_eq!(parsed(r#"{"target":{"all":true},"payload":null}"#).unwrap().payload, "null");
        assert_eq!(
            parsed(r#"{"target":{"all":true},"payload_b64":"AP8="}"#).unwrap().payload,
            &b"\x00\xff"[..]
        );
    }

    #[test]
    fn compact_json_is_the_same_json() {
        let text = " { \"k\\\\\" : [ true , \"a b\\\\\\\" c\" ] ,\n\t\"é\" : null } ";
        let (before, after): (Value, Value) =
            (serde_json::from_str(text).unwrap(), serde_json::from_slice(&compact(text)).unwrap());
        assert_eq!(before, after);
        assert_eq!(compact(text), after.to_string());
    }

    #[test]
    fn a_priority_is_one_of_three_words() {
        let of = |word: &str| {
            let text = format!(r#"{{"target":{{"all":true}},"payload":1,"priority":"{word}"}}"#);
            serde_json::from_str::<Request>(&text).map(|request| request.priority)
        };
        assert_eq!(of("high").unwrap(), Some(Priority::High));
        assert_eq!(of("low").unwrap(), Some(Priority::Low));
        assert!(of("High").is_err() && of("urgent").is_err());
        assert_eq!(parsed(r#"{"target":{"all":true},"payload":1}"#).unwrap().priority, None);
    }

    #[test]
    fn exactly_one_target_and_one_payload() {
        for wrong in [
            r#"{"target":{},"payload":1}"#,
            r#"{"target":{"topic":"a","all":true},"payload":1}"#,
            r#"{"target":{"topic":"a","condition":"'a' in topics"},"payload":1}"#,
            r#"{"target":{"all":true}}"#,
            r#"{"target":{"all":true},"payload":1,"payload_b64":"AP8="}"#,
            r#"{"target":{"all":true},"payload":1,"notification":{"title":5}}"#,
        ] {
            assert_eq!(parsed(wrong).unwrap_err().code, Code::InvalidRequest, "{wrong}");
        }
        for (wrong, field) in [
            (r#"{"target":{"all":false},"payload":1}"#, "target.all"),
            (r#"{"target":{"all":true},"payload_b64":"AP8"}"#, "payload_b64"),
            (r#"{"target":{"all":true},"payload":1,"ttl_s":-1}"#, "ttl_s"),
        ] {
            assert_eq!(parsed(wrong).unwrap_err().field, Some(field));
        }
    }

    #[test]
    fn further_fields_of_a_notification_stay_together() {
        let text = r#"{"target":{"topic":"a"},"payload":1,"notification":{"title":"t","icon":"i","badge":{"n":2}}}"#;
        let found = parsed(text).unwrap().notification.unwrap();
        assert_eq!((found.title.as_deref(), found.body), (Some("t"), None));
        assert_eq!(found.extra.as_deref(), Some(r#"{"badge":{"n":2},"icon":"i"}"#));
    }
}
