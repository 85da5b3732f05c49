//! D2 below the node: it is killed right before and right after system calls of its store,
//! at its first start, at later starts, under load, while a table is written, while a
//! journal is begun and while a day is dropped.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod ledger;
mod support;

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use carillon::{
    base::clock::{Clock, day_of},
    queue::store::{Batch, Space, Store, embedded::EmbeddedStore},
};
use ledger::{
    Dice,
    fleet::Plan,
    number_from_env,
    rounds::{Rounds, signal_of},
    trace,
};
use serde_json::json;
use support::{DEADLINE, Node, Options, how_ended, poll_until, tools};

const SIGKILL: i32 = 9;
const MIB: usize = 1 << 20;

/// Calls whose file is a descriptor; the others name it.
const ON_DESCRIPTORS: &[&str] = &["write", "pwrite64", "fsync", "fdatasync", "ftruncate"];

/// What the store is like before the node starts and dies.
#[derive(Clone, Copy, Debug)]
enum Before {
    Nothing,
    /// Old days are to be dropped.
    OldDays,
    /// Its table in memory is nearly full: it is written soon.
    FullTable,
    /// So is its journal: a new one is begun soon.
    FullJournal,
}

/// A system call to die at.
struct Case {
    before: Before,
    call: &'static str,
    /// Which call of one thread it is.
    number: Range<u64>,
    /// Only calls on the newest journal count.
    on_journal: bool,
    times: u64,
}

const CASES: &[Case] = &[
    // A start opens, syncs and renames on its main thread.
    case(Before::Nothing, "openat", 60..200, 2),
    case(Before::Nothing, "fsync", 1..5, 2),
    case(Before::Nothing, "rename", 1..2, 1),
    case(Before::OldDays, "unlinkat", 1..5, 2),
    // The writer, under load.
    case(Before::Nothing, "fdatasync", 2..300, 3),
    case(Before::Nothing, "pwrite64", 1..3, 2),
    Case { on_journal: true, ..case(Before::Nothing, "write", 1..400, 3) },
    // A table: its writes, its syncs, and the rename that makes it count.
    case(Before::FullTable, "write", 100..400, 1),
    case(Before::FullTable, "fsync", 5..9, 2),
    case(Before::FullTable, "renameat", 1..2, 2),
    // The next journal.
    case(Before::FullJournal, "ftruncate", 1..2, 2),
];

