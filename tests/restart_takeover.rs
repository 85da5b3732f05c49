//! A new process takes over from a running one: nobody is refused, nothing is lost, and
//! what was acknowledged does not come again.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod ledger;
mod support;

use std::{
    fs,
    net::{SocketAddr, TcpListener as StdListener},
    process::{Command, Stdio},
    time::Duration,
};

use ledger::{
    Dice,
    fleet::{Fleet, Plan},
    number_from_env,
};
use support::{DEADLINE, Node, Options, poll_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// Devices of one run of the gate; the slow set asks for more.
const DEVICES: u64 = 300;

fn plan(devices: usize) -> Plan {
    let sends_per_s = number_from_env("CARILLON_RATE").unwrap_or(200);
    Plan {
        devices,
        frames: (devices / 20).min(100),
        aliases: devices.div_ceil(2).max(16),
        topics: devices.div_ceil(20).max(6),
        senders: (sends_per_s as usize / 25).clamp(6, 40),
        sends_per_s,
        broadcasts: devices <= 1_000,
        ..Plan::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i15_a_restart_under_load_refuses_nobody_and_loses_nothing() {
    let devices = number_from_env("CARILLON_DEVICES").unwrap_or(DEVICES) as usize;
    let mut dice = Dice::of_this_run("restart");
    let mut node = Node::start().await;
    let mut fleet = Fleet::set_up(&node, plan(devices), dice.fork()).await;
    fleet.start_load();
    let rounds = number_from_env("CARILLON_RESTARTS").unwrap_or(2);
    for round in 1..=rounds {
        until_connected(&node, devices * 6 / 10).await;
        let accepted = fleet.ledger.accepted();
        let more = accepted + devices.div_ceil(3);
        let more = async || (fleet.ledger.accepted() > more).then_some(());
        poll_until(DEADLINE, more).await.expect("the load runs");
        // A reload under load must cost nobody anything either.
        node.signal("HUP");
        let reloads = async || {
            let done = node.log().matches("the configuration was read again").count();
            (done as u64 == round).then_some(())
        };
        poll_until(DEADLINE, reloads).await.expect("a reload");
        let ended = node.take_over().await;
        assert!(ended.success(), "the old process, at restart {round}: {ended}");
    }
    fleet.stop_load().await;
    let report = fleet.settle(&node).await;
    println!("restart: {report}, unanswered {}", report.attempts - report.accepted);
    report_gaps(&fleet, &node);
    assert_eq!(report.unreached, 0, "connections that were refused");
    let sent_away = devices as u64 * rounds / 3;
    assert!(report.sent_away as u64 >= sent_away, "devices were told: {}", report.sent_away);
    drop(fleet.end().await);
    assert_eq!(node.terminate().await.code(), Some(0));
    let log = node.log();
    let ended = log.matches("connection ended").count();
    assert_eq!(log.matches("close_reason=").count(), ended);
    assert_eq!(log.matches("close_reason=\"aborted\"").count(), 0);
}

async fn until_connected(node: &Node, count: usize) {
    let connected = async || {
        let metrics = node.metrics().await;
        let line = metrics.lines().find_map(|line| line.strip_prefix("carillon_connections "))?;
        (line.parse::<f64>().ok()? >= count as f64).then_some(())
    };
    poll_until(DEADLINE, connected).await.expect("the devices come");
}

/// Figures, for whoever reads them; nothing here can fail the test.
fn report_gaps(fleet: &Fleet, node: &Node) {
    let gaps = fleet.ledger.gaps();
    let at = |part: usize| gaps.get((gaps.len() * part / 100).min(gaps.len().saturating_sub(1)));
    println!(
        "restart: {} devices were away, p50 {:?}, p99 {:?}, longest {:?}",
        gaps.len(),
        at(50),
        at(99),
        gaps.last(),
    );
    let log = node.log();
    let waited: Vec<&str> =
        log.split_whitespace().filter(|word| word.starts_with("waited_ms=")).collect();
    println!("restart: nobody was served for {waited:?}");
}

/// A device's connection: it is there as long as nobody closes it.
async fn is_open(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    tokio::time::timeout(Duration::from_millis(1), stream.read(&mut byte)).await.is_err()
}

#[tokio::test]
async fn a_successor_that_cannot_start_changes_nothing() {
    let node = Node::start().await;
    let mut stream = TcpStream::connect(node.listen().mqtt).await.unwrap();
    let bad = node.data().join("bad.toml");
    fs::write(&bad, "[listen]\ncertificate = \"none.pem\"\nprivate_key = \"none.pem\"\n").unwrap();
    let (said, status) = node.second(&["--takeover", "--config", bad.to_str().unwrap()]).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("none.pem"), "{said}");
    let (said, status) = node.second(&[]).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("--takeover"), "{said}");
    let device = node.create_device().await;
    node.send(serde_json::json!({"regids": [device.regid]}), "still here".into()).await;
    assert!(is_open(&mut stream).await);
    assert!(node.log().contains("this node goes on"));
}

#[tokio::test]
async fn a_takeover_without_anybody_to_take_over_from_is_a_start() {
    let args = vec!["--takeover".to_owned()];
    let mut node = Node::start_with(Options { args, ..Options::default() }).await;
    node.create_device().await;
    assert!(node.terminate().await.success());
}

#[tokio::test]
async fn a_successor_may_listen_elsewhere() {
    let mut node = Node::start().await;
    let (old, kept) = (node.listen().mqtt, node.listen().mqtts);
    let moved = SocketAddr::from(([127, 0, 0, 2], old.port()));
    node.listen_at(moved);
    assert!(node.take_over().await.success());
    assert_eq!((node.listen().mqtt, node.listen().mqtts), (moved, kept));
    assert!(TcpStream::connect(moved).await.is_ok());
    assert!(TcpStream::connect(kept).await.is_ok());
    assert!(TcpStream::connect(old).await.is_err());
}

#[tokio::test]
async fn a_successor_that_dies_is_told_loudly() {
    let mut node = Node::start().await;
    let mut fake = UnixStream::connect(node.data().join("handover.sock")).await.unwrap();
    fake.write_all(b"carillon handover 1\n").await.unwrap();
    let mut answer = [0; 5];
    // The sockets come with it, and are closed unseen.
    fake.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"take\n");
    fake.write_all(b"go\n").await.unwrap();
    drop(fake);
    assert_eq!(node.wait_for_exit().await.code(), Some(1));
    assert!(node.log().contains("the process that took over has ended"), "{}", node.log());
}

