//! The doors of a node: their sockets, and what stands in them now.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, TcpListener as Passed},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use metrics_exporter_prometheus::PrometheusHandle;
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::lobby::{Early, Lobby, Seats};
use crate::{
    admin::{self, Admin, AdminFile, Order},
    api::{self, Authority, frames::Desk},
    base::{
        http::{
            Ready, Token,
            serve::{self, Bounds, Face},
        },
        keys::Secret,
        metrics::Transport,
        net,
        proxy::Balancers,
        tasks,
        tls::{self, Identity, Inside},
    },
    config::{Api, Bind, Config, Listen},
    edge::{Door, Edge},
    service::Service,
};

/// The listening sockets, by the name that the configuration gives them.
pub(super) struct Doors {
    listeners: BTreeMap<&'static str, TcpListener>,
    lobbies: BTreeMap<&'static str, Lobby>,
    early: BTreeMap<&'static str, Vec<Early>>,
}

pub(super) type Addresses = BTreeMap<String, SocketAddr>;

impl Doors {
    /// Takes each socket from those that were passed, by its address, or opens it. A passed
    /// one that nobody wants is closed.
    pub(super) fn open(config: &Config, passed: Vec<Passed>) -> anyhow::Result<Self> {
        let listen = &config.listen;
        let mut passed = Pool(passed.into_iter().map(Some).collect());
        let mut doors = BTreeMap::new();
        for (name, bind) in [
            ("mqtt", listen.mqtt),
            ("mqtts", listen.mqtts),
            ("ws", listen.ws),
            ("https", listen.https),
            ("admin", listen.admin),
        ] {
            let Bind::At(addr) = bind else { continue };
            let opened = match passed.take(addr) {
                Some(listener) => net::adopt(listener, listen.backlog),
                None => net::listen(addr, listen.backlog),
            };
            let opened = opened.with_context(|| {
                format!("cannot listen for {name}; take another address with --{name} ADDR:PORT, or `off`")
            })?;
            doors.insert(name, opened);
        }
        Ok(Self { listeners: doors, lobbies: BTreeMap::new(), early: BTreeMap::new() })
    }

    /// Takes devices in before anybody can serve them: no more than there can be connections,
    /// and half of the files are left for those who come later.
    pub(super) fn open_lobbies(&mut self, connections_max: usize) {
        let seats = Seats::new(connections_max.min(net::device_files_max() / 2));
        for name in ["mqtt", "mqtts", "ws"] {
            if let Some(listener) = self.listeners.remove(name) {
                self.lobbies.insert(name, Lobby::open(listener, seats.clone()));
            }
        }
    }

    /// Ends that: whoever came waits for [`serve`].
    pub(super) async fn close_lobbies(&mut self) -> anyhow::Result<()> {
        for (name, lobby) in std::mem::take(&mut self.lobbies) {
            let (listener, early) = lobby.close().await?;
            self.listeners.insert(name, listener);
            self.early.insert(name, early);
        }
        Ok(())
    }

    pub(super) fn addresses(&self) -> io::Result<Addresses> {
        let all = self.listeners.iter();
        all.map(|(name, door)| Ok(((*name).to_owned(), door.local_addr()?))).collect()
    }

    /// The sockets once more, to be passed on.
    pub(super) fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        self.listeners.values().map(|door| door.as_fd().try_clone_to_owned()).collect()
    }
}

/// Sockets that were passed and not taken yet.
struct Pool(Vec<Option<Passed>>);

impl Pool {
    /// The one of this address, whatever its port if any will do.
    fn take(&mut self, wanted: SocketAddr) -> Option<Passed> {
        let serves = |there: &Passed| {
            there.local_addr().is_ok_and(|addr| {
                addr.ip() == wanted.ip() && (wanted.port() == 0 || addr.port() == wanted.port())
            })
        };
        self.0.iter_mut().find(|there| there.as_ref().is_some_and(serves))?.take()
    }
}

/// Everything that the HTTP doors are made of, whatever the configuration says.
pub(super) struct Rooms {
    service: Arc<Service>,
    recorder: PrometheusHandle,
    ready: Ready,
    token: Token,
    orders: mpsc::Sender<Order>,
    desk: Desk,
}

impl Rooms {
    /// With a new token for the operator, to be written where he finds it.
    pub(super) fn new(
        service: Arc<Service>,
        recorder: PrometheusHandle,
        ready: Ready,
        orders: mpsc::Sender<Order>,
        desk: Desk,
    ) -> (Self, Secret) {
        let secret = Secret::random();
        (Self { service, recorder, ready, token: Token::from(&secret), orders, desk }, secret)
    }

    fn https(&self, config: &Config, tls: Arc<ServerConfig>) -> Face {
        let router = self.api(&config.api, Authority::AppSecrets);
        let balancers = balancers(&config.listen, "https");
        let unlimited = config.edge.gate.unlimited_networks.iter();
        let unlimited = unlimited.map(|network| (*network).into()).collect();
        Face { tls: Some(tls), router, bounds: api::bounds(&config.api), balancers, unlimited }
    }

    fn admin(&self, config: &Config) -> Face {
        let admin = Admin {
            service: self.service.clone(),
            metrics: self.recorder.clone(),
            token: self.token.clone(),
            ready: self.ready.clone(),
            orders: self.orders.clone(),
        };
        let api = self.api(&config.api, Authority::Operator(self.token.clone()));
        let router = admin::router(admin, &config.api).merge(api);
        // Whoever may come here is one of few, and is not to be locked out.
        let bounds = Bounds { connections_per_address_max: 0, ..api::bounds(&config.api) };
        let (balancers, unlimited) = (Balancers::default(), Vec::new());
        Face { tls: None, router, bounds, balancers, unlimited }
    }

