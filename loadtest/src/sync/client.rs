//! The devices' side of a run: a process that does one order after the other, and a box between it and the server that
//! counts bytes.
//!
//! An order is a line of JSON on its stdin, and so is the answer on its stdout. The gateway's devices are
//! [`SyncDevice`](super::device::SyncDevice), PouchDB's are `peers/couch/client.js`.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::corpus::Item;
use crate::nat::NatBox;
use crate::process;

/// What a device is to do. What it needs is opened before, and the time counts from then on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Order {
    /// Fetch everything that it misses; the gateway's are there when they have come up to `until` and hold this item.
    Pull { device: usize, until: u64, item: Item },
    /// Change items while offline.
    Edit { device: usize, edits: Vec<Item> },
    /// Upload what was changed.
    Push { device: usize },
    /// Say how many items it holds, and the value of this one.
    Show { device: usize, collection: String, key: String },
}

/// What became of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    pub seconds: f64,
    /// How many items it was about, if that is known.
    #[serde(default)]
    pub items: Option<u64>,
    #[serde(default)]
    pub value: Option<Value>,
}

/// See the module.
pub struct Client {
    child: Child,
    pid: u32,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    nat: NatBox,
}

/// What both sides have spent so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub server_cpu_s: f64,
    pub client_cpu_s: f64,
    pub bytes_up: u64,
    pub bytes_down: u64,
}

impl Client {
    /// `command` makes the process for the address that leads to `target`.
    pub fn start(
        target: SocketAddr,
        command: impl FnOnce(SocketAddr) -> anyhow::Result<std::process::Command>,
    ) -> anyhow::Result<Self> {
        let nat = NatBox::start(target, NEVER).context("cannot listen")?;
        let mut command = Command::from(command(nat.addr())?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start the devices")?;
        let pid = child.id().context("the devices have ended")?;
        let orders = child.stdin.take().context("no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        Ok(Self { child, pid, orders, answers, nat })
    }

    pub async fn ask(&mut self, order: &Order) -> anyhow::Result<Answer> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders.write_all(&line).await.context("the devices take no order")?;
        let answer = self.answers.next_line().await?;
        let answer = answer.context("the devices have ended: what they said is above")?;
        serde_json::from_str(&answer).with_context(|| answer)
    }

    pub fn spent(&self, server: u32) -> anyhow::Result<Spent> {
        let [bytes_up, bytes_down] = self.nat.bytes_by_sender();
        let server_cpu_s = process::cpu_seconds(server)?;
        let client_cpu_s = process::cpu_seconds(self.pid)?;
        Ok(Spent { server_cpu_s, client_cpu_s, bytes_up, bytes_down })
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.orders);
        let status = self.child.wait().await?;
        ensure!(status.success(), "the devices ended with {status}");
        Ok(())
    }
}

const NEVER: Duration = Duration::from_secs(3600);
