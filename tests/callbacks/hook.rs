//! An app server's endpoint: it checks what it is posted, and answers as it is told.

#![allow(dead_code, reason = "each test file takes what it needs")]

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use aws_lc_rs::{digest, hmac};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::Value;
use tokio::sync::Notify;

use crate::support::DEADLINE;

/// What the endpoint does with a request.
#[derive(Clone, Copy, Debug)]
pub enum Reaction {
    /// It answers this.
    Status(u16),
    /// It never answers.
    Hang,
}

/// One request, whose signature was right.
#[derive(Clone, Debug)]
pub struct Request {
    pub delivery: String,
    pub attempt: u32,
    pub events: usize,
    pub is_taken: bool,
}

/// A running endpoint.
pub struct Hook {
    address: SocketAddr,
    state: Arc<Inner>,
}

struct Inner {
    secret: Mutex<String>,
    script: Mutex<(VecDeque<Reaction>, Reaction)>,
    requests: Mutex<Vec<Request>>,
    taken: Mutex<BTreeSet<String>>,
    news: Notify,
}

impl Hook {
    /// An endpoint that takes everything.
    pub async fn start(secret: &str) -> Self {
        let state = Arc::new(Inner {
            secret: Mutex::new(secret.to_owned()),
            script: Mutex::new((VecDeque::new(), Reaction::Status(200))),
            requests: Mutex::default(),
            taken: Mutex::default(),
            news: Notify::new(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().route("/hook", post(take)).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Only what is signed with this is right from now on.
    pub fn trust(&self, secret: &str) {
        *self.state.secret.lock().unwrap() = secret.to_owned();
    }

    /// Its next answers.
    pub fn react(&self, reactions: &[Reaction]) {
        self.state.script.lock().unwrap().0.extend(reactions);
    }

    /// All its answers from now on.
    pub fn react_always(&self, reaction: Reaction) {
        *self.state.script.lock().unwrap() = (VecDeque::new(), reaction);
    }

    /// Ids of the events that it took.
    pub fn taken(&self) -> BTreeSet<String> {
        self.state.taken.lock().unwrap().clone()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Until it has taken all these events.
    pub async fn wait_for(&self, wanted: &BTreeSet<String>) {
        let all = async {
            loop {
                let news = self.state.news.notified();
                if self.taken().is_superset(wanted) {
                    return;
                }
                news.await;
            }
        };
        if tokio::time::timeout(DEADLINE, all).await.is_err() {
            let missing: Vec<_> = wanted.difference(&self.taken()).cloned().collect();
            panic!("{} events are missing: {missing:?}", missing.len());
        }
    }
}

async fn take(State(state): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name: &str| headers[name].to_str().expect("text").to_owned();
    let secret = state.secret.lock().unwrap().clone();
    assert!(is_signed(&secret, &header("carillon-signature"), &body), "a wrong signature");
    let read: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(read["app"], crate::support::APP);
    assert_eq!(read["delivery"], header("carillon-delivery"));
    let events = read["events"].as_array().expect("events");
    let ids: Vec<String> = events
        .iter()
        .map(|event| {
            let text = |key: &str| event[key].as_str().expect("text").to_owned();
            assert!(event["at_ms"].as_u64().is_some_and(|at| at > 1_600_000_000_000));
            let id = text("id");
            assert_eq!(id, format!("{}.{}.{}", text("type"), text("message"), text("regid")));
            id
        })
        .collect();
    let reaction = {
        let mut script = state.script.lock().unwrap();
        let always = script.1;
        script.0.pop_front().unwrap_or(always)
    };
    let is_taken = matches!(reaction, Reaction::Status(200));
    let attempt = header("carillon-attempt").parse().expect("a number");
    let delivery = header("carillon-delivery");
    state.requests.lock().unwrap().push(Request { delivery, attempt, events: ids.len(), is_taken });
    match reaction {
        Reaction::Hang => std::future::pending().await,
        Reaction::Status(status) => {
            if is_taken {
                state.taken.lock().unwrap().extend(ids);
                state.news.notify_waiters();
            }
            StatusCode::from_u16(status).expect("a status")
        }
    }
}

/// What docs/CALLBACKS.md tells app servers to do.
fn is_signed(secret: &str, header: &str, body: &[u8]) -> bool {
    let key = digest::digest(&digest::SHA256, format!("carillon callback {secret}").as_bytes());
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
    let mut parts = header.split(',');
    let Some(time) = parts.next().and_then(|part| part.strip_prefix("t=")) else { return false };
    let signed = [time.as_bytes(), b".", body].concat();
    parts.filter_map(|part| part.strip_prefix("v1=")).any(|hex| {
        let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes());
        bytes.is_ok_and(|tag| hmac::verify(&key, &signed, &tag).is_ok())
    })
}
