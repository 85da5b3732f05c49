//! A PostgreSQL of the test's own, from Debian's package: a new cluster in a temporary folder,
//! reached by a socket there.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};

use super::DEADLINE;

/// A running (or stopped) server; dropping it ends it and removes its folder.
pub struct Postgres {
    home: tempfile::TempDir,
    user: User,
    child: Option<Child>,
}

/// As whom the server runs: it refuses to be root.
#[derive(Clone, Copy)]
enum User {
    Ours,
    Other { uid: u32, gid: u32 },
}

impl Postgres {
    /// Makes a cluster and starts its server.
    pub fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let user = User::for_server();
        if let User::Other { uid, gid } = user {
            chown(home.path(), Some(uid), Some(gid)).unwrap();
        }
        let mut initdb = user.command(&program("initdb"));
        initdb.args(["--auth=trust", "--username=carillon", "--encoding=UTF8", "--no-sync"]);
        // Not the order of bytes: what needs that must not lean on the locale.
        initdb.args(["--locale=C.UTF-8", "-D"]).arg(home.path().join("data"));
        let output = initdb.output().unwrap();
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let mut postgres = Self { home, user, child: None };
        postgres.restart();
        postgres
    }

    /// Starts the server again.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = fs::File::create(self.home.path().join("log")).unwrap();
        let mut server = self.user.command(&program("postgres"));
        server.arg("-D").arg(self.home.path().join("data")).arg("-k").arg(self.home.path());
        server.args(["-c", "listen_addresses=", "-c", "max_connections=40"]);
        server.stdout(Stdio::null()).stderr(log);
        self.child = Some(server.spawn().unwrap());
        let until = Instant::now() + DEADLINE;
        while !self.is_ready() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "no server: {}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn is_ready(&self) -> bool {
        let mut ready = Command::new(program("pg_isready"));
        ready.arg("-q").arg("-h").arg(self.home.path()).arg("-U").arg("carillon");
        ready.args(["-d", "postgres"]).status().unwrap().success()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// Stops it as an operator does.
    pub fn stop(&mut self) {
        self.end(Signal::INT);
    }

    /// Stops it without a word to anybody: it recovers from its log at the next start.
    pub fn crash(&mut self) {
        self.end(Signal::QUIT);
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else { return };
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).unwrap();
        child.wait().unwrap();
    }

    /// How to reach it.
    pub fn url(&self) -> String {
        format!("host={} user=carillon dbname=postgres", self.home.path().display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
    }
}

impl User {
    fn for_server() -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self::Ours;
        }
        let id = |flag| {
            let output = Command::new("id").args([flag, "postgres"]).output().unwrap();
            assert!(output.status.success(), "no user `postgres` here: run scripts/tools");
            String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
        };
        Self::Other { uid: id("-u"), gid: id("-g") }
    }

    fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
        command.current_dir("/").env_clear();
        command
    }
}

/// Debian keeps the server's programs beside each other, by version, and off the PATH.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin").join(name));
    let is_program = |file: &PathBuf| {
        file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    found.filter(is_program).max().unwrap_or_else(|| {
        panic!("PostgreSQL's `{name}` is not on this machine: run scripts/tools, or apt-get install postgresql")
    })
}
