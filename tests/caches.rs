//! What is kept in memory of apps, devices and registrations is never older than what was
//! answered: each change is seen by whoever asks after it, also while others keep asking.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use carillon::{
    base::{
        clock::Clock,
        ids::{AppId, RegId},
        keys::{NodeKeys, Secret},
        metrics::Metrics,
        tasks,
    },
    config::Config,
    node::core::{Core, Foundation, Pace},
    queue::store::memory::MemoryStore,
    service::{
        Error, Service,
        accept::Accept,
        apps::{NewApp, OlderSecrets},
        bind::By,
        records::AliasPolicy,
        register::FirstRegistration,
        send::{Send, Target},
        topics::Verb,
    },
};
use metrics_exporter_prometheus::PrometheusBuilder;

async fn service(metrics: Metrics, pace: Pace) -> Arc<Service> {
    let foundation = Foundation {
        store: Arc::new(MemoryStore::default()),
        mark: None,
        keys: Arc::new(NodeKeys::ephemeral()),
        clock: Clock::starting_at(1_700_000_000_000),
        metrics: Arc::new(metrics),
        pace,
        longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
    };
    Core::build(&Config::default(), foundation).await.unwrap().service
}

fn paced() -> Pace {
    Pace::Paced(Box::new(|| Duration::from_millis(3)))
}

fn to(regid: &RegId) -> Send {
    let target = Target::Regids(vec![regid.to_string()]);
    Send::new(target, "1")
}

async fn is_known(service: &Arc<Service>, app: &AppId, regid: &RegId) -> bool {
    match service.send(app, to(regid)).await {
        Ok(_) => true,
        Err(Error::NotFound { .. }) => false,
        Err(other) => panic!("{other:?}"),
    }
}

