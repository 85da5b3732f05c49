//! A2: regIDs that are guessed, near a real one, or another app's. None is taken, all are answered
//! in the same words, and how many an app may try is bounded. Prints the median times of the kinds.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]
#![allow(dead_code, reason = "every test crate uses its own part of it")]

#[path = "support/api.rs"]
mod api;
mod dice;
#[path = "support/openapi.rs"]
mod openapi;
mod support;

use std::time::Instant;

use api::{Api, Ask};
use carillon::base::ids::{RegId, random_bytes};
use dice::{Dice, number_from_env};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use support::{APP, Node, Options};

/// Messages of one batch, each to one guess.
const BATCH: usize = 500;

/// What is tried. Each kind must look like the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Random, on the shard of a real one or not.
    Guessed,
    /// A bit, a digit or a few bytes away from a real one of the app.
    Neighbour,
    /// Of another app, with devices.
    Foreign,
}

const KINDS: [Kind; 3] = [Kind::Guessed, Kind::Neighbour, Kind::Foreign];

/// The registrations of both apps, and what somebody tries who knows all of them.
struct Guesser {
    own: Vec<RegId>,
    foreign: Vec<RegId>,
    dice: Dice,
}

impl Guesser {
    fn guess(&mut self, kind: Kind) -> RegId {
        match kind {
            Kind::Guessed => RegId(random_bytes()),
            Kind::Foreign => self.foreign[self.dice.index(self.foreign.len())],
            Kind::Neighbour => self.neighbour(),
        }
    }

    fn neighbour(&mut self) -> RegId {
        let mut near = self.own[self.dice.index(self.own.len())];
        let at = self.dice.index(near.0.len());
        match self.dice.index(4) {
            0 => near.0[at] ^= 1 << self.dice.index(8),
            // The number before or after it.
            1 => {
                let number = |tail: [u8; 16]| u128::from_be_bytes(tail);
                let tail = near.0[4..].try_into().expect("16 bytes");
                let next = match self.dice.index(2) {
                    0 => number(tail).wrapping_add(1),
                    _ => number(tail).wrapping_sub(1),
                };
                near.0[4..].copy_from_slice(&next.to_be_bytes());
            }
            // Only its beginning is known.
            2 => near.0[at..].fill(self.dice.index(256) as u8),
            // The beginning of one, the end of another.
            _ => {
                let other = self.foreign[self.dice.index(self.foreign.len())];
                near.0[at..].copy_from_slice(&other.0[at..]);
            }
        }
        let is_real = self.own.contains(&near) || self.foreign.contains(&near);
        if is_real { self.neighbour() } else { near }
    }
}

/// A node with two apps of 100 registrations.
async fn scene(config: &str) -> (Node, Guesser) {
    let options = Options { config: Some(config.to_owned()), ..Options::default() };
    let node = Node::start_with(options).await;
    node.create_app("other").await;
    let mut apps = Vec::new();
    for app in [APP, "other"] {
        let made = node.cli(&["device", "create", "--app", app, "--count", "100"]).await;
        let regid = |row: &str| row.rsplit(',').next().and_then(|text| text.parse().ok());
        apps.push(made.lines().filter_map(regid).collect::<Vec<RegId>>());
    }
    let (foreign, own) = (apps.pop().unwrap(), apps.pop().unwrap());
    assert_eq!((own.len(), foreign.len()), (100, 100));
    (node, Guesser { own, foreign, dice: Dice::of_this_run("guess") })
}

fn config(allowance: &str) -> String {
    format!("[limits.allowance]\n{allowance}\n")
}

/// An app server that sends to one regID in each message.
struct Sender {
    client: reqwest::Client,
    url: String,
    secret: String,
}

#[derive(Deserialize)]
struct Results<'a> {
    accepted: usize,
    #[serde(borrow)]
    results: Vec<&'a serde_json::value::RawValue>,
}

