//! Where the load goes and who the devices are, from the command line; mistakes are told before anything starts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::mqtt::Version;
use crate::order::{Open, Seal, Setup, Speech, Tls, TopicOf};
use crate::process;

/// The server under load, and how the devices speak to it.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// MQTT over TCP, or over TLS with --tls
    #[arg(long, value_name = "ADDR:PORT")]
    pub target: SocketAddr,
    /// Further servers that share the devices with it, for connect, idle and storm
    #[arg(long, value_name = "ADDR:PORT,ADDR:PORT…", value_delimiter = ',')]
    pub others: Vec<SocketAddr>,
    /// Allow a target that is not on this machine
    #[arg(long)]
    pub allow_remote: bool,
    /// Any MQTT broker: anonymous clients with one subscription each
    #[arg(long)]
    pub broker: bool,
    /// A gateway: the CSV that `carillon device create --app APP --count N` prints
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// Speak frames (CONNECT and Resume in one go) where the default is to SUBSCRIBE `push`
    #[arg(long)]
    pub frames: bool,
    /// With --frames: register with a key of this app, so that messages come sealed, and open them
    #[arg(long, value_name = "APP,APP_KEY,ID-HEX", requires = "frames")]
    pub seal: Option<Seal>,
    /// MQTT 5; the default is 3.1.1
    #[arg(long)]
    pub mqtt5: bool,
    /// What CONNECT states, in seconds; a ping comes after three quarters of it
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub keep_alive_s: u16,
    /// Local addresses, or how many of 127.0.0.1, 127.0.0.2… (1 to 254)
    #[arg(long, value_name = "ADDR,ADDR…|COUNT")]
    pub source: Option<Sources>,
    /// Processes that share the devices; the default is as many as the limit of open files asks for
    #[arg(long)]
    pub processes: Option<usize>,
    /// Connects in flight
    #[arg(long, default_value_t = 200)]
    pub at_once: usize,
    /// One attempt to connect, until it is subscribed or resumed
    #[arg(long, value_name = "MS", default_value_t = 15_000)]
    pub timeout_ms: u64,
    /// TLS; needs --ca
    #[arg(long)]
    pub tls: bool,
    /// The CA that signed the server's certificate, as PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// TLS with session tickets: those of earlier connections are used
    #[arg(long)]
    pub resume_tls: bool,
    /// MQTT over WebSocket, for connect, idle and storm
    #[arg(long, conflicts_with = "tls")]
    pub websocket: bool,
    /// The server's process, to read its processor time and memory; of several servers, all of them
    #[arg(long, value_name = "PID,PID…", value_delimiter = ',')]
    pub pid: Vec<u32>,
}

/// Local addresses that the devices share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources(pub Vec<IpAddr>);

impl FromStr for Sources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(count) = text.parse::<u8>() {
            return match count {
                1..=254 => Ok(Self::loopback(count)),
                _ => Err("a count is 1 to 254".to_owned()),
            };
        }
        let addresses: Result<Vec<IpAddr>, _> = text.split(',').map(str::parse).collect();
        let hint = "give addresses as 127.0.0.2,127.0.0.3 or a count of loopback addresses";
        addresses.map(Self).map_err(|error| format!("{error}: {hint}"))
    }
}

impl Sources {
    /// 127.0.0.1, 127.0.0.2…
    pub fn loopback(count: u8) -> Self {
        Self((1..=count).map(|host| Ipv4Addr::new(127, 0, 0, host).into()).collect())
    }
}

/// A server that was checked, as all measurements take it.
#[derive(Clone, Debug)]
pub struct Server {
    pub setup: Setup,
    pub processes: usize,
    pub at_once: usize,
    /// None if nobody said which.
    pub pids: Vec<u32>,
}

impl Target {
    /// For so many devices; `topic` is what a broker's clients subscribe, with `qos`.
    pub fn server(&self, devices: usize, topic: TopicOf, qos: u8) -> anyhow::Result<Server> {
        let targets: Vec<SocketAddr> =
            [self.target].into_iter().chain(self.others.clone()).collect();
        for target in &targets {
            check_local(*target, self.allow_remote)?;
        }
        ensure!(devices > 0, "no devices: give --devices at least 1");
        ensure!(self.at_once > 0, "--at-once must be at least 1");
        let sources = match &self.source {
            Some(Sources(sources)) => sources.clone(),
            None if self.target.ip() == Ipv4Addr::LOCALHOST => Sources::loopback(SOURCES).0,
            None => Vec::new(),
        };
        for (source, target) in
            sources.iter().flat_map(|source| targets.iter().map(move |to| (source, to)))
        {
            let is_same = source.is_ipv4() == target.is_ipv4();
            ensure!(is_same, "--source {source} cannot reach {target}: one is IPv6");
        }
        let setup = Setup {
            target: self.target,
            others: self.others.clone(),
            speech: self.speech(topic, qos)?,
            version: if self.mqtt5 { Version::V5 } else { Version::V311 },
            keep_alive_s: self.keep_alive_s,
            sources,
            devices,
            first: 0,
            step: 1,
            tls: self.tls()?,
            is_websocket: self.websocket,
            seal: self.seal.clone(),
            timeout_ms: self.timeout_ms,
        };
        for pid in &self.pid {
            process::cpu_seconds(*pid).with_context(|| format!("--pid {pid}: no such process"))?;
        }
        let processes = processes(devices, self.processes)?;
        for target in &targets {
            TcpStream::connect_timeout(target, PROBE_WITHIN)
                .with_context(|| format!("nothing answers on {target}: is the server running?"))?;
        }
        Ok(Server { setup, processes, at_once: self.at_once, pids: self.pid.clone() })
    }

