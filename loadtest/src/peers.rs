//! Servers that are started for a comparison: each a child process on free ports, with its files in a folder of its
//! own. Both are gone when it is dropped.

pub mod rumqttd;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::api::{Access, Api};

/// What can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// This gateway
    Carillon,
    /// The same over TLS, with session tickets; only if it is asked for
    CarillonTls,
    /// From PATH or /usr/sbin
    Mosquitto,
    /// From PATH or /usr/sbin
    Flashmq,
    /// Embedded in this program
    Rumqttd,
    /// Bare: one thread, one epoll
    FloorMio,
    /// Bare: a tokio task for each connection
    FloorTokio,
}

/// A running server.
pub struct Peer {
    pub addr: SocketAddr,
    pub gateway: Option<Gateway>,
    child: Child,
    dir: TempDir,
}

/// What a gateway has besides.
pub struct Gateway {
    pub credentials: PathBuf,
    /// Signed its certificate.
    pub ca: PathBuf,
    pub api: Api,
}

impl Kind {
    /// What is compared if nobody says.
    pub const ALL: [Self; 6] = [
        Self::Carillon,
        Self::Mosquitto,
        Self::Flashmq,
        Self::Rumqttd,
        Self::FloorMio,
        Self::FloorTokio,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Carillon => "carillon",
            Self::CarillonTls => "carillon tls",
            Self::Mosquitto => "mosquitto",
            Self::Flashmq => "flashmq",
            Self::Rumqttd => "rumqttd",
            Self::FloorMio => "floor mio",
            Self::FloorTokio => "floor tokio",
        }
    }

    /// The server's program; an error says what is missing.
    pub fn program(self, gateway: Option<&Path>) -> anyhow::Result<PathBuf> {
        let myself = std::env::current_exe().context("cannot find myself")?;
        match self {
            Self::Carillon | Self::CarillonTls => {
                let beside = || myself.with_file_name("carillon");
                let program = gateway.map_or_else(beside, Path::to_owned);
                ensure!(
                    program.is_file(),
                    "{} is not there: `cargo build --release` makes it, --gateway PATH names another",
                    program.display()
                );
                Ok(program)
            }
            Self::Mosquitto | Self::Flashmq => installed(self.name()).with_context(|| {
                format!("{} is not installed (neither on PATH nor in /usr/sbin)", self.name())
            }),
            Self::Rumqttd | Self::FloorMio | Self::FloorTokio => Ok(myself),
        }
    }
}

impl Peer {
    /// Starts a server and waits until it takes connections. A gateway gets so many device accounts.
    pub async fn start(kind: Kind, program: &Path, devices: usize) -> anyhow::Result<Self> {
        Self::start_with(kind, program, devices, "").await
    }

    /// The same, a gateway with further settings.
    pub async fn start_with(
        kind: Kind,
        program: &Path,
        devices: usize,
        settings: &str,
    ) -> anyhow::Result<Self> {
        let dir = folder()?;
        let addr = free_addr()?;
        let https = free_addr()?;
        let mut command = Command::new(program);
        match kind {
            Kind::Carillon | Kind::CarillonTls => {
                gateway(&mut command, dir.path(), https, settings)?;
                let (used, other) = match kind {
                    Kind::CarillonTls => ("--mqtts", "--mqtt"),
                    _ => ("--mqtt", "--mqtts"),
                };
                command.args([used, &addr.to_string(), other, "off"]);
            }
            Kind::Mosquitto => configured(&mut command, "-c", dir.path(), &mosquitto(addr))?,
            Kind::Flashmq => {
                configured(&mut command, "-c", dir.path(), &flashmq(addr, dir.path()))?
            }
            Kind::Rumqttd => drop(command.args(["serve", "rumqttd", &addr.to_string()])),
            Kind::FloorMio => drop(command.args(["serve", "mio", &addr.to_string()])),
            Kind::FloorTokio => drop(command.args(["serve", "tokio", &addr.to_string()])),
        }
        let mut peer = Self::spawn(command, addr, dir).await?;
        if matches!(kind, Kind::Carillon | Kind::CarillonTls) {
            peer.gateway = Some(peer.accounts(program, https, devices).await?);
        }
        Ok(peer)
    }

    /// PouchDB server; `modules` is the folder of its packages.
    pub async fn pouchdb(modules: &Path) -> anyhow::Result<Self> {
        let (dir, addr) = (folder()?, free_addr()?);
        fs::create_dir(dir.path().join("data"))?;
        let mut command =
            node(modules, dir.path(), "server.js", include_str!("peers/couch/server.js"))?;
        command.arg(dir.path().join("data")).arg(addr.port().to_string());
        Self::spawn(command, addr, dir).await
    }

