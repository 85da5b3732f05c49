//! O2: more calls than the node takes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    flood::{Scene, crowd, scale},
    support::{Device, Options},
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

async fn sends(scene: &mut Scene, to: &Device, calls: usize, at_once: usize) -> Vec<Answered> {
    let client = scene.node.https_client();
    let (url, app) = (scene.node.https_url(), scene.node.app().clone());
    let regid = to.regid.clone();
    let flood = crowd(calls, at_once, move |number| {
        let body = json!({"target": {"regids": [regid]}, "payload": number});
        let path = format!("{url}/v1/apps/demo/messages");
        ask(client.post(path).bearer_auth(&app.app_secret).json(&body))
    });
    let (during, all) = scene.served_while(10, flood).await;
    println!("{calls} sends, {at_once} at once: {during}");
    all
}

fn p99_ms(all: &[Answered], status: u16) -> f64 {
    let mut times: Vec<_> = all.iter().filter(|one| one.0 == status).map(|one| one.2).collect();
    times.sort_unstable();
    times.get(times.len() * 99 / 100).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

#[cfg(feature = "sim")]
#[tokio::test]
async fn over_the_bound_calls_are_refused_at_once_and_the_accepted_are_delivered() {
    let calls = 300 * scale();
    // A slow disk: the store cannot keep up with so many at once.
    let options = Options {
        config: Some("[api]\ncalls_max = 8\n".into()),
        env: vec![("FAILPOINTS".into(), "writer::before_sync=sleep(5)".into())],
        ..Options::default()
    };
    let mut scene = Scene::with_options(options).await;
    let device = devices(&scene.node, 1).await.remove(0);
    let all = sends(&mut scene, &device, calls, 64).await;
    let accepted = all.iter().filter(|one| one.0 == 202).count();
    let refused: Vec<_> = all.iter().filter(|one| one.0 == 503).collect();
    assert!(accepted > 0 && !refused.is_empty(), "{accepted} accepted, {} refused", refused.len());
    assert_eq!(accepted + refused.len(), calls);
    assert!(refused.iter().all(|one| one.1.is_some_and(|after_s| (1..=3).contains(&after_s))));
    assert_eq!(scene.metric("carillon_api_overloaded_total").await, refused.len());
    let (good, bad) = (p99_ms(&all, 202), p99_ms(&all, 503));
    println!("{accepted} accepted, p99 {good:.0} ms; {} refused, p99 {bad:.0} ms", refused.len());
    let view = scene.node.registration(&device.regid).await;
    let own = view["pointers"].as_array().expect("pointers")[0].clone();
    let head = own["head"].as_str().expect("a position").rsplit(':').next().expect("a number");
    assert_eq!(head.parse::<usize>().expect("a number"), accepted, "{own}");
    scene.end_well().await;
}