const fn case(before: Before, call: &'static str, number: Range<u64>, times: u64) -> Case {
    Case { before, call, number, on_journal: false, times }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_at_any_system_call_loses_nothing() {
    let factor = number_from_env("CARILLON_KILLS").map_or(1, |kills| kills.div_ceil(20));
    let mut dice = Dice::of_this_run("crash system calls");
    // Large payloads, so that tables and journals fill up.
    let plan = Plan {
        devices: 12,
        frames: 2,
        aliases: 8,
        topics: 4,
        payload_bytes: 2_000..4_000,
        ..Plan::default()
    };
    let mut rounds = Rounds::begin(plan, dice.fork()).await;
    let mut places: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..factor {
        for case in CASES {
            for time in 0..case.times {
                let place = die_at(&mut rounds, case, time % 2 == 0, &mut dice).await;
                *places.entry(place).or_default() += 1;
                rounds.recover().await;
            }
        }
    }
    let longest = rounds.longest_restart;
    let report = rounds.fleet.end().await;
    println!("crash system calls: {places:?}, {report}, longest restart to ready {longest:?}");
}

/// Dies before or after one call, and says at what.
async fn die_at(rounds: &mut Rounds, case: &Case, is_done: bool, dice: &mut Dice) -> String {
    rounds.kill();
    case.before.arrange(&rounds.store());
    let (call, number) = (case.call, dice.of(case.number.clone()));
    let file = rounds.file("trace");
    // An injected error takes the place of the call.
    let fault = if is_done { "" } else { ":error=EIO" };
    let on = match case.on_journal {
        true => format!("-P '{}'", newest_journal(&rounds.store()).display()),
        false => String::new(),
    };
    let inject = format!("-e trace={call} -e inject={call}{fault}:signal=SIGKILL:when={number}");
    let status = rounds.die_by(&format!("{} {on} {inject}", strace(&file))).await;
    let what = format!("{:?}: {call} {number}{fault}", case.before);
    assert_eq!(signal_of(status), SIGKILL, "{what}");
    format!("{call}{} {}", if is_done { "" } else { " undone" }, last_file(&file, call).await)
}

/// The command that runs a node under strace, which becomes nobody's parent. Without
/// `--seccomp-bpf`: with it strace 6.1 injects no signals.
fn strace(trace: &Path) -> String {
    let strace = tools::program("strace");
    format!("'{}' -D -f -y -o '{}'", strace.display(), trace.display())
}

/// The last file that a call was about, without its numbers.
async fn last_file(file: &Path, call: &str) -> String {
    let text = trace::whole(file).await;
    let begun = format!(" {call}(");
    let line = text.lines().rfind(|line| line.contains(&begun)).unwrap_or_default();
    let (open, close) = if ON_DESCRIPTORS.contains(&call) { ('<', '>') } else { ('"', '"') };
    let after = line.split_once(open).map_or(line, |(_, after)| after);
    let path = after.split(close).next().unwrap_or(after);
    let name = path.rsplit('/').next().unwrap_or(path);
    // Temporary files have random names.
    let name = name.split("tmp").next().unwrap_or(name);
    name.trim_matches(|c: char| c.is_ascii_digit() || c == '.').to_owned()
}

impl Before {
    /// Prepares a store that no node holds.
    fn arrange(self, dir: &Path) {
        match self {
            Self::Nothing => {}
            Self::OldDays => {
                let store = open(dir);
                for day in today() - 40..today() - 37 {
                    let mut batch = Batch::default();
                    batch.put(Space::Entries(day), b"key".to_vec(), b"old".to_vec());
                    batch.put(Space::Messages(day), b"key".to_vec(), b"old".to_vec());
                    store.write(&batch).unwrap();
                }
                store.sync().unwrap();
            }
            Self::FullTable => fill(&open(dir), 15 * MIB),
            Self::FullJournal => {
                let journal = newest_journal(dir);
                let store = open(dir);
                // Its size on the disk, not its length: that is set in advance.
                while newest_journal(dir) == journal && used(&journal) < 63 * MIB {
                    fill(&store, MIB);
                }
            }
        }
    }
}

fn open(dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open(dir, MIB as u64).expect("a store that nobody holds")
}

/// Puts so many bytes under today, of a queue that nobody has.
fn fill(store: &EmbeddedStore, bytes: usize) {
    const VALUE: usize = 64 << 10;
    let mut dice = Dice::new(7);
    for number in 0..(bytes / VALUE) as u64 {
        let key = [&[0xff; 20][..], &number.to_be_bytes()].concat();
        let value: Vec<u8> = (0..VALUE / 8).flat_map(|_| dice.next().to_le_bytes()).collect();
        let mut batch = Batch::default();
        batch.put(Space::Entries(today()), key, value);
        store.write(&batch).unwrap();
    }
    store.sync().unwrap();
}

fn used(file: &Path) -> usize {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(file).expect("a file").blocks() as usize * 512
}

fn newest_journal(dir: &Path) -> PathBuf {
    let number = |path: &PathBuf| -> Option<u64> {
        (path.extension()? == "jnl").then(|| path.file_stem()?.to_str()?.parse().ok())?
    };
    let files = fs::read_dir(dir).expect("a store").map(|entry| entry.expect("an entry").path());
    files.filter(|path| number(path).is_some()).max_by_key(number).expect("a journal")
}

fn today() -> u32 {
    day_of(Clock::system().unix_ms())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_that_dies_anywhere_leaves_a_directory_that_starts() {
    let times = number_from_env("CARILLON_KILLS").unwrap_or(8);
    let mut dice = Dice::of_this_run("first start");
    for _ in 0..times {
        let (call, numbers) =
            [("fsync", 1..100), ("rename", 1..7), ("renameat", 1..12), ("write", 1..300)]
                [dice.index(4)]
            .clone();
        let number = dice.of(numbers);
        let home = tempfile::tempdir().unwrap();
        let trace = home.path().join("trace");
        let inject = format!("{call}:signal=SIGKILL:when={number}");
        let command = format!("exec {} -e trace={call} -e inject={inject} \"$@\"", strace(&trace));
        let died = start_and_die(home.path(), &command).await;
        let node = Node::start_at(home, Options::default()).await;
        let device = node.create_device().await;
        node.send(json!({"regids": [device.regid]}), json!(1)).await;
        println!("first start: {call} {number}: {died}");
    }
}

/// Starts a node on a new directory by a shell command, and says how that ended. One that
/// becomes ready first is killed then.
async fn start_and_die(home: &Path, command: &str) -> String {
    let data = home.join("data");
    let mut node = Command::new("sh");
    node.args(["-c", command, "sh", env!("CARGO_BIN_EXE_carillon"), "serve", "--data"]).arg(&data);
    for door in ["--mqtt", "--mqtts", "--ws", "--https", "--admin"] {
        node.args([door, "127.0.0.1:0"]);
    }
    let mut node = node.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell");
    let ended = poll_until(DEADLINE, async || {
        let is_ready = data.join("admin.json").exists();
        node.try_wait().expect("ours").map(how_ended).or(is_ready.then(|| "when ready".into()))
    });
    let ended = ended.await.expect("neither dead nor ready");
    let _ = node.kill();
    let _ = node.wait();
    ended
}