fn is_let_in(service: &Service, app: &NewApp, secret: &Secret) -> bool {
    service.authorize(app.app_id.as_str(), secret.reveal()).is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_secret_works_as_soon_as_it_is_there_and_no_longer_than_it_lives() {
    let service = service(Metrics::new(), paced()).await;
    let app = service.create_app("app", AliasPolicy::Open).await.unwrap();
    let mut old = app.app_secret.clone();
    for _ in 0..3 {
        assert!(is_let_in(&service, &app, &old) && is_let_in(&service, &app, &old));
        let second = service.rotate_secret("app", OlderSecrets::Keep).await.unwrap();
        assert!(is_let_in(&service, &app, &old) && is_let_in(&service, &app, &second));
        let third = service.rotate_secret("app", OlderSecrets::Revoke).await.unwrap();
        assert!(!is_let_in(&service, &app, &old) && !is_let_in(&service, &app, &second));
        old = third;
    }
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_ended_takes_nothing_more() {
    let service = service(Metrics::new(), paced()).await;
    let app = service.create_app("app", AliasPolicy::Open).await.unwrap();
    let other = service.create_app("other", AliasPolicy::Open).await.unwrap();
    let (key, first) = (app.app_key.reveal(), FirstRegistration::Yes);
    let device = service.create_device("app", key, first).await.unwrap();
    let regid = device.regid.unwrap();
    for _ in 0..2 {
        assert!(is_known(&service, &app.app_id, &regid).await);
        assert!(!is_known(&service, &other.app_id, &regid).await, "it is another app's");
    }
    service.unregister(&regid.to_string(), By::App(&app.app_id)).await.unwrap();
    assert!(!is_known(&service, &app.app_id, &regid).await);
    assert_eq!(service.registrations(&device.device_id).unwrap(), []);
    let again = service.register(&device.device_id, "app", key, None).await.unwrap().regid;
    assert!(is_known(&service, &app.app_id, &again).await);
    assert!(!is_known(&service, &app.app_id, &regid).await);
}

#[tokio::test(start_paused = true)]
async fn what_a_device_follows_is_what_was_answered_last() {
    let service = service(Metrics::new(), paced()).await;
    let app = service.create_app("app", AliasPolicy::Open).await.unwrap();
    let (key, first) = (app.app_key.reveal(), FirstRegistration::Yes);
    let device = service.create_device("app", key, first).await.unwrap();
    let regid = device.regid.unwrap().to_string();
    let by = By::App(&app.app_id);
    let follows = || service.registrations(&device.device_id).unwrap()[0].follows.len();
    assert_eq!(follows(), 1, "`all`");
    service.bind(&regid, "ann", by).await.unwrap();
    assert_eq!(follows(), 2);
    service.subscribe(&regid, &["news".into(), "sport".into()], by).await.unwrap();
    assert_eq!(follows(), 4);
    service.unbind(&regid, "ann", by).await.unwrap();
    assert_eq!(follows(), 3);
    assert!(service.identify(&device.device_id.to_string(), b"wrong").is_err());
    let secret = device.secret.reveal().as_bytes();
    assert!(service.identify(&device.device_id.to_string(), secret).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_are_seen_at_once_while_others_keep_asking() {
    const ROUNDS: usize = 300;
    let service = service(Metrics::new(), Pace::Threaded).await;
    let app = service.create_app("app", AliasPolicy::Open).await.unwrap();
    let mut secret = app.app_secret.clone();
    for _ in 0..ROUNDS {
        let made = service.create_devices(&app.app_id, 1).await.unwrap();
        let regid = made[0].regid.unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let askers: Vec<_> = (0..3)
            .map(|_| {
                let (service, app, over) = (service.clone(), app.clone(), is_over.clone());
                let (secret, device) = (secret.clone(), made[0].device_id);
                tasks::spawn("asker", async move {
                    while !over.load(Ordering::SeqCst) {
                        is_let_in(&service, &app, &secret);
                        service.registrations(&device).unwrap();
                        let _ = service.trace(&app.app_id, "none", &regid.to_string());
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        assert!(is_known(&service, &app.app_id, &regid).await);
        service.unregister(&regid.to_string(), By::App(&app.app_id)).await.unwrap();
        assert!(!is_known(&service, &app.app_id, &regid).await);
        assert_eq!(service.registrations(&made[0].device_id).unwrap(), []);
        let next = service.rotate_secret("app", OlderSecrets::Revoke).await.unwrap();
        assert!(!is_let_in(&service, &app, &secret));
        assert!(is_let_in(&service, &app, &next));
        secret = next;
        is_over.store(true, Ordering::SeqCst);
        for asker in askers {
            asker.await.unwrap();
        }
    }
}

/// What was said before and is said again is not written again, and never older than a change.
#[tokio::test(start_paused = true)]
async fn a_setting_that_is_so_already_is_not_written() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let shown = recorder.handle();
    let metrics = metrics::with_local_recorder(&recorder, Metrics::new);
    let service = service(metrics, paced()).await;
    let app = service.create_app("app", AliasPolicy::Open).await.unwrap();
    let key = app.app_key.reveal();
    let device = service.create_device("app", key, FirstRegistration::Yes).await.unwrap();
    let (id, regid) = (device.device_id, device.regid.unwrap().to_string());
    let count = |name: &str| {
        let text = shown.render();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("it is there from the start").parse::<u64>().unwrap()
    };
    let hits = "carillon_cache_lookups_total{cache=\"settings\",result=\"hit\"}";
    let misses = "carillon_cache_lookups_total{cache=\"settings\",result=\"miss\"}";
    let (by, topics) = (By::App(&app.app_id), ["news".to_owned(), "sport".to_owned()]);
    let regids = [regid.clone(), regid.clone()];
    let paused = || Accept { is_paused: true, hours: None };
    let say = async || {
        service.bind(&regid, "ann", by).await.unwrap();
        service.subscribe(&regid, &topics, by).await.unwrap();
        service.unsubscribe(&regid, &["other".to_owned()], by).await.unwrap();
        let all = service.change_topic(&app.app_id, "all", &regids, Verb::Subscribe).await.unwrap();
        assert!(all.iter().all(Result::is_ok));
        service.set_accept(&regid, paused(), by).await.unwrap();
        service.register(&id, "app", key, None).await.unwrap();
    };
    say().await;
    assert_eq!((count(hits), count(misses)), (2, 5), "one is named twice, and one it never had");
    let before = count("carillon_commits_total");
    for _ in 0..10 {
        say().await;
    }
    assert_eq!(count("carillon_commits_total"), before);
    assert_eq!((count(hits), count(misses)), (2 + 10 * 7, 5));
    let follows = || service.registrations(&id).unwrap()[0].follows.len();
    for _ in 0..3 {
        service.unbind(&regid, "ann", by).await.unwrap();
        assert_eq!(follows(), 4);
        service.bind(&regid, "ann", by).await.unwrap();
        assert_eq!(follows(), 5);
    }
    // Whoever is told that it is so already is told behind who made it so.
    let (unbound, bound, again) = tokio::join!(
        service.unbind(&regid, "ann", by),
        service.bind(&regid, "ann", by),
        service.bind(&regid, "ann", by),
    );
    assert!(unbound.is_ok() && bound.is_ok() && again.is_ok());
    assert_eq!(follows(), 5);
}

#[tokio::test(start_paused = true)]
async fn lookups_that_a_cache_answered_are_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let shown = recorder.handle();
    let metrics = metrics::with_local_recorder(&recorder, Metrics::new);
    let service = service(metrics, paced()).await;
    let app = service.create_app("app", AliasPolicy::Open).await.unwrap();
    let made = service.create_devices(&app.app_id, 1).await.unwrap();
    let count = |cache: &str, result: &str| {
        let line =
            format!("carillon_cache_lookups_total{{cache=\"{cache}\",result=\"{result}\"}} ");
        let text = shown.render();
        let line = text.lines().find_map(|l| l.strip_prefix(line.as_str()));
        line.expect("it is there from the start").parse::<u64>().unwrap()
    };
    let before = count("registrations", "hit");
    for _ in 0..5 {
        assert!(is_known(&service, &app.app_id, &made[0].regid.unwrap()).await);
        assert!(is_let_in(&service, &app, &app.app_secret));
    }
    assert_eq!(count("registrations", "hit") - before, 4);
    assert!(count("apps", "hit") >= 4 && count("apps", "miss") >= 1);
    assert_eq!(count("devices", "hit"), 0);
}