    fn api(&self, config: &Api, authority: Authority) -> axum::Router {
        let (service, ready) = (self.service.clone(), self.ready.clone());
        api::router(service, config, authority, ready, self.desk.clone())
    }
}

/// What stands in the doors; a reload replaces it.
pub(super) struct Shown {
    rooms: Rooms,
    identity: Identity,
    mqtts: tls::Live,
    https: serve::Live,
    admin: serve::Live,
}

/// What a reload would show, made and checked.
pub(super) struct Next {
    identity: Option<(Identity, Arc<ServerConfig>)>,
    https: Face,
    admin: Face,
}

impl Shown {
    pub(super) fn new(rooms: Rooms, config: &Config, identity: Identity) -> anyhow::Result<Self> {
        let mqtts = Arc::new(ArcSwap::new(identity.server_config(Inside::Mqtt)?));
        let https = rooms.https(config, identity.server_config(Inside::Http)?);
        let https = Arc::new(ArcSwap::from_pointee(https));
        let admin = Arc::new(ArcSwap::from_pointee(rooms.admin(config)));
        Ok(Self { rooms, identity, mqtts, https, admin })
    }

    /// Prepares what another configuration shows. The same certificate keeps its tickets.
    pub(super) fn prepare(&self, config: &Config, identity: Identity) -> anyhow::Result<Next> {
        let admin = self.rooms.admin(config);
        if identity == self.identity {
            let tls = self.https.load().tls.clone().context("HTTPS has a certificate")?;
            return Ok(Next { identity: None, https: self.rooms.https(config, tls), admin });
        }
        let mqtts = identity.server_config(Inside::Mqtt)?;
        let https = self.rooms.https(config, identity.server_config(Inside::Http)?);
        Ok(Next { identity: Some((identity, mqtts)), https, admin })
    }

    /// Shows it. Returns whether the certificate is another one.
    pub(super) fn replace(&mut self, next: Next) -> bool {
        self.https.store(Arc::new(next.https));
        self.admin.store(Arc::new(next.admin));
        let Some((identity, mqtts)) = next.identity else { return false };
        self.identity = identity;
        self.mqtts.store(mqtts);
        true
    }
}

/// The loops that serve the doors.
#[derive(Default)]
pub(super) struct Serving {
    /// The devices' doors: they return once they let nobody in.
    pub(super) edge: Vec<JoinHandle<()>>,
    /// Returns once its calls have ended.
    pub(super) https: Vec<JoinHandle<()>>,
    /// The same; told to stop last.
    pub(super) admin: Vec<JoinHandle<()>>,
}

/// Opens all doors. The admin door goes by a signal of its own, so that it tells of a drain.
pub(super) fn serve(
    mut doors: Doors,
    (edge, config, devices): (&Arc<Edge>, &Config, &Handle),
    shown: &Shown,
    stopped: &watch::Receiver<bool>,
    closed: &watch::Receiver<bool>,
) -> Serving {
    let mut serving = Serving::default();
    for (name, listener) in doors.listeners {
        let (transport, tls) = match name {
            "mqtt" => (Transport::Tcp, None),
            "mqtts" => (Transport::Tls, Some(shown.mqtts.clone())),
            "ws" => (Transport::WebSocket, None),
            "https" => {
                let loop_ = serve::serve(listener, shown.https.clone(), stopped.clone());
                serving.https.push(tasks::spawn("https", loop_));
                continue;
            }
            _ => {
                let loop_ = serve::serve(listener, shown.admin.clone(), closed.clone());
                serving.admin.push(tasks::spawn("admin", loop_));
                continue;
            }
        };
        let early = doors.early.remove(name).unwrap_or_default();
        let balancers = balancers(&config.listen, name);
        let door = Door { listener, transport, tls, balancers, early };
        let loop_ = edge.clone().serve(door, stopped.clone());
        serving.edge.push(tasks::spawn_on(devices, "edge", loop_));
    }
    serving
}

fn balancers(listen: &Listen, door: &str) -> Balancers {
    let is_behind = listen.proxy_doors.iter().any(|one| one == door);
    let networks = listen.proxy_from.iter().filter(|_| is_behind);
    Balancers::new(networks.map(|network| (*network).into()))
}

/// The certificate that a configuration asks for: the operator's own, or one of the local CA.
pub(super) fn identity(
    config: &Config,
    addresses: &Addresses,
    now_ms: u64,
) -> Result<Identity, tls::Error> {
    let listen = &config.listen;
    if !listen.certificate.as_os_str().is_empty() {
        return Identity::read(&listen.certificate, &listen.private_key);
    }
    let addresses: Vec<IpAddr> = addresses.values().map(SocketAddr::ip).collect();
    Identity::local(&config.store.data.join("tls"), &addresses, now_ms)
}

/// Leaves the admin door's address and token where the subcommands look.
pub(super) fn announce(
    config: &Config,
    addresses: &Addresses,
    token: Secret,
) -> anyhow::Result<()> {
    let Some(admin) = addresses.get("admin") else { return Ok(()) };
    let listen = addresses.iter().map(|(name, addr)| (name.clone(), addr.to_string()));
    let file = AdminFile { url: format!("http://{admin}"), token, listen: listen.collect() };
    Ok(file.write(&config.store.data)?)
}