    async fn spawn(mut command: Command, addr: SocketAddr, dir: TempDir) -> anyhow::Result<Self> {
        let log = File::create(dir.path().join("log"))?;
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| program.display().to_string())?;
        let mut peer = Self { addr, gateway: None, child, dir };
        peer.wait_for(addr).await?;
        Ok(peer)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    async fn wait_for(&mut self, addr: SocketAddr) -> anyhow::Result<()> {
        let start = Instant::now();
        while TcpStream::connect(addr).is_err() {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.dir().join("log")).unwrap_or_default();
                bail!("it ended with {status}: {}", log.trim());
            }
            ensure!(start.elapsed() < START_WITHIN, "it does not listen on {addr}");
            tokio::time::sleep(RETRY_AFTER).await;
        }
        Ok(())
    }

    async fn accounts(
        &mut self,
        program: &Path,
        https: SocketAddr,
        devices: usize,
    ) -> anyhow::Result<Gateway> {
        self.wait_for(https).await?;
        let data = self.dir().join("data");
        let start = Instant::now();
        while !data.join("admin.json").exists() {
            ensure!(start.elapsed() < START_WITHIN, "it has no admin door");
            tokio::time::sleep(RETRY_AFTER).await;
        }
        let credentials = self.dir().join("devices.csv");
        let mut command = Command::new(program);
        command.args(["device", "create", "--app", "demo", "--count", &devices.to_string()]);
        command.arg("--data").arg(&data).stdin(Stdio::null()).stdout(File::create(&credentials)?);
        let made = tokio::task::spawn_blocking(move || command.status()).await??;
        ensure!(made.success(), "`carillon device create` failed with {made}");
        #[derive(Deserialize)]
        struct DemoApp {
            app_secret: String,
        }
        let text = fs::read_to_string(data.join("demo-app.json")).context("demo-app.json")?;
        let DemoApp { app_secret } = serde_json::from_str(&text)?;
        let api = Some(format!("https://{https}").parse()?);
        let access = Access { api, app: "demo".to_owned(), secret: Some(app_secret) };
        let ca = data.join("tls/ca.pem");
        let api = access.client(Some(&ca), false)?;
        Ok(Gateway { credentials, ca, api })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // One that has ended already needs neither.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("carillon-loadtest").tempdir()?)
}

/// Where the packages of PouchDB server are.
pub fn check_modules(modules: &Path) -> anyhow::Result<PathBuf> {
    let packages = modules.join("node_modules");
    ensure!(
        packages.join("express-pouchdb").is_dir(),
        "{} has no PouchDB server: `scripts/couch` installs it, --modules FOLDER names another place",
        modules.display()
    );
    Ok(fs::canonicalize(packages)?)
}

/// A script of ours, which finds its packages in `modules`. It and what it writes are in `dir`.
pub fn node(modules: &Path, dir: &Path, name: &str, script: &str) -> anyhow::Result<Command> {
    let packages = check_modules(modules)?;
    let file = dir.join(name);
    fs::write(&file, script)?;
    let mut command = Command::new("node");
    command.env("NODE_PATH", packages).env("NODE_ENV", "production");
    command.current_dir(dir).arg(file);
    Ok(command)
}

fn gateway(
    command: &mut Command,
    dir: &Path,
    https: SocketAddr,
    settings: &str,
) -> anyhow::Result<()> {
    let config = dir.join("carillon.toml");
    fs::write(&config, format!("[log]\nfilter = \"warn\"\n{settings}"))?;
    command.arg("serve").arg("--config").arg(config).arg("--data").arg(dir.join("data"));
    command.args(["--https", &https.to_string(), "--ws", "off", "--admin", "127.0.0.1:0"]);
    Ok(())
}

fn configured(command: &mut Command, flag: &str, dir: &Path, text: &str) -> anyhow::Result<()> {
    let file = dir.join("server.conf");
    fs::write(&file, text)?;
    command.arg(flag).arg(file);
    Ok(())
}

fn mosquitto(addr: SocketAddr) -> String {
    format!(
        "listener {} {}\nallow_anonymous true\npersistence false\nmax_connections -1\nset_tcp_nodelay true\nlog_type error\n",
        addr.port(),
        addr.ip()
    )
}

fn flashmq(addr: SocketAddr, dir: &Path) -> String {
    format!(
        "allow_anonymous true\nlog_file {}/server.log\nlog_level error\nrlimit_nofile 20000\nlisten {{\n  protocol mqtt\n  inet_protocol ip4\n  inet4_bind_address {}\n  port {}\n}}\n",
        dir.display(),
        addr.ip(),
        addr.port()
    )
}

/// A program on PATH, or where Debian puts servers.
#[expect(clippy::disallowed_methods, reason = "PATH is no setting of ours")]
fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A port that was free a moment ago: servers that cannot say which one they took are told one.
fn free_addr() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}

const START_WITHIN: Duration = Duration::from_secs(30);
const RETRY_AFTER: Duration = Duration::from_millis(20);
