//! Several messages in one request, a result for each.

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Api, Shared,
    auth::Caller,
    messages::{DRY_RUN, Matched, Request as Message, state_of},
    once,
};
use crate::{
    base::{
        http::{
            Code, Problem, TraceId,
            body::{JsonBytes, parsed},
        },
        ids::AppId,
    },
    queue::entry::Priority,
    service::{
        Error,
        once::{Answer, Once},
        send::{Send, Sent},
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request<M> {
    messages: Vec<M>,
}

#[derive(Serialize)]
pub(super) struct Results {
    accepted: usize,
    results: Vec<Fared>,
    trace_id: String,
}

/// How one message fared.
#[derive(Serialize)]
#[serde(untagged)]
enum Fared {
    Accepted {
        id: String,
        target: Matched,
        state: &'static str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        invalid: Vec<String>,
    },
    Refused {
        state: &'static str,
        status: u16,
        code: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        field: Option<&'static str>,
        detail: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_s: Option<u64>,
    },
    /// As it was answered the first time.
    Kept(Box<RawValue>),
}

impl Fared {
    fn is_accepted(&self) -> bool {
        match self {
            Self::Accepted { state, .. } => *state != DRY_RUN,
            Self::Kept(_) => true,
            Self::Refused { .. } => false,
        }
    }
}

impl From<&Sent> for Fared {
    fn from(sent: &Sent) -> Self {
        Self::Accepted {
            id: sent.id.to_string(),
            target: Matched::of(sent),
            state: state_of(sent),
            invalid: sent.invalid.clone(),
        }
    }
}

impl From<Problem> for Fared {
    fn from(problem: Problem) -> Self {
        let row = problem.code.row();
        Self::Refused {
            state: "refused",
            status: row.status.as_u16(),
            code: row.text,
            field: problem.field,
            detail: problem.detail,
            retry_after_s: problem.retry_after_s,
        }
    }
}

impl From<Result<Answer, Error>> for Fared {
    fn from(answered: Result<Answer, Error>) -> Self {
        match answered {
            Ok(Answer::Fresh(sent)) => (&sent).into(),
            Ok(Answer::Kept(text)) => {
                let kept = String::from_utf8(text).ok().and_then(|t| RawValue::from_string(t).ok());
                kept.map_or_else(|| Problem::new(Code::Internal, "").into(), Self::Kept)
            }
            Err(error) => Problem::from(error).into(),
        }
    }
}

pub(super) async fn send(
    State(api): State<Shared>,
    Caller(app): Caller,
    Extension(trace_id): Extension<TraceId>,
    key: once::Key,
    JsonBytes(text): JsonBytes,
) -> Response {
    let once = key.once(&app, &text);
    let answered = match read(&text) {
        Ok(messages) => answer(&api, &app, &trace_id, once, messages).await,
        // The shape of the call is wrong: nothing is counted.
        Err(problem) => return problem.into_response(),
    };
    api.with_allowance(&app, answered)
}

/// The messages of a call: one that is wrong does not stop the others.
fn read(text: &[u8]) -> Result<Vec<Result<Send, Problem>>, Problem> {
    // Usually all have the right shape, and are read at once.
    if let Ok(all) = serde_json::from_slice::<Request<Message<&RawValue>>>(text) {
        return Ok(all.messages.into_iter().map(Send::try_from).collect());
    }
    let one =
        |text: Box<RawValue>| parsed::<Message>(text.get().as_bytes()).and_then(Send::try_from);
    Ok(parsed::<Request<Box<RawValue>>>(text)?.messages.into_iter().map(one).collect())
}

async fn answer(
    api: &Api,
    app: &AppId,
    trace_id: &TraceId,
    once: Option<Once>,
    messages: Vec<Result<Send, Problem>>,
) -> Result<Response, Problem> {
    if !(1..=MESSAGES_MAX).contains(&messages.len()) {
        return Err(Problem::out_of_bounds("messages", "1 to 500 of them"));
    }
    let _room = api.busy.take_for(are_high(&messages))?;
    let (mut sends, mut results) = (Vec::with_capacity(messages.len()), Vec::new());
    for (at, message) in (0..).zip(messages) {
        results.push(match message {
            Ok(send) => {
                sends.push((at, send));
                None
            }
            Err(problem) => Some(Fared::from(problem)),
        });
    }
    let answered: Vec<Result<Answer, Error>> = match once {
        Some(once) => {
            let answer = |sent: &Sent| once::text(&Fared::from(sent));
            api.service.send_all_once(app, sends, &once, answer).await?
        }
        None => {
            let sends = sends.into_iter().map(|(_, send)| send).collect();
            let sent = api.service.send_all(app, sends).await;
            sent.into_iter().map(|sent| sent.map(Answer::Fresh)).collect()
        }
    };
    // A replay is one in which nothing was sent now, and something was before.
    let is_kept = |one: &Result<Answer, Error>| matches!(one, Ok(Answer::Kept(_)));
    let is_sent =
        |one: &Result<Answer, Error>| matches!(one, Ok(Answer::Fresh(sent)) if !sent.is_dry_run);
    let is_replay = answered.iter().any(is_kept) && !answered.iter().any(is_sent);
    let mut answered = answered.into_iter().map(Fared::from);
    // There is an answer for each that could be read.
    let missing = || Problem::new(Code::Internal, "").into();
    let results: Vec<Fared> = results
        .into_iter()
        .map(|read| read.unwrap_or_else(|| answered.next().unwrap_or_else(missing)))
        .collect();
    let accepted = results.iter().filter(|fared| fared.is_accepted()).count();
    let results = Results { accepted, results, trace_id: trace_id.as_str().to_owned() };
    Ok(if is_replay { once::assembled(results) } else { Json(results).into_response() })
}

/// Whether a call is urgent: one of another priority makes it wait with the others.
fn are_high(messages: &[Result<Send, Problem>]) -> bool {
    let is_high = |send: &Send| send.priority == Some(Priority::High);
    messages.iter().all(|message| message.as_ref().is_ok_and(is_high))
}

const MESSAGES_MAX: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_a_wrong_shape_is_told_without_its_values() {
        let text = br#"{"messages":[{"target":{"all":true},"payload":1,"ttl_s":"SECRET"}]}"#;
        let mut all = read(text).map_err(drop).unwrap();
        let Err(problem) = all.remove(0) else { panic!("it is wrong") };
        let told = format!("{problem:?}");
        assert!(told.contains("ttl_s") && !told.contains("SECRET"), "{told}");
    }

    #[test]
    fn a_call_is_urgent_if_all_that_it_has_are() {
        let call = |priorities: &[&str]| {
            let one = |priority: &&str| {
                format!(r#"{{"target":{{"all":true}},"payload":1,"priority":{priority}}}"#)
            };
            let messages: Vec<String> = priorities.iter().map(one).collect();
            let text = format!(r#"{{"messages":[{}]}}"#, messages.join(","));
            are_high(&read(text.as_bytes()).map_err(drop).unwrap())
        };
        assert!(call(&[r#""high""#]) && call(&[r#""high""#, r#""high""#]));
        for other in [r#""normal""#, r#""low""#, r#""urgent""#, "null"] {
            assert!(!call(&[r#""high""#, other]), "{other}");
        }
    }
}
