//! Many registrations of one topic at once.
//!
//! A regID that cannot be changed does not stop the others: it is listed with its code.

use axum::{Json, extract::State};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use super::{Shared, auth::Caller};
use crate::{
    base::{
        http::{
            Code, Problem,
            body::{InPath, JsonBody},
        },
        ids::{AppId, Topic},
    },
    service::{Error, bind::By},
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Subscribe,
    Unsubscribe,
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
    let topics = [topic];
    let total = regids.len();
    let failed: Vec<Failed> = stream::iter(regids)
        .map(|regid| one(&api, &app, regid, &topics, verb))
        .buffered(AT_ONCE)
        .filter_map(async |failed| failed)
        .collect()
        .await;
    Ok(Json(Changed { done: total - failed.len(), failed }))
}

async fn one(
    api: &Shared,
    app: &AppId,
    regid: String,
    topics: &[String],
    verb: Verb,
) -> Option<Failed> {
    let by = By::App(app);
    let result: Result<(), Error> = match verb {
        Verb::Subscribe => api.service.subscribe(&regid, topics, by).await,
        Verb::Unsubscribe => api.service.unsubscribe(&regid, topics, by).await,
    };
    let code = Problem::from(result.err()?).code.row().text;
    Some(Failed { regid, code })
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
/// Enough to share group commits, few enough to leave room for others.
const AT_ONCE: usize = 64;

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
