//! What a newcomer meets: the lines that a start prints work as printed, and
//! mistakes get a message that says what to do.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const DOORS: [&str; 5] = ["--mqtt", "--mqtts", "--ws", "--https", "--admin"];

fn carillon() -> Command {
    Command::new(env!("CARGO_BIN_EXE_carillon"))
}

/// `serve` on free ports.
fn serve(data: &Path) -> Command {
    let mut command = carillon();
    command.arg("serve").arg("--data").arg(data);
    for door in DOORS {
        command.args([door, "127.0.0.1:0"]);
    }
    command
}

/// A running gateway, killed with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a gateway and waits for the three lines that it prints.
fn start(data: &Path) -> (Running, Vec<String>) {
    let child = serve(data).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut running = Running(child);
    let stdout = BufReader::new(running.0.stdout.take().unwrap());
    let lines = stdout.lines().map(Result::unwrap).filter(|line| !line.is_empty());
    // The first line introduces them.
    let lines: Vec<String> = lines.skip(1).take(3).collect();
    (running, lines)
}

fn refused(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert!(!status.success(), "it should have been refused");
    let text = String::from_utf8(stderr).unwrap();
    text.lines().rev().find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[test]
fn the_printed_lines_work_as_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (_running, lines) = start(&dir.path().join("data"));
    let [create, receive, send] = lines.as_slice() else { panic!("three lines: {lines:?}") };
    // As a person would: create, receive in the background, send; then wait for it.
    let received = dir.path().join("received");
    let receive = receive.trim_end_matches('&');
    let script = format!(
        "set -e\n{create}\n{receive} -C 1 -W 20 > {} &\nsub=$!\nfor i in 1 2 3 4 5 6 7 8 9 10; do {send}; echo; sleep 0.2; done\nwait $sub\n",
        received.display()
    );
    let output = Command::new("bash").arg("-c").arg(&script).current_dir(dir.path()).output();
    let output = output.unwrap();
    let shown = format!(
        "{script}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{shown}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"state\":\"accepted\""), "{shown}");
    assert_eq!(fs::read_to_string(received).unwrap().trim(), r#"{"hello":"world"}"#, "{shown}");
}

#[test]
fn a_second_start_keeps_the_demo_app_and_its_lines() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (running, _) = start(&data);
    let first = fs::read_to_string(data.join("demo-app.json")).unwrap();
    drop(running);
    let (_running, lines) = start(&data);
    assert_eq!(fs::read_to_string(data.join("demo-app.json")).unwrap(), first);
    let app: serde_json::Value = serde_json::from_str(&first).unwrap();
    for secret in ["app_key", "app_secret"].map(|name| app[name].as_str().unwrap()) {
        assert!(!lines.iter().any(|line| line.contains(secret)), "what is printed may be logged");
    }
    assert!(lines[2].contains("demo-app.json"));
}

#[test]
fn a_port_in_use_is_named_with_its_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let mut command = carillon();
    command.args(["serve", "--data"]).arg(dir.path().join("data"));
    for door in DOORS {
        command.args([door, if door == "--https" { &addr } else { "127.0.0.1:0" }]);
    }
    let text = refused(&mut command);
    assert!(text.contains(&addr) && text.contains("--https"), "{text}");
    assert!(text.contains("in use"), "{text}");
}

#[test]
fn a_data_directory_has_one_holder() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (_running, _) = start(&data);
    let text = refused(&mut serve(&data));
    assert!(text.contains("another carillon runs on this data directory"), "{text}");
    assert!(data.join("admin.json").exists(), "the holder's file is left alone");
}

#[test]
fn a_wrong_configuration_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wrong.toml");
    fs::write(&file, "[listen]\nmqtt = \"off\"\n\n[edge]\nwindows = 3\n").unwrap();
    let text = refused(carillon().arg("serve").arg("--config").arg(&file));
    assert!(text.contains("wrong.toml:5") && text.contains("windows"), "{text}");
    let text = refused(carillon().arg("serve").args(["--config", "/no/such/file.toml"]));
    assert!(text.contains("/no/such/file.toml"), "{text}");
    let text = refused(carillon().arg("check").arg(&file));
    assert!(text.contains("wrong.toml:5"), "{text}");
    let text = refused(carillon().args(["serve", "--mqtt", "nonsense"]));
    assert!(!text.is_empty());
}

#[test]
fn a_damaged_store_is_loud_and_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    drop(start(&data));
    for file in ["keys", "demo-app.json"] {
        let path = data.join(file);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, b"damaged").unwrap();
        let text = refused(&mut serve(&data));
        assert!(text.contains(file), "{text}");
        fs::write(&path, whole).unwrap();
    }
    drop(start(&data));
}

#[test]
fn the_subcommands_work_on_a_running_node() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (_running, _) = start(&data);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !data.join("admin.json").exists() {
        assert!(Instant::now() < deadline, "the node is ready");
    }
    let run = |args: &[&str]| {
        let output = carillon().args(args).arg("--data").arg(&data).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {shown}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["app", "create", "second"]).contains("app_secret"));
    assert!(run(&["app", "list"]).contains("second"));
    assert!(run(&["app", "rotate-secret", "second"]).contains("app_secret"));
    let csv = run(&["device", "create", "--app", "second", "--count", "3"]);
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!((lines[0], lines.len()), ("device_id,secret,regid", 4));
    let regid = lines[1].split(',').nth(2).unwrap();
    let sent = run(&["send", "--app", "second", "--regid", regid, "{\"n\":1}"]);
    let sent: serde_json::Value = serde_json::from_str(&sent).unwrap();
    let id = sent["id"].as_str().unwrap();
    assert!(run(&["trace", id, "--app", "second"]).contains("queued"));
    assert!(run(&["trace", id, "--app", "second", "--regid", regid]).contains("durable"));
    let text = refused(carillon().args(["app", "list", "--data"]).arg(dir.path()));
    assert!(text.contains("admin.json"), "{text}");
}

#[test]
fn the_demo_tells_its_story_and_finds_nothing_missing() {
    let output = carillon().arg("demo").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{complaint}");
    for part in ["is offline", "SIGKILL", "everything arrived exactly once"] {
        assert!(told.contains(part), "{part} is not in\n{told}");
    }
}