impl Sender {
    fn new(node: &Node) -> Self {
        let url = format!("{}/v1/apps/{APP}/messages", node.https_url());
        Self { client: node.https_client(), url, secret: node.app().app_secret.clone() }
    }

    async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let url = format!("{}{path}", self.url);
        let request = self.client.post(url).bearer_auth(&self.secret).json(body);
        request.send().await.expect("an answer")
    }

    /// A batch with one message to each.
    async fn batch(&self, regids: &[RegId]) -> String {
        let messages: Vec<Value> = regids.iter().map(to_one).collect();
        let answer = self.post(":batch", &json!({"messages": messages})).await;
        assert_eq!(answer.status(), 200);
        answer.text().await.expect("a text")
    }
}

fn to_one(regid: &RegId) -> Value {
    json!({"target": {"regids": [regid.to_string()]}, "payload": 1})
}

/// What a message to a regID that is not the app's gets in a batch.
const NOTHING: &str = r#"{"state":"refused","status":404,"code":"not_found","detail":"no such registration of this app among the regids"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_guess_is_taken_and_all_are_refused_in_the_same_bytes() {
    let guesses = number_from_env("CARILLON_GUESSES").unwrap_or(9_000) as usize;
    let (node, mut guesser) = scene(&config("targets_per_s = 0")).await;
    let sender = Sender::new(&node);
    let (since, mut tried) = (Instant::now(), [0; 3]);
    while tried.iter().sum::<usize>() < guesses {
        let kinds: Vec<usize> = (0..BATCH).map(|_| guesser.dice.index(3)).collect();
        kinds.iter().for_each(|kind| tried[*kind] += 1);
        let regids: Vec<_> = kinds.iter().map(|kind| guesser.guess(KINDS[*kind])).collect();
        let text = sender.batch(&regids).await;
        let Results { accepted, results } = serde_json::from_str(&text).expect("results");
        assert_eq!((accepted, results.len()), (0, BATCH));
        for ((kind, regid), result) in kinds.iter().zip(&regids).zip(results) {
            assert_eq!(result.get(), NOTHING, "{:?} {regid}", KINDS[*kind]);
        }
    }
    println!("{tried:?} of {KINDS:?} in {:?}: 0 hits", since.elapsed());
    // The same in a batch is taken for what is the app's.
    let text = sender.batch(&guesser.own[..3]).await;
    assert_eq!(serde_json::from_str::<Results>(&text).unwrap().accepted, 3);
}

