//! Messages to few do not wait behind a broadcast: whose connections are woken, and when.

use std::{sync::Arc, time::Duration};

use carillon::{
    base::{
        clock::Clock,
        ids::{AppId, QueueName, RegId},
        keys::NodeKeys,
        metrics::Metrics,
    },
    config::Config,
    node::core::{Core, Foundation, Pace},
    queue::{entry::Priority, store::memory::MemoryStore},
    route::{Nudge, Reasons},
    service::{
        Service,
        records::AliasPolicy,
        send::{Send, Target},
    },
};
use metrics_exporter_prometheus::PrometheusBuilder;

/// More than any portion.
const CROWD: usize = 3_000;

struct Scene {
    service: Arc<Service>,
    app: AppId,
    /// Who follows everything that is sent to all, and a queue of its own.
    crowd: Vec<(RegId, Arc<Nudge>)>,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
}

impl Scene {
    async fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        let foundation = Foundation {
            store: Arc::new(MemoryStore::default()),
            mark: None,
            keys: Arc::new(NodeKeys::ephemeral()),
            clock: Clock::starting_at(1_700_000_000_000),
            metrics: Arc::new(metrics::with_local_recorder(&recorder, Metrics::new)),
            pace: Pace::Paced(Box::new(|| Duration::from_millis(3))),
            longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
        };
        let service = Core::build(&Config::default(), foundation).await.unwrap().service;
        let app = service.create_app("app", AliasPolicy::Open).await.unwrap().app_id;
        let made = service.create_devices(&app, CROWD).await.unwrap();
        let all = QueueName::All(app.clone()).into();
        let follow = |regid: RegId| {
            let nudge: Arc<Nudge> = Arc::default();
            service.follow(&all, &nudge);
            service.follow(&QueueName::Own(regid).into(), &nudge);
            (regid, nudge)
        };
        let crowd = made.into_iter().map(|one| follow(one.regid.unwrap())).collect();
        Self { service, app, crowd, metrics }
    }

    async fn send(&self, target: Target, priority: Option<Priority>) {
        let send = Send { priority, ..Send::new(target, "1") };
        self.service.send(&self.app, send).await.unwrap();
        // The task that wakes crowds has its turn: nothing else is ready, and no time passes.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    /// Everybody who was woken takes up its work; who they were.
    fn serve(&self) -> Vec<usize> {
        let mut woken = Vec::new();
        for (at, (_, nudge)) in self.crowd.iter().enumerate() {
            let reasons = nudge.take();
            if reasons != Reasons(0) {
                self.service.served(reasons);
                woken.push(at);
            }
        }
        woken
    }

    fn waiting(&self, lane: &str) -> usize {
        let line = format!("carillon_lane_followers{{lane=\"{lane}\"}} ");
        let text = self.metrics.render();
        let line = text.lines().find_map(|l| l.strip_prefix(line.as_str()));
        line.expect("it is there from the start").parse::<f64>().unwrap() as usize
    }
}

#[tokio::test(start_paused = true)]
async fn x12_a_message_to_one_device_wakes_it_in_the_middle_of_a_broadcast() {
    let scene = Scene::new().await;
    assert_eq!(scene.waiting("low"), 0);
    scene.send(Target::All, None).await;
    let first = scene.serve();
    assert!(!first.is_empty() && first.len() < CROWD / 4, "{} at once", first.len());
    assert!(scene.waiting("low") > CROWD / 2);
    // It waits for the broadcast still.
    let (regid, nudge) = &scene.crowd[(0..CROWD).find(|at| !first.contains(at)).unwrap()];
    nudge.take();
    scene.send(Target::Regids(vec![regid.to_string()]), None).await;
    assert!(nudge.take().concern(&QueueName::Own(*regid).id()));
    let mut seen = first.len();
    while scene.waiting("low") > 0 {
        let more = scene.serve().len();
        assert!(more > 0, "{seen} of {CROWD}");
        seen += more;
    }
    // The one in the middle was served by hand, perhaps with its part of the broadcast.
    seen += scene.serve().len();
    assert!(seen + 1 >= CROWD, "{seen} of {CROWD}");
}

#[tokio::test(start_paused = true)]
async fn a_message_of_low_priority_to_one_device_waits_for_what_is_before_it() {
    let scene = Scene::new().await;
    scene.send(Target::All, Some(Priority::Normal)).await;
    let waiting = scene.waiting("normal");
    let (regid, nudge) = &scene.crowd[0];
    nudge.take();
    scene.send(Target::Regids(vec![regid.to_string()]), Some(Priority::Low)).await;
    assert_eq!((scene.waiting("normal"), scene.waiting("low")), (waiting, 1));
    let own = QueueName::Own(*regid).id();
    let mut is_woken = false;
    for _ in 0..CROWD {
        is_woken |= nudge.take().concern(&own);
        scene.serve();
    }
    assert!(is_woken || scene.waiting("low") == 0);
}

#[tokio::test(start_paused = true)]
async fn an_urgent_broadcast_goes_before_one_that_is_under_way() {
    let scene = Scene::new().await;
    scene.send(Target::All, None).await;
    let begun = scene.waiting("low");
    scene.send(Target::All, Some(Priority::High)).await;
    let mut served = 0;
    while scene.waiting("high") > 0 {
        assert_eq!(scene.waiting("low"), begun, "the other waits");
        served += scene.serve().len();
    }
    assert!(served + 600 > CROWD, "{served}");
}
