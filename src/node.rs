//! The composition root: builds bottom-up, opens the doors, drains top-down.

pub mod core;

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use self::core::{Core, Foundation, Pace};
use crate::{
    admin::{self, Admin, AdminFile},
    api::{self, Authority},
    base::{
        clock::Clock,
        http::{Ready, Token},
        keys::{NodeKeys, Secret, write_private},
        metrics::{self, Metrics, RuntimeMetrics, Transport},
        net, tasks,
        tls::{Identity, Inside},
    },
    config::{Bind, Config},
    edge::Edge,
    queue::store::{embedded::EmbeddedStore, mark::Mark},
    service::{Service, apps::NewApp, records::AliasPolicy},
};

/// Connections may take this long to end at a drain.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// The app that the first start makes, to try things.
const DEMO_APP: &str = "demo";

/// Runs a node until a signal stops it or its store fails.
///
/// # Errors
/// What kept it from starting, or that its store failed: then it has stopped
/// acknowledging, and a restart decides.
pub async fn run(config: Config) -> anyhow::Result<()> {
    config.check()?;
    check_open_files()?;
    let data = config.store.data.clone();
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(&data).with_context(|| data.display().to_string())?;
    let _lock = lock(&data)?;
    forget_admin_file(&data)?;
    let recorder = metrics::install().context("cannot start the metrics")?;
    let upkeep = tasks::spawn("metrics", keep_metrics(recorder.clone()));
    let metrics = Arc::new(Metrics::new());
    let clock = Clock::system();
    // Sockets first: a port in use is told before anything is written.
    let doors = Doors::bind(&config)?;

    let keys = Arc::new(load_keys(&data)?);
    let store = EmbeddedStore::open(&data.join("store"), config.store.cache_bytes)
        .with_context(|| format!("{}", data.join("store").display()))?;
    let mark = Mark::open(&data.join("commit-mark")).context("commit-mark")?;
    let foundation = Foundation {
        store: Arc::new(store),
        mark: Some(mark),
        keys,
        clock,
        metrics: metrics.clone(),
        pace: Pace::Threaded,
    };
    let core = Core::build(&config, foundation).await?;
    let demo = demo_app(&core.service, &data).await?;

    let ready = Ready::default();
    let (stop, stopped) = watch::channel(false);
    let edge = Edge::new(core.service.clone(), config.edge.clone(), metrics);
    let open = Open { config: &config, edge: &edge, ready: &ready, stopped };
    let (addresses, serving) = open.all(doors, &core.service, recorder, clock)?;
    ready.set(true);
    tracing::info!(?addresses, data = %data.display(), "the node is ready");
    if demo.is_some() {
        print_first_steps(&data, &addresses);
    }

    let mut failed = core.failed.clone();
    let outcome = tokio::select! {
        signal = stop_signal() => {
            tracing::info!(signal = signal?, "draining");
            Ok(())
        }
        _ = failed.wait_for(|failed| *failed) => {
            Err(anyhow::anyhow!("the node cannot go on; the log says why: mend it and start again"))
        }
    };
    ready.set(false);
    stop.send_replace(true);
    if outcome.is_ok() {
        drain(&edge, serving).await;
        core.stop().await;
    }
    upkeep.abort();
    outcome
}

/// Samples the runtime, and folds histogram samples that nobody has scraped.
async fn keep_metrics(recorder: PrometheusHandle) {
    let runtime = RuntimeMetrics::new();
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        runtime.sample();
        recorder.run_upkeep();
    }
}

/// Tells the devices, waits for the answers on their way, within a deadline.
async fn drain(edge: &Arc<Edge>, serving: Vec<JoinHandle<()>>) {
    edge.drain();
    let ended = async {
        edge.drained().await;
        for door in serving {
            let _ = door.await;
        }
    };
    if tokio::time::timeout(DRAIN_DEADLINE, ended).await.is_err() {
        tracing::warn!("some connections did not end within the drain deadline");
    }
}

async fn stop_signal() -> io::Result<&'static str> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}

