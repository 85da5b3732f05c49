//! O2: more calls than the node takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    flood::{Scene, crowd, scale, size, tell, witness::p99},
    support::{APP, Device, Options},
    wirelab::lab::devices,
};

/// One send on a connection of its own kind: status, Retry-After and how long it took.
type Answered = (u16, Option<u64>, Duration);

async fn ask(request: reqwest::RequestBuilder) -> Answered {
    let at = Instant::now();
    let answer = request.send().await.expect("an answer");
    let retry = answer.headers().get("retry-after");
    let retry = retry.map(|value| value.to_str().expect("text").parse().expect("seconds"));
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.expect("JSON");
    assert!(status == 202 || body["code"] == "overloaded", "{status}: {body}");
    (status, retry, at.elapsed())
}

/// An app server that sends numbers to one device.
struct Sender {
    client: reqwest::Client,
    url: String,
    secret: String,
    regid: String,
}

impl Sender {
    fn new(scene: &Scene, to: &Device) -> Arc<Self> {
        Arc::new(Self {
            client: scene.node.https_client(),
            url: format!("{}/v1/apps/{APP}/messages", scene.node.https_url()),
            secret: scene.node.app().app_secret.clone(),
            regid: to.regid.clone(),
        })
    }

    async fn send(self: Arc<Self>) -> Answered {
        self.send_as("normal").await
    }

    async fn send_as(&self, priority: &str) -> Answered {
        let target = json!({"regids": [self.regid]});
        let body = json!({"target": target, "payload": 1, "priority": priority});
        ask(self.client.post(&self.url).bearer_auth(&self.secret).json(&body)).await
    }

    /// So many calls, each as soon as one of those before it is answered.
    async fn in_turn(self: &Arc<Self>, calls: usize, at_once: usize) -> Vec<Answered> {
        crowd(calls, at_once, |_| self.clone().send()).await
    }

    /// Sends of high priority, one at a time and some ten a second, until `is_over`.
    async fn urgent(&self, is_over: &AtomicBool) -> Vec<Answered> {
        let mut all = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            all.push(self.send_as("high").await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        all
    }

    /// So many calls at a rate, whatever becomes of those before, over as many connections as some
    /// app servers hold: else one would measure TLS handshakes.
    async fn at_rate(self: &Arc<Self>, calls: usize, per_s: f64) -> Vec<Answered> {
        let (start, next) = (tokio::time::Instant::now(), Arc::new(AtomicUsize::new(0)));
        let one = |_| {
            let (sender, next) = (self.clone(), next.clone());
            async move {
                let mut all = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= calls {
                        return all;
                    }
                    let due = start + Duration::from_secs_f64(number as f64 / per_s);
                    tokio::time::sleep_until(due).await;
                    all.push(sender.clone().send().await);
                }
            }
        };
        crowd(CONNECTIONS, CONNECTIONS, one).await.into_iter().flatten().collect()
    }
}

fn p99_ms(all: &[Answered], status: u16) -> String {
    let times = all.iter().filter(|one| one.0 == status).map(|one| one.2);
    p99(&times.collect::<Vec<_>>())
}

/// A slow disk and few calls at once: the store cannot keep up with more.
fn few_calls() -> Options {
    Options {
        config: Some(format!("[api]\ncalls_max = {CALLS_MAX}\ncalls_high_max = 1\n")),
        env: vec![("FAILPOINTS".into(), "writer::before_sync=sleep(5)".into())],
        ..Options::default()
    }
}

/// All were answered, those who were refused know when to come again, and what was accepted
/// is in the queue. How many those were.
async fn judge(scene: &Scene, device: &Device, all: &[Answered]) -> usize {
    let accepted = all.iter().filter(|one| one.0 == 202).count();
    let refused: Vec<_> = all.iter().filter(|one| one.0 == 503).collect();
    assert_eq!(accepted + refused.len(), all.len());
    assert!(refused.iter().all(|one| one.1.is_some_and(|after_s| (1..=3).contains(&after_s))));
    assert_eq!(scene.metric("carillon_api_overloaded_total").await, refused.len());
    let view = scene.node.registration(&device.regid).await;
    let own = view["pointers"].as_array().expect("pointers")[0].clone();
    let head = own["head"].as_str().expect("a position").rsplit(':').next().expect("a number");
    assert_eq!(head.parse::<usize>().expect("a number"), accepted, "{own}");
    accepted
}

