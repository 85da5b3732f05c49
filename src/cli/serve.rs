//! `carillon serve`: the configuration, the log, the runtime, the node.

use std::{io::IsTerminal, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Args;
use tokio::runtime::Builder;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, reload, util::SubscriberInitExt};

use super::check;
use crate::{
    base::tasks,
    config::{Bind, Config, LogFormat},
    node,
};

#[derive(Clone, Debug, Default, Args)]
pub(super) struct Serve {
    /// The configuration file; without it everything has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// MQTT over TCP
    #[arg(long, value_name = "ADDR:PORT|off")]
    mqtt: Option<Bind>,
    /// MQTT over TLS
    #[arg(long, value_name = "ADDR:PORT|off")]
    mqtts: Option<Bind>,
    /// MQTT over WebSocket
    #[arg(long, value_name = "ADDR:PORT|off")]
    ws: Option<Bind>,
    /// The API of app servers
    #[arg(long, value_name = "ADDR:PORT|off")]
    https: Option<Bind>,
    /// Metrics, health, and the operator's calls
    #[arg(long, value_name = "ADDR:PORT|off")]
    admin: Option<Bind>,
    /// Take over from the node that runs on the same data directory, and its listeners with it
    #[arg(long)]
    takeover: bool,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let config = self.config()?;
        let log = start_log(&config)?;
        let is_takeover = self.takeover;
        let runtime = pool("node").build().context("cannot start the runtime")?;
        // Small portions of what sockets and other threads ask for: who is urgent waits for few.
        let mut devices = pool("devices");
        devices.max_io_events_per_tick(64).global_queue_interval(8);
        let devices = devices.on_thread_start(tasks::standing_back(config.edge.nice)).build();
        let devices = devices.context("cannot start the devices' runtime")?;
        let outside = self.outside(log);
        let start = node::Start { config, outside, is_takeover, devices: devices.handle().clone() };
        let outcome = runtime.block_on(node::run(start));
        // What still runs now must not keep the process.
        devices.shutdown_timeout(SHUTDOWN_WAIT);
        runtime.shutdown_timeout(SHUTDOWN_WAIT);
        outcome
    }

    /// How the node reads the same file and flags again.
    fn outside(self, log: LogHandle) -> node::Outside {
        let file = self.config.clone();
        node::Outside {
            read: Box::new(move || self.config()),
            place: Box::new(move |key| match &file {
                Some(file) => check::place(file, key),
                None => "the defaults and flags".into(),
            }),
            log: Box::new(move |config| {
                let (filter, log) = (filter(config)?, log.clone());
                Ok(Box::new(move || log(filter)))
            }),
        }
    }

    /// The file's configuration with the flags over it.
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(file) => check::read(file)?,
            None => Config::default(),
        };
        let listen = &mut config.listen;
        for (slot, flag) in [
            (&mut listen.mqtt, self.mqtt),
            (&mut listen.mqtts, self.mqtts),
            (&mut listen.ws, self.ws),
            (&mut listen.https, self.https),
            (&mut listen.admin, self.admin),
        ] {
            *slot = flag.unwrap_or(*slot);
        }
        if let Some(data) = &self.data {
            config.store.data = data.clone();
        }
        Ok(config)
    }
}

/// The log filter of a configuration. What a library would say of what it carries is never said.
pub(super) fn filter(config: &Config) -> anyhow::Result<EnvFilter> {
    let text = &config.log.filter;
    let filter = EnvFilter::try_new(text);
    let filter = filter.with_context(|| format!("log.filter: `{text}` is not a filter"))?;
    // Below this it prints frames with their payloads.
    Ok(filter.add_directive("tungstenite=info".parse()?))
}

/// Puts another filter in place.
type LogHandle = Arc<dyn Fn(EnvFilter) + Send + Sync>;

/// Threads that run tasks, one for each processor.
fn pool(name: &'static str) -> Builder {
    let mut pool = Builder::new_multi_thread();
    pool.enable_all().thread_name(name);
    pool
}

fn start_log(config: &Config) -> anyhow::Result<LogHandle> {
    let (filter, filtering) = reload::Layer::new(filter(config)?);
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    let started = match config.log.format {
        LogFormat::Text => tracing_subscriber::registry().with(filter).with(log).try_init(),
        LogFormat::Json => tracing_subscriber::registry().with(filter).with(log.json()).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))?;
    // It fails only when the log is gone, and then nobody could be told.
    Ok(Arc::new(move |filter| drop(filtering.reload(filter))))
}

/// For what still runs when the node has ended.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "[listen]\nmqtt = \"127.0.0.1:1\"\nws = \"127.0.0.1:2\"\n").unwrap();
        let serve = Serve {
            config: Some(file),
            data: Some("elsewhere".into()),
            ws: Some(Bind::Off),
            ..Serve::default()
        };
        let config = serve.config().unwrap();
        assert_eq!(config.listen.mqtt.to_string(), "127.0.0.1:1");
        assert_eq!((config.listen.ws, config.store.data), (Bind::Off, "elsewhere".into()));
    }
}