    fn speech(&self, topic: TopicOf, qos: u8) -> anyhow::Result<Speech> {
        match (self.broker, &self.credentials) {
            (true, None) if self.frames => {
                bail!("--frames is what a gateway speaks: give --credentials, not --broker")
            }
            (true, None) => Ok(Speech::Broker { topic, qos }),
            (false, Some(credentials)) => {
                let credentials = credentials.clone();
                Ok(match self.frames {
                    true => Speech::Frames { credentials },
                    false => Speech::Plain { credentials },
                })
            }
            (true, Some(_)) => bail!("--broker and --credentials: a target is one of the two"),
            (false, None) => bail!(
                "what is the target? give --credentials FILE for a gateway (`carillon device create` \
                 prints it), or --broker for another MQTT broker"
            ),
        }
    }

    fn tls(&self) -> anyhow::Result<Option<Tls>> {
        if !self.tls {
            ensure!(!self.resume_tls, "--resume-tls needs --tls");
            return Ok(None);
        }
        let ca = self.ca.clone().context(
            "--tls needs --ca FILE, the CA of the server's certificate (a gateway's is <data>/tls/ca.pem)",
        )?;
        Ok(Some(Tls { ca, resume: self.resume_tls }))
    }
}

impl Server {
    /// All devices below `to`, each of them once.
    pub fn open(&self, to: usize) -> Open {
        let at_once = self.at_once.div_ceil(self.processes);
        Open { to, at_once, retries_max: 0, honour_advice: false, from_order: false }
    }

    /// Processor time of the server so far, in seconds; 0 if nobody said which process it is.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.pids.iter().map(|pid| process::cpu_seconds(*pid)).sum()
    }

    /// Anonymous memory of the server.
    pub fn anonymous_bytes(&self) -> anyhow::Result<Option<u64>> {
        let bytes: u64 = self
            .pids
            .iter()
            .map(|pid| process::anonymous_bytes(*pid))
            .sum::<anyhow::Result<_>>()?;
        Ok(self.known(bytes))
    }

    /// A figure of the server: none if nobody said which process it is.
    pub fn known<T>(&self, figure: T) -> Option<T> {
        (!self.pids.is_empty()).then_some(figure)
    }

    /// Messages go through one server, and by TCP.
    pub fn check_can_send(&self) -> anyhow::Result<()> {
        let Setup { tls, is_websocket, others, .. } = &self.setup;
        ensure!(tls.is_none(), "--tls is for connect, idle and storm");
        ensure!(!is_websocket, "--websocket is for connect, idle and storm");
        ensure!(others.is_empty(), "--others is for connect, idle and storm");
        Ok(())
    }
}

/// Refuses what could hurt somebody.
pub fn check_local(target: SocketAddr, allow_remote: bool) -> anyhow::Result<()> {
    ensure!(
        allow_remote || target.ip().is_loopback(),
        "{target} is not this machine: load on somebody else's server is an attack; with its owner's consent, say --allow-remote"
    );
    Ok(())
}

/// How many processes so many devices need.
fn processes(devices: usize, asked: Option<usize>) -> anyhow::Result<usize> {
    let room = process::open_files_max()?.saturating_sub(FILES_SPARE).max(1);
    let needed = devices.div_ceil(room);
    let processes = asked.unwrap_or(needed).max(1);
    ensure!(
        processes >= needed,
        "{devices} devices need {needed} processes, because one may open {room} connections (ulimit -n): give --processes {needed}"
    );
    Ok(processes)
}

/// Local addresses if nobody says: the ports that still wait from an earlier run are then no hindrance.
const SOURCES: u8 = 200;
const PROBE_WITHIN: Duration = Duration::from_secs(5);
/// Open files of a process besides the connections.
const FILES_SPARE: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_a_list_or_a_count() {
        assert_eq!("2".parse::<Sources>().unwrap(), Sources::loopback(2));
        let two: Sources = "127.0.0.2,127.0.0.9".parse().unwrap();
        assert_eq!(two.0.len(), 2);
        assert!("0".parse::<Sources>().is_err() && "here".parse::<Sources>().is_err());
    }
}
