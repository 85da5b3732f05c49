//! Who may bind an alias, by the policy of its app; and what binding again does.

use std::{sync::Arc, time::Duration};

use carillon::{
    base::{
        clock::Clock,
        ids::{AppId, DeviceId},
        keys::NodeKeys,
        metrics::Metrics,
    },
    config::Config,
    node::core::{Core, Foundation, Pace},
    queue::{position::Seq, store::memory::MemoryStore},
    service::{
        Error, Service,
        apps::{NewApp, alias_token},
        bind::By,
        records::AliasPolicy,
        send::{Send, Target},
    },
};

struct Scene {
    service: Arc<Service>,
    app: NewApp,
    device: DeviceId,
    regid: String,
}

async fn scene(policy: AliasPolicy) -> Scene {
    let foundation = Foundation {
        store: Arc::new(MemoryStore::default()),
        mark: None,
        keys: Arc::new(NodeKeys::ephemeral()),
        clock: Clock::starting_at(1_700_000_000_000),
        metrics: Arc::new(Metrics::new()),
        pace: Pace::Paced(Box::new(|| Duration::from_millis(1))),
        longterm: Arc::new(carillon::longterm::embedded::Embedded::in_memory()),
    };
    let core = Core::build(&Config::default(), foundation).await.unwrap();
    let service = core.service.clone();
    let app = service.create_app("app", policy).await.unwrap();
    let one = service.create_devices(&app.app_id, 1).await.unwrap().remove(0);
    Scene { service, app, device: one.device_id, regid: one.regid.unwrap().to_string() }
}

impl Scene {
    async fn bind(&self, alias: &str, token: Option<&str>) -> Result<(), Error> {
        self.service.bind(&self.regid, alias, By::Device { device: &self.device, token }).await
    }

    fn aliases(&self) -> Vec<String> {
        self.service.registration(&self.app.app_id, &self.regid).unwrap().aliases
    }
}

#[tokio::test(start_paused = true)]
async fn a_signed_alias_needs_the_app_servers_token_for_just_this() {
    let scene = scene(AliasPolicy::Signed).await;
    let secret = scene.app.app_secret.reveal();
    let later = scene.service.now_ms() + 60_000;
    let good = alias_token(secret, &scene.regid, "alice", later);
    let refused = [
        None,
        Some(String::new()),
        Some("nonsense".to_owned()),
        Some(alias_token("another secret", &scene.regid, "alice", later)),
        Some(alias_token(secret, &scene.regid, "bob", later)),
        Some(alias_token(secret, "another regid", "alice", later)),
        Some(alias_token(secret, &scene.regid, "alice", scene.service.now_ms())),
        Some(good[..good.len() - 1].to_owned()),
    ];
    for token in refused {
        let answer = scene.bind("alice", token.as_deref()).await;
        assert!(matches!(answer, Err(Error::Forbidden(_))), "{token:?}: {answer:?}");
    }
    assert!(scene.aliases().is_empty());
    scene.bind("alice", Some(&good)).await.unwrap();
    assert_eq!(scene.aliases(), ["alice"]);
    let by = By::Device { device: &scene.device, token: None };
    scene.service.unbind(&scene.regid, "alice", by).await.unwrap();
    assert!(scene.aliases().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_open_alias_needs_none_and_a_servers_alias_is_the_servers() {
    let open = scene(AliasPolicy::Open).await;
    open.bind("alice", None).await.unwrap();
    let server = scene(AliasPolicy::Server).await;
    let answer = server.bind("alice", Some("")).await;
    assert!(matches!(answer, Err(Error::Forbidden(_))), "{answer:?}");
    let app: AppId = server.app.app_id.clone();
    server.service.bind(&server.regid, "alice", By::App(&app)).await.unwrap();
    let by = By::Device { device: &server.device, token: None };
    let answer = server.service.unbind(&server.regid, "alice", by).await;
    assert!(matches!(answer, Err(Error::Forbidden(_))), "{answer:?}");
    assert_eq!(server.aliases(), ["alice"]);
}

#[tokio::test(start_paused = true)]
async fn binding_again_keeps_what_is_waiting() {
    let scene = scene(AliasPolicy::Open).await;
    scene.bind("alice", None).await.unwrap();
    let send = Send::new(Target::Aliases(vec!["alice".into()]), "1");
    scene.service.send(&scene.app.app_id, send).await.unwrap();
    scene.bind("alice", None).await.unwrap();
    let registrations = scene.service.registrations(&scene.device).unwrap();
    let follow = registrations[0].follows.iter().find(|follow| follow.queue.kind() == 2).unwrap();
    assert_eq!(follow.since.seq, Seq(0), "the message is still ahead of it");
}