fn check_open_files() -> anyhow::Result<()> {
    let (max, needed) = (net::open_files_max(), net::OPEN_FILES_MIN);
    if max < needed {
        bail!("only {max} files may be open, at least {needed} are needed: raise `ulimit -n`");
    }
    Ok(())
}

/// Holds the data directory for this process.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "{}: another carillon runs on this data directory; stop it, or take --data DIR",
            data.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).context(path.display().to_string()),
    }
}

/// Keys and store are made at the first start only: what is missing later was lost, and a
/// new one in its place would know no device.
fn load_keys(data: &Path) -> anyhow::Result<NodeKeys> {
    let lost = |name: &str, beside: &str| {
        let (path, beside) = (data.join(name), data.join(beside));
        if beside.exists() && !path.exists() {
            let (path, beside) = (path.display(), beside.display());
            bail!("{path}: missing beside {beside}, restore it from a backup");
        }
        Ok(())
    };
    lost("keys", "store")?;
    lost("store", "commit-mark")?;
    Ok(NodeKeys::load_or_create(&data.join("keys"))?)
}

fn forget_admin_file(data: &Path) -> anyhow::Result<()> {
    let path = AdminFile::path(data);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(path.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Makes the demo app at the first start and reads its credentials later.
async fn demo_app(service: &Arc<Service>, data: &Path) -> anyhow::Result<Option<NewApp>> {
    let path = data.join("demo-app.json");
    let written = match fs::read(&path) {
        Ok(text) => Some(serde_json::from_slice(&text).context(path.display().to_string())?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).context(path.display().to_string()),
    };
    if !service.apps()?.is_empty() {
        return Ok(written);
    }
    // The file first: a crash between the two leaves credentials that the next start uses.
    let demo = match written {
        Some(demo) => demo,
        None => {
            let demo = NewApp::random(DEMO_APP.parse()?);
            write_private(&path, &serde_json::to_vec(&demo)?)?;
            demo
        }
    };
    service.create_app_as(&demo, AliasPolicy::Open).await?;
    Ok(Some(demo))
}

/// The listening sockets, by the name that the configuration gives them.
struct Doors {
    mqtt: Option<TcpListener>,
    mqtts: Option<TcpListener>,
    ws: Option<TcpListener>,
    https: Option<TcpListener>,
    admin: Option<TcpListener>,
}

impl Doors {
    fn bind(config: &Config) -> anyhow::Result<Self> {
        let listen = &config.listen;
        let bind = |name: &str, bind: Bind| {
            match bind {
            Bind::Off => Ok(None),
            Bind::At(addr) => net::listen(addr, listen.backlog).map(Some).with_context(|| {
                format!("cannot listen for {name}; take another address with --{name} ADDR:PORT, or `off`")
            }),
        }
        };
        Ok(Self {
            mqtt: bind("mqtt", listen.mqtt)?,
            mqtts: bind("mqtts", listen.mqtts)?,
            ws: bind("ws", listen.ws)?,
            https: bind("https", listen.https)?,
            admin: bind("admin", listen.admin)?,
        })
    }

    fn addresses(&self) -> io::Result<BTreeMap<String, SocketAddr>> {
        [
            ("mqtt", &self.mqtt),
            ("mqtts", &self.mqtts),
            ("ws", &self.ws),
            ("https", &self.https),
            ("admin", &self.admin),
        ]
        .into_iter()
        .filter_map(|(name, door)| door.as_ref().map(|door| (name, door)))
        .map(|(name, door)| Ok((name.to_owned(), door.local_addr()?)))
        .collect()
    }
}

type Addresses = BTreeMap<String, SocketAddr>;

/// What the doors are opened with.
struct Open<'a> {
    config: &'a Config,
    edge: &'a Arc<Edge>,
    ready: &'a Ready,
    stopped: watch::Receiver<bool>,
}

impl Open<'_> {
    fn all(
        &self,
        doors: Doors,
        service: &Arc<Service>,
        recorder: PrometheusHandle,
        clock: Clock,
    ) -> anyhow::Result<(Addresses, Vec<JoinHandle<()>>)> {
        let addresses = doors.addresses()?;
        let identity = self.identity(&addresses, clock)?;
        let (token, token_shown) = operator_token();
        let api = |authority| {
            api::router(service.clone(), &self.config.api, authority, self.ready.clone())
        };
        let operator = admin::router(
            Admin {
                service: service.clone(),
                metrics: recorder,
                token: token.clone(),
                ready: self.ready.clone(),
            },
            &self.config.api,
        )
        .merge(api(Authority::Operator(token)));

        let mut serving = Vec::new();
        let mqtt_tls = identity.server_config(Inside::Mqtt)?;
        for (door, transport, tls) in [
            (doors.mqtt, Transport::Tcp, None),
            (doors.mqtts, Transport::Tls, Some(mqtt_tls)),
            (doors.ws, Transport::WebSocket, None),
        ] {
            if let Some(door) = door {
                let serve = self.edge.clone().serve(door, transport, tls, self.stopped.clone());
                serving.push(tasks::spawn("edge", serve));
            }
        }
        let http_tls = identity.server_config(Inside::Http)?;
        for (door, tls, router) in [
            (doors.https, Some(http_tls), api(Authority::AppSecrets)),
            (doors.admin, None, operator),
        ] {
            if let Some(door) = door {
                let config = self.config.api.clone();
                let serve = api::serve(door, tls, router, config, self.stopped.clone());
                serving.push(tasks::spawn("http", serve));
            }
        }
        if let Some(admin) = addresses.get("admin") {
            let listen = addresses.iter().map(|(name, addr)| (name.clone(), addr.to_string()));
            let url = format!("http://{admin}");
            let file = AdminFile { url, token: token_shown, listen: listen.collect() };
            file.write(&self.config.store.data)?;
        }
        Ok((addresses, serving))
    }

    fn identity(&self, addresses: &Addresses, clock: Clock) -> anyhow::Result<Identity> {
        let listen = &self.config.listen;
        if !listen.certificate.as_os_str().is_empty() {
            return Ok(Identity::read(&listen.certificate, &listen.private_key)?);
        }
        let addresses: Vec<IpAddr> = addresses.values().map(SocketAddr::ip).collect();
        let dir = self.config.store.data.join("tls");
        Ok(Identity::local(&dir, &addresses, clock.unix_ms())?)
    }
}