#[cfg(feature = "sim")]
#[tokio::test]
async fn over_the_bound_calls_are_refused_at_once_and_the_accepted_are_delivered() {
    let calls = 300 * scale();
    let mut scene = Scene::with_options(few_calls()).await;
    let device = devices(&scene.node, 1).await.remove(0);
    let sender = Sender::new(&scene, &device);
    let quiet = scene.quiet().await;
    let (during, all) = scene.served_while(10, sender.in_turn(calls, 8 * CALLS_MAX)).await;
    tell(
        &format!("{calls} sends, {} at once where {CALLS_MAX} may be", 8 * CALLS_MAX),
        &quiet,
        &during,
    );
    let accepted = judge(&scene, &device, &all).await;
    assert!(accepted > 0 && accepted < calls, "{accepted} accepted");
    let (good, bad) = (p99_ms(&all, 202), p99_ms(&all, 503));
    println!("{accepted} accepted, p99 {good} ms; {} refused, p99 {bad} ms", calls - accepted);
    scene.end_well().await;
}

/// In the slow set for ten minutes. Times are printed: what is wanted of them is a goodput of 90 %,
/// p99 of 1 s for the accepted and of 50 ms for the refused.
#[cfg(feature = "sim")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_twice_the_capacity_what_is_accepted_is_delivered_and_after_it_all_is_well() {
    let (calls, seconds) = (size(200, 10_000), size(1, 600));
    let mut scene = Scene::with_options(few_calls()).await;
    let device = devices(&scene.node, 1).await.remove(0);
    let sender = Sender::new(&scene, &device);
    let quiet = scene.quiet().await;
    // Their connections are there before anything is measured.
    let mut all = sender.in_turn(2 * CONNECTIONS, CONNECTIONS).await;
    let at = Instant::now();
    all.extend(sender.in_turn(calls, CALLS_MAX).await);
    let capacity = calls as f64 / at.elapsed().as_secs_f64();

    let (at, flood) = (Instant::now(), (2.0 * capacity) as usize * seconds);
    let is_over = AtomicBool::new(false);
    let both = async {
        let flood = async {
            let over = sender.at_rate(flood, 2.0 * capacity).await;
            is_over.store(true, Ordering::Relaxed);
            over
        };
        tokio::join!(flood, sender.urgent(&is_over))
    };
    let (during, (over, urgent)) = scene.served_while(10, both).await;
    let took = at.elapsed();
    tell(&format!("{flood} sends at twice the capacity of {capacity:.0}/s"), &quiet, &during);
    let accepted = over.iter().filter(|one| one.0 == 202).count();
    let share = 100.0 * accepted as f64 / took.as_secs_f64() / capacity;
    let (good, bad) = (p99_ms(&over, 202), p99_ms(&over, 503));
    println!(
        "at twice the capacity {share:.0} % of it was accepted, p99 {good} ms; {} were refused, \
         p99 {bad} ms",
        over.len() - accepted
    );
    println!("{} of high priority, p99 {} ms", urgent.len(), p99_ms(&urgent, 202));
    // One at a time, they never need more than the room that is theirs.
    assert!(!urgent.is_empty() && urgent.iter().all(|one| one.0 == 202), "{urgent:?}");
    all.extend(over);
    all.extend(urgent);
    // When the flood is over, nobody is refused any more.
    let after = sender.in_turn(20, 1).await;
    assert!(after.iter().all(|one| one.0 == 202), "{after:?}");
    all.extend(after);
    judge(&scene, &device, &all).await;
    scene.end_well().await;
}

const CALLS_MAX: usize = 8;
const CONNECTIONS: usize = 64;
