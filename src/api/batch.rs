//! Several messages in one request, a result for each.

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Shared,
    auth::Caller,
    messages::{Matched, Request as Message, state_of},
};
use crate::{
    base::http::{Code, Problem, TraceId, body::JsonBody},
    service::send::{Send, Sent},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// Read one by one: one that is wrong does not stop the others.
    messages: Vec<Box<RawValue>>,
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
    },
}

impl From<Sent> for Fared {
    fn from(sent: Sent) -> Self {
        let (target, state) = (Matched::of(&sent), state_of(&sent));
        Self::Accepted { id: sent.id.to_string(), target, state, invalid: sent.invalid }
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
        }
    }
}

pub(super) async fn send(
    State(api): State<Shared>,
    Caller(app): Caller,
    Extension(trace_id): Extension<TraceId>,
    JsonBody(Request { messages }): JsonBody<Request>,
) -> Result<Json<Results>, Problem> {
    if !(1..=MESSAGES_MAX).contains(&messages.len()) {
        return Err(Problem::out_of_bounds("messages", "1 to 500 of them"));
    }
    let _room = api.busy.take()?;
    let mut sends = Vec::with_capacity(messages.len());
    let read: Vec<Result<(), Problem>> =
        messages.iter().map(|text| read(text).map(|send| sends.push(send))).collect();
    let mut sent = api.service.send_all(&app, sends).await.into_iter();
    let mut accepted = 0;
    let mut results = Vec::with_capacity(read.len());
    for read in read {
        // There is a result for each that could be read.
        let fared = match read.map(|()| sent.next()) {
            Ok(Some(Ok(sent))) => {
                accepted += 1;
                sent.into()
            }
            Ok(Some(Err(error))) => Problem::from(error).into(),
            Ok(None) => Problem::new(Code::Internal, "").into(),
            Err(problem) => problem.into(),
        };
        results.push(fared);
    }
    Ok(Json(Results { accepted, results, trace_id: trace_id.as_str().to_owned() }))
}

fn read(text: &RawValue) -> Result<Send, Problem> {
    let message = serde_json::from_str::<Message>(text.get());
    message.map_err(|error| Problem::new(Code::InvalidRequest, error.to_string()))?.try_into()
}

const MESSAGES_MAX: usize = 500;
