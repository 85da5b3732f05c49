//! The calls of the fleet's senders, and what each makes owed.

use std::{sync::Arc, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    Dice, Event, Queue,
    events::{Events, KINDS},
    fleet::{PAUSE, Shared},
};
use crate::support::APP;

const MESSAGES: &str = "/v1/apps/demo/messages";
/// Of the registrations that never connect so many are never ended.
const STAY: usize = 3;
/// More than there are senders: what was accepted before is in its queues, which are filled in order.
const SEVERAL: usize = 64;
/// Between two registrations that are ended.
const ENDS_PERIOD: Duration = Duration::from_millis(250);

impl Shared {
    /// Sends one message that is due in a moment; a node that starts may find it too late.
    pub(super) async fn send_in(
        &self,
        in_ms: u64,
        message: u64,
        to: Vec<Queue>,
        target: Value,
        mut body: Value,
    ) -> Option<()> {
        body["send_at"] = json!(moment(in_ms));
        self.ledger.note(Event::Attempted { message, to });
        self.ledger.note(Event::Scheduled { message });
        let (status, answer) = self.post(message, &target, body).await?;
        if status.is_success() {
            let id = answer["id"].as_str().expect("an id").to_owned();
            self.scheduled.lock().unwrap().push(id.clone());
            self.ledger.note(Event::Accepted { message, id });
            return Some(());
        }
        if status.is_client_error() {
            self.ledger.note(Event::Refused { message });
            assert_eq!(answer["field"], "send_at", "message {message}: {answer}");
        }
        None
    }

    /// Sends one message and gives its id, unless a crash leaves its end open.
    pub(super) async fn send(
        &self,
        message: u64,
        to: Vec<Queue>,
        target: Value,
        mut body: Value,
    ) -> Option<String> {
        if body["payload"].is_null() {
            body["payload"] = json!({"m": message});
        }
        let is_several = to.len() > 1;
        self.ledger.note(Event::Attempted { message, to });
        let (status, answer) = self.post(message, &target, body).await?;
        if status.is_success() {
            let id = answer["id"].as_str().expect("an id").to_owned();
            if is_several {
                let mut several = self.several.lock().unwrap();
                several.push_back(id.clone());
                if several.len() > SEVERAL {
                    several.pop_front();
                }
            }
            self.ledger.note(Event::Accepted { message, id: id.clone() });
            return Some(id);
        }
        if status.is_client_error() {
            self.ledger.note(Event::Refused { message });
            panic!("message {message} to {target}: {status} {answer}");
        }
        None
    }

    /// Sends several to one queue, of which only the newest must arrive.
    pub(super) async fn send_few(&self, count: u64, sender: usize, queue: Queue, target: Value) {
        for _ in 0..count {
            let message = self.next_number();
            let body =
                json!({"payload": {"m": message}, "collapse_key": format!("of sender {sender}")});
            let earlier = self.collapsible.lock().unwrap().insert((sender, queue), message);
            if let Some(earlier) = earlier {
                self.events.excuse(earlier);
                self.ledger.note(Event::Supersedes { message, earlier });
            }
            if self.send(message, vec![queue], target.clone(), body).await.is_none() {
                return sleep(PAUSE).await;
            }
        }
    }

    /// Posts a message; some of those to regIDs ask for events, and then name a stranger too.
    async fn post(
        &self,
        message: u64,
        target: &Value,
        mut body: Value,
    ) -> Option<(StatusCode, Value)> {
        body["ttl_s"] = json!(3600);
        body["target"] = target.clone();
        let regids: Vec<&str> =
            target["regids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let is_told = self.plan.callback.is_some() && Events::asks(message) && !regids.is_empty();
        let stranger = "a".repeat(32);
        if is_told {
            body["target"]["regids"].as_array_mut().expect("a list").push(json!(stranger));
            body["callback"] = self.callback();
        }
        let (status, answer) = self.api.call(Method::POST, MESSAGES, Some(body)).await?;
        if is_told && status.is_success() {
            let id = answer["id"].as_str().expect("an id");
            self.events.accepted(Some(message), id);
            self.events.owe("invalid", id, &stranger);
            regids.iter().for_each(|regid| self.events.owe("acked", id, regid));
        }
        Some((status, answer))
    }

    /// Takes a message back.
    pub(super) async fn recall(&self, message: u64, id: &str) {
        self.events.excuse(message);
        self.ledger.note(Event::Recalling { message });
        let path = format!("{MESSAGES}/{id}");
        let Some((status, answer)) = self.api.call(Method::DELETE, &path, None).await else {
            return;
        };
        assert!(!status.is_client_error(), "recall of {message}: {status} {answer}");
        if status.is_success() {
            self.ledger.note(Event::Recalled { message });
        }
    }

    /// Messages that no device can take: some expire at once, others wait for registrations that are ended then.
    pub(super) async fn end_on_and_on(
        self: Arc<Self>,
        mut dice: Dice,
        stop: watch::Receiver<bool>,
    ) {
        let stay: Vec<String> = self.away.lock().unwrap().iter().take(STAY).cloned().collect();
        let mut ticks = interval(ENDS_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stop.borrow() {
            ticks.tick().await;
            let at = dice.index(stay.len());
            if let Some(id) = self.send_away(&stay[at], json!({"ttl_s": 1})).await {
                self.events.owe("expired", &id, &stay[at]);
            }
            let next = {
                let mut away = self.away.lock().unwrap();
                if away.len() > STAY { away.pop() } else { None }
            };
            if let Some(regid) = next {
                let later = json!({"send_at": moment(dice.of(20..400)), "ttl_s": 3600});
                let waits = [
                    self.send_away(&regid, json!({"ttl_s": 3600})).await,
                    self.send_away(&regid, later).await,
                ];
                self.end(&regid).await;
                // Before it is due, or behind that: it is told in either case.
                waits.iter().flatten().for_each(|id| self.events.owe("invalid", id, &regid));
            }
        }
    }

    /// Sends to a registration that never connects; the id, unless a crash leaves the end open.
    async fn send_away(&self, regid: &str, mut body: Value) -> Option<String> {
        let is_scheduled = !body["send_at"].is_null();
        body["target"] = json!({"regids": [regid]});
        body["payload"] = json!(0);
        body["callback"] = self.callback();
        let (status, answer) = self.api.call(Method::POST, MESSAGES, Some(body)).await?;
        if !status.is_success() {
            let is_late = is_scheduled && answer["field"] == "send_at";
            assert!(is_late || status.is_server_error(), "to {regid}: {status} {answer}");
            return None;
        }
        let id = answer["id"].as_str().expect("an id").to_owned();
        self.events.accepted(None, &id);
        if is_scheduled {
            self.scheduled.lock().unwrap().push(id.clone());
        }
        Some(id)
    }

    /// Ends a registration, whatever happens to the node meanwhile.
    async fn end(&self, regid: &str) {
        let path = format!("/v1/apps/{APP}/registrations/{regid}");
        loop {
            match self.api.call(Method::DELETE, &path, None).await {
                // It ended before an answer that was lost.
                Some((StatusCode::NO_CONTENT | StatusCode::NOT_FOUND, _)) => return,
                Some((status, body)) if !status.is_server_error() => {
                    panic!("{path}: {status} {body}")
                }
                _ => sleep(PAUSE).await,
            }
        }
    }

    fn callback(&self) -> Value {
        json!({"url": self.plan.callback, "events": KINDS})
    }
}

/// A time from now.
fn moment(in_ms: u64) -> String {
    (jiff::Timestamp::now() + Duration::from_millis(in_ms)).to_string()
}
