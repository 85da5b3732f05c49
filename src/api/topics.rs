//! Topics: who follows, and many registrations changed at once.
//!
//! A regID that cannot be changed does not stop the others: it is listed with its code.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};

use super::{
    Shared,
    auth::Caller,
    page::{Page, limit_of},
};
use crate::{
    base::{
        http::{
            Code, Problem,
            body::{InPath, InQuery, JsonBody},
        },
        ids::Topic,
    },
    service::{Error, topics::Verb},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    regids: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Changed {
    done: usize,
    failed: Vec<Failed>,
}

#[derive(Serialize)]
struct Failed {
    regid: String,
    code: &'static str,
}

/// How many follow a topic.
#[derive(Serialize)]
pub(super) struct Count {
    topic: String,
    members: usize,
}

/// Some followers of a topic.
#[derive(Serialize)]
pub(super) struct Members {
    members: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

pub(super) async fn change(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, topic_and_verb)): InPath<(String, String)>,
    JsonBody(Request { regids }): JsonBody<Request>,
) -> Result<Json<Changed>, Problem> {
    let (topic, verb) = parse(&topic_and_verb)?;
    if !(1..=REGIDS_MAX).contains(&regids.len()) {
        return Err(Problem::out_of_bounds("regids", "1 to 1000 of them"));
    }
    let _room = api.busy.take()?;
    let results = api.service.change_topic(&app, &topic, &regids, verb).await?;
    let (mut done, mut failed) = (0, Vec::new());
    for (regid, result) in regids.into_iter().zip(results) {
        match result {
            Ok(()) => done += 1,
            Err(error) => {
                let code = Problem::from(error).code.row().text;
                failed.push(Failed { regid, code });
            }
        }
    }
    Ok(Json(Changed { done, failed }))
}

pub(super) async fn show(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, topic)): InPath<(String, String)>,
) -> Result<Json<Count>, Problem> {
    let members = api.service.topic_count(&app, &topic)?;
    Ok(Json(Count { topic, members }))
}

pub(super) async fn members(
    State(api): State<Shared>,
    Caller(app): Caller,
    InPath((_, topic)): InPath<(String, String)>,
    InQuery(Page { after, limit }): InQuery<Page>,
) -> Result<Json<Members>, Problem> {
    let page = api.service.topic_members(&app, &topic, after.as_deref(), limit_of(limit)?)?;
    let members = page.members.iter().map(ToString::to_string).collect();
    Ok(Json(Members { members, next: page.next.map(|next| next.to_string()) }))
}

/// `{topic}:subscribe` or `{topic}:unsubscribe`; the topic may have colons of its own.
fn parse(topic_and_verb: &str) -> Result<(String, Verb), Problem> {
    let (topic, verb) = match topic_and_verb.rsplit_once(':') {
        Some((topic, "subscribe")) => (topic, Verb::Subscribe),
        Some((topic, "unsubscribe")) => (topic, Verb::Unsubscribe),
        Some(_) | None => return Err(Problem::new(Code::UnknownPath, "")),
    };
    topic.parse::<Topic>().map_err(Error::from)?;
    Ok((topic.to_owned(), verb))
}

const REGIDS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_is_after_the_last_colon() {
        assert_eq!(parse("news:subscribe"), Ok(("news".into(), Verb::Subscribe)));
        assert_eq!(parse("a:b:unsubscribe"), Ok(("a:b".into(), Verb::Unsubscribe)));
        let status = |path| parse(path).map_err(|problem| problem.code);
        assert_eq!(status("news"), Err(Code::UnknownPath));
        assert_eq!(status("news:publish"), Err(Code::UnknownPath));
        assert_eq!(status(":subscribe"), Err(Code::OutOfBounds));
    }
}