fn operator_token() -> (Token, Secret) {
    let secret = Secret::random();
    (Token::from(&secret), secret)
}

/// Three lines that can be pasted, for whoever starts a node by hand. They read the secrets
/// from their file, because what is printed may end in a log.
fn print_first_steps(data: &Path, addresses: &Addresses) {
    let (Some(mqtt), Some(https)) = (addresses.get("mqtt"), addresses.get("https")) else { return };
    let (data, port) = (data.display(), mqtt.port());
    let host = mqtt.ip();
    let curl = format!("curl -sS --cacert {data}/tls/ca.pem");
    let demo = format!("{data}/demo-app.json");
    let create = format!(
        "f() {{ sed \"s/.*\\\"$1\\\":\\\"\\([^\\\"]*\\)\\\".*/\\1/\"; }}; D=$({curl} https://{https}/v1/devices -H 'content-type: application/json' -d '{{\"app_id\":\"demo\",\"app_key\":\"'\"$(f app_key <{demo})\"'\",\"register\":true}}'); d() {{ echo \"$D\" | f $1; }}; echo \"$D\""
    );
    let receive = format!(
        "mosquitto_sub -h {host} -p {port} -V mqttv5 -i \"$(d device_id)\" -u \"$(d device_id)\" -P \"$(d secret)\" -c -x 86400 -q 1 -t push &"
    );
    let send = format!(
        "{curl} https://{https}/v1/apps/demo/messages -H \"authorization: Bearer $(f app_secret <{demo})\" -H 'content-type: application/json' -d '{{\"target\":{{\"regids\":[\"'\"$(d regid)\"'\"]}},\"payload\":{{\"hello\":\"world\"}}}}'"
    );
    let text = format!(
        "Try it, in another terminal in this directory:\n\n{create}\n{receive}\n{send}\n\n"
    );
    // Nobody may listen, and the node runs all the same.
    drop(io::stdout().write_all(text.as_bytes()));
}
