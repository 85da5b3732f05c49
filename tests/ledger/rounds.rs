//! Rounds of dying and coming back: each starts the node so that it ends at a chosen
//! place, under load, and then without that; the ledger must be clean every time that it is judged.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::ExitStatus,
    time::{Duration, Instant},
};

use super::{
    Dice, Event,
    fleet::{Fleet, Plan},
};
use crate::support::{Node, Options};

/// A node whose next start can be arranged, with a fleet around it.
pub struct Rounds {
    pub node: Node,
    pub fleet: Fleet,
    launcher: Launcher,
    /// Events in the ledger when it was judged last.
    judged: usize,
    /// The longest time from a start to being ready.
    pub longest_restart: Duration,
}

/// A script that becomes the node; it is written anew for each start.
struct Launcher {
    home: tempfile::TempDir,
}

impl Launcher {
    fn script(&self) -> PathBuf {
        self.home.path().join("launch")
    }

    /// `command` ends with the node's own command line.
    fn arrange(&self, command: &str) {
        fs::write(self.script(), format!("exec {command} \"$@\"\n")).expect("a script");
    }
}

impl Rounds {
    /// Starts a node and its fleet.
    pub async fn begin(plan: Plan, mut dice: Dice) -> Self {
        let launcher = Launcher { home: tempfile::tempdir().expect("a temporary directory") };
        launcher.arrange("");
        let wrapper = vec!["sh".to_owned(), launcher.script().display().to_string()];
        let config = plan.callback.is_some().then(|| CALLBACKS.to_owned());
        let node = Node::start_with(Options { wrapper, config, ..Options::default() }).await;
        let fleet = Fleet::set_up(&node, plan, dice.fork()).await;
        Self { node, fleet, launcher, judged: 0, longest_restart: Duration::ZERO }
    }

    /// Kills the node as a crash does.
    pub fn kill(&mut self) {
        self.fleet.ledger.note(Event::Killed);
        self.node.kill9();
        self.fleet.ledger.note(Event::Dead);
    }

    /// Starts the dead node by a command like `env NAME=VALUE`, under load, and waits until
    /// it has ended by itself.
    pub async fn die_by(&mut self, command: &str) -> ExitStatus {
        self.launcher.arrange(command);
        self.node.spawn();
        self.fleet.start_load();
        let status = self.node.wait_for_exit().await;
        self.fleet.ledger.note(Event::Killed);
        self.fleet.ledger.note(Event::Dead);
        status
    }

    /// Starts the dead node as it is, with the load still running, and waits until everything is
    /// acknowledged. Judges the history if it is an eighth longer than last time: who judged it each
    /// time would do nothing else after some hundred rounds.
    pub async fn recover(&mut self) {
        self.launcher.arrange("");
        let since = Instant::now();
        self.node.restart().await;
        self.longest_restart = self.longest_restart.max(since.elapsed());
        self.fleet.ledger.note(Event::Ready);
        self.fleet.stop_load().await;
        self.fleet.wait_until_acknowledged(&self.node).await;
        let noted = self.fleet.ledger.len();
        if noted >= self.judged + self.judged / 8 {
            self.fleet.ledger.judge();
            self.judged = noted;
        }
    }

    /// A file of the test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.launcher.home.path().join(name)
    }

    /// The node's store.
    pub fn store(&self) -> PathBuf {
        self.node.data().join("store")
    }
}

/// A node that calls its neighbours, quickly.
pub const CALLBACKS: &str = "
[callbacks]
allow_private = true
batch_delay_ms = 50
retry_first_ms = 50
";

/// The number of the signal that ended a process.
pub fn signal_of(status: ExitStatus) -> i32 {
    status.signal().unwrap_or_else(|| panic!("it was not killed: {status}"))
}

/// The end of a text behind its first `length` bytes.
pub fn since(text: &str, length: usize) -> &str {
    text.get(length..).unwrap_or_default()
}