#[tokio::test]
async fn every_call_that_names_a_registration_answers_the_kinds_alike() {
    let api = Api::start().await;
    let foreign = api.registration_of_the_other_app().await.parse().unwrap();
    let own: RegId = api.device.regid.parse().unwrap();
    let mut guesser =
        Guesser { own: vec![own], foreign: vec![foreign], dice: Dice::of_this_run("calls") };
    let message = api.node.send(json!({"all": true}), json!(1)).await;
    let calls = |regid: &str| {
        let at = format!("/v1/apps/{APP}/registrations/{regid}");
        let change =
            |method: &Method, what: &str| Ask::new(method.clone(), &format!("{at}/{what}"));
        let (put, delete) = (Method::PUT, Method::DELETE);
        [
            Ask::get(&at),
            Ask::new(Method::DELETE, &at),
            Ask::put(&format!("{at}/accept"), json!({"paused": true})),
            Ask::put(&format!("{at}/attributes"), json!({"locale": "en"})),
            change(&put, "aliases/a"),
            change(&delete, "aliases/a"),
            change(&put, "topics/t"),
            change(&delete, "topics/t"),
            Ask::get(&format!("/v1/apps/{APP}/messages/{message}/trace?regid={regid}")),
            Ask::post(&format!("/v1/apps/{APP}/topics/t:subscribe"), json!({"regids": [regid]})),
            Ask::post(&format!("/v1/apps/{APP}/topics/t:unsubscribe"), json!({"regids": [regid]})),
            Ask::send(json!({"target": {"regids": [regid]}, "payload": 1})),
        ]
    };
    let mut answers = Vec::new();
    for kind in KINDS {
        let regid = guesser.guess(kind).to_string();
        let mut answered = Vec::new();
        for ask in calls(&regid) {
            let (status, mut body) = api.undocumented(ask).await;
            if let Some(fields) = body.as_object_mut() {
                fields.remove("trace_id");
            }
            assert!(!matches!(status, 400 | 405 | 422), "the call itself is right: {body}");
            // What the caller stated is told back to him.
            answered.push((status, body.to_string().replace(&regid, "REGID")));
        }
        answers.push(answered);
    }
    for answered in &answers[1..] {
        assert_eq!(*answered, answers[0]);
    }
    let theirs = api.node.registration_for("other", &foreign.to_string()).await;
    assert_eq!((&theirs["aliases"], &theirs["topics"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn guesses_use_the_apps_rate_up_and_are_told_when_to_come_back() {
    let limits = config("targets_per_s = 1\ntargets_burst = 50");
    let (node, mut guesser) = scene(&limits).await;
    let sender = Sender::new(&node);
    let guesses: Vec<_> = (0..BATCH).map(|n| guesser.guess(KINDS[n % 3])).collect();
    let since = Instant::now();
    let text = sender.batch(&guesses).await;
    let results: Vec<Value> =
        serde_json::from_str::<Value>(&text).unwrap()["results"].as_array().unwrap().clone();
    let looked_up = results.iter().filter(|result| result["status"] == 404).count();
    let allowed = 50 + since.elapsed().as_secs() as usize + 1;
    assert!((50..=allowed).contains(&looked_up), "{looked_up} of {BATCH}, {allowed} allowed");
    for result in results.iter().filter(|result| result["status"] != 404) {
        assert_eq!((&result["status"], &result["code"]), (&json!(429), &json!("rate_limited")));
        assert!(result["retry_after_s"].as_u64().is_some_and(|after| after >= 1), "{result}");
    }
    // A real one of the app waits too: the answer says nothing of what it names.
    for regid in [guesser.own[0], guesser.foreign[0], guesser.guess(Kind::Guessed)] {
        let list = json!({"target": {"regids": vec![regid.to_string(); 50]}, "payload": 1});
        let answer = sender.post("", &list).await;
        assert_eq!(answer.status(), 429);
        assert!(answer.headers().contains_key("retry-after"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_median_times_of_the_kinds_are_printed() {
    let guesses = number_from_env("CARILLON_GUESSES").unwrap_or(3_000) as usize;
    let (node, mut guesser) = scene(&config("targets_per_s = 0")).await;
    let sender = Sender::new(&node);
    // One guess in a message, and as many as a message takes: what differs is there a thousandfold.
    for (names, rounds) in [(1, guesses / 100), (1_000, guesses / 2_000)] {
        let mut times = [const { Vec::new() }; 3];
        for round in 0..3 * rounds.max(10) {
            // In turn, so that what else the machine does meets all alike.
            let kind = round % 3;
            let regids: Vec<_> =
                (0..names).map(|_| guesser.guess(KINDS[kind]).to_string()).collect();
            let body = json!({"target": {"regids": regids}, "payload": 1});
            let since = Instant::now();
            let answer = sender.post("", &body).await;
            assert_eq!(answer.status(), 404);
            answer.bytes().await.expect("a whole answer");
            times[kind].push(since.elapsed());
        }
        let medians = times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2]
        });
        let (least, most) = (medians.iter().min().unwrap(), medians.iter().max().unwrap());
        let over = 100.0 * (most.as_secs_f64() / least.as_secs_f64() - 1.0);
        println!("{names} a message: medians of {KINDS:?} {medians:?}: {over:.1} % apart");
    }
}