#[tokio::test]
async fn who_speaks_another_language_gets_no_sockets() {
    let node = Node::start().await;
    let path = node.data().join("handover.sock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let mut fake = UnixStream::connect(path).await.unwrap();
    fake.write_all(b"carillon handover 9\n").await.unwrap();
    assert_eq!(fake.read(&mut [0; 8]).await.unwrap_or(0), 0);
    node.create_device().await;
}

#[tokio::test]
async fn listeners_of_systemd_are_taken_by_their_address() {
    let passed = StdListener::bind("127.0.0.1:0").unwrap();
    let addr = passed.local_addr().unwrap();
    // Accepted by the node, though it came before the node did.
    let mut early = TcpStream::connect(addr).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let flags = format!(
        "serve --data {} --mqtt {addr} --mqtts off --ws off --https 127.0.0.1:0 --admin off",
        home.path().join("data").display()
    );
    let script = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    let mut node = Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_carillon")])
        .args(flags.split(' '))
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(passed)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Not MQTT: the node hangs up, which only who accepts can do.
    early.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let end = tokio::time::timeout(DEADLINE, early.read(&mut [0; 8])).await;
    node.kill().unwrap();
    node.wait().unwrap();
    assert_eq!(end.expect("an end in time").unwrap_or(0), 0);
}
