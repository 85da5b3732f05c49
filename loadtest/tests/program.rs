//! The program as people use it, at a small scale: every command against its own bare server or a real gateway.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_carillon-loadtest");

fn loadtest(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().unwrap()
}

/// The JSON that a command prints with `--json -`.
fn result(args: &[&str]) -> Value {
    let output = loadtest(&[args, &["--json", "-"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["kind"], args[0]);
    result
}

fn refused(args: &[&str]) -> String {
    let output = loadtest(args);
    assert!(!output.status.success(), "{args:?} should have been refused");
    String::from_utf8(output.stderr).unwrap()
}

/// A child that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

/// A bare server and its address.
fn bare(kind: &str) -> (Running, String) {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", kind]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let mut addr = String::new();
    BufReader::new(running.0.stdout.as_mut().unwrap()).read_line(&mut addr).unwrap();
    (running, addr.trim().to_owned())
}

/// The gateway's program, beside this one. A build of this package alone has not made it.
fn gateway_program() -> PathBuf {
    let program = Path::new(PROGRAM).with_file_name("carillon");
    if !program.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "carillon", "--bin", "carillon"]);
        let folder = program.parent().unwrap();
        if folder.ends_with("release") {
            build.arg("--release");
        }
        build.arg("--target-dir").arg(folder.parent().unwrap());
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert!(build.status().unwrap().success());
    }
    program
}

/// A gateway with some device accounts.
struct Gateway {
    _running: Running,
    dir: tempfile::TempDir,
    pid: String,
    mqtt: String,
    mqtts: String,
    ws: String,
    https: String,
    secret: String,
}

impl Gateway {
    fn start(devices: usize) -> Self {
        let program = gateway_program();
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (mqtt, mqtts, ws, https) = (free(), free(), free(), free());
        let mut serve = Command::new(&program);
        serve.arg("serve").arg("--data").arg(&data).args(["--mqtt", &mqtt, "--mqtts", &mqtts]);
        serve.args(["--https", &https, "--ws", &ws, "--admin", "127.0.0.1:0"]);
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = serve.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut running = Running(child);
        // It prints what to do when it is ready.
        let mut line = String::new();
        let stdout = running.0.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let mut create = Command::new(&program);
        create.args(["device", "create", "--app", "demo", "--count", &devices.to_string()]);
        let created = create.arg("--data").arg(&data).output().unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        fs::write(dir.path().join("devices.csv"), created.stdout).unwrap();
        let app = fs::read(data.join("demo-app.json")).unwrap();
        let app: Value = serde_json::from_slice(&app).unwrap();
        let secret = app["app_secret"].as_str().unwrap().to_owned();
        let (pid, https) = (running.pid(), format!("https://{https}"));
        Self { _running: running, dir, pid, mqtt, mqtts, ws, https, secret }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A command against it.
    fn run(&self, command: &str, target: &str, more: &[&str]) -> Value {
        let (credentials, ca) = (self.path("devices.csv"), self.path("data/tls/ca.pem"));
        let args = [command, "--target", target, "--credentials", &credentials, "--ca", &ca];
        result(&[&args, ["--pid", &self.pid].as_slice(), more].concat())
    }

    fn api(&self) -> [&str; 4] {
        ["--api", &self.https, "--secret", &self.secret]
    }
}

fn is_clean(result: &Value, delivered: u64) {
    let result = &result["result"];
    assert_eq!(result["delivered"], delivered, "{result}");
    for bad in ["lost", "doubled", "strange", "connections_lost"] {
        assert_eq!(result[bad], 0, "{bad}: {result}");
    }
    assert!(result["latency"]["p99_us"].as_u64().unwrap() > 0);
}

#[test]
fn devices_of_a_broker_connect_from_several_processes_and_addresses() {
    let (server, addr) = bare("mio");
    let pid = server.pid();
    let shared = ["--broker", "--devices", "150", "--at-once", "20", "--pid", &pid];
    let args = [["connect", "--target", &addr].as_slice(), &shared].concat();
    let one = result(&args);
    let three = result(&[args.as_slice(), &["--processes", "3", "--source", "3"]].concat());
    for result in [one, three] {
        let result = &result["result"];
        assert_eq!((&result["devices"], &result["refused"]), (&150.into(), &0.into()));
        assert!(result["connects_per_s"].as_f64().unwrap() > 0.0);
        assert!(result["server_cpu_us_per_connect"].is_number());
        assert!(result["connack"]["p50_us"].is_u64() && result["ready"]["max_us"].is_u64());
    }
}

#[test]
fn servers_share_the_devices() {
    let [(one, first), (other, second)] = [bare("mio"), bare("tokio")];
    let pids = format!("{},{}", one.pid(), other.pid());
    let args = ["idle", "--target", &first, "--others", &second, "--broker", "--pid", &pids];
    let result =
        result(&[args.as_slice(), &["--from", "20", "--to", "61", "--settle", "0"]].concat());
    let result = &result["result"];
    assert_eq!(result["connections_lost"], 0);
    assert!(result["bytes_to"].is_u64() && result["ready"]["max_us"].is_u64(), "{result}");
    let args = ["fanout", "--target", &first, "--others", &second, "--broker"];
    assert!(refused(&args).contains("--others is for connect, idle and storm"));
}

#[test]
fn a_storm_of_a_broker_comes_back_whole() {
    let (_server, addr) = bare("tokio");
    for cut in ["rst", "fin", "disconnect"] {
        let args = ["storm", "--target", &addr, "--broker", "--devices", "100", "--cut", cut];
        let result = &result(&args)["result"];
        assert_eq!((&result["back"], &result["failed"]), (&100.into(), &0.into()), "{cut}");
    }
}

#[test]
fn a_server_that_turns_devices_away_is_counted_and_tried_again() {
    // After the one that asks whether anybody is there, ten are closed unheard.
    let (_server, behind) = bare("mio");
    let behind: SocketAddr = behind.parse().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            let Ok(stream) = stream else { return };
            if at <= 10 {
                continue;
            }
            std::thread::spawn(move || answer_from(stream, behind));
        }
    });
    let args = ["connect", "--target", &addr, "--broker", "--devices", "20"];
    let result = &result(&args)["result"];
    assert_eq!((&result["devices"], &result["refused"]), (&20.into(), &10.into()));
}

/// Passes one question and its answer.
fn answer_from(mut device: TcpStream, behind: SocketAddr) {
    let mut server = TcpStream::connect(behind).unwrap();
    let mut room = [0; 1024];
    while let Ok(read) = device.read(&mut room)
        && read > 0
    {
        server.write_all(&room[..read]).unwrap();
        let answered = server.read(&mut room).unwrap_or(0);
        let _ = device.write_all(&room[..answered]);
    }
}

#[test]
fn a_fan_out_of_either_qos_reaches_every_device_once() {
    let (server, addr) = bare("mio");
    let pid = server.pid();
    for qos in ["0", "1"] {
        let args = ["fanout", "--target", &addr, "--broker", "--qos", qos, "--pid", &pid];
        let more = ["--devices", "90", "--messages", "7", "--processes", "2"];
        let result = result(&[args.as_slice(), &more].concat());
        is_clean(&result, 90 * 7);
        assert!(result["result"]["to_last"]["p50_us"].as_u64().unwrap() > 0);
    }
}

/// The bare server sends everything to everybody, which a unicast must notice.
#[test]
fn a_broker_that_doubles_and_misdirects_fails_the_run() {
    let (_server, addr) = bare("mio");
    let args = ["unicast", "--target", &addr, "--broker", "--devices", "10", "--messages", "50"];
    let output = loadtest(&[args.as_slice(), &["--json", "-"]].concat());
    assert!(!output.status.success());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&result["result"]["lost"], &result["result"]["strange"]), (&0.into(), &450.into()));
}

#[test]
fn devices_of_a_gateway_idle_resume_and_come_back() {
    let gateway = Gateway::start(60);
    let idle = ["--frames", "--from", "20", "--to", "60", "--settle", "0.1", "--follow"];
    let idle = gateway.run("idle", &gateway.mqtt, &[&idle, gateway.api().as_slice()].concat());
    assert!(idle["result"]["bytes_per_connection"].is_number());
    assert!(idle["result"]["bytes_after"].as_u64().unwrap() > 0);
    let devices = ["--devices", "60"];
    for more in [["--frames", "--mqtt5"].as_slice(), &["--frames"], &["--mqtt5"]] {
        let connect = gateway.run("connect", &gateway.mqtt, &[&devices, more].concat());
        let result = &connect["result"];
        // The digest that a device computed is the gateway's.
        assert_eq!((&result["devices"], &result["asked_positions"]), (&60.into(), &0.into()));
        let storm = gateway.run("storm", &gateway.mqtt, &[&devices, more].concat());
        assert_eq!(storm["result"]["back"], 60);
    }
}

#[test]
fn tls_uses_session_tickets_only_if_it_may() {
    let gateway = Gateway::start(30);
    let devices = ["--devices", "30", "--at-once", "5", "--tls"];
    let without = gateway.run("connect", &gateway.mqtts, &devices);
    assert_eq!(without["result"]["tls_resumed"], 0);
    let more = [devices.as_slice(), &["--resume-tls"]].concat();
    let with = gateway.run("connect", &gateway.mqtts, &more);
    assert_eq!(with["result"]["tls_resumed"], 30);
}

#[test]
fn devices_come_over_websocket_too() {
    let gateway = Gateway::start(30);
    for more in [["--frames"].as_slice(), &[]] {
        let args = [&["--devices", "30", "--websocket"], more].concat();
        let connect = gateway.run("connect", &gateway.ws, &args);
        assert_eq!(connect["result"]["devices"], 30);
        assert_eq!(gateway.run("storm", &gateway.ws, &args)["result"]["back"], 30);
    }
}

#[test]
fn messages_of_a_gateway_reach_their_devices_once() {
    let gateway = Gateway::start(50);
    for frames in [["--frames"].as_slice(), &[]] {
        let api = gateway.api();
        let api = api.as_slice();
        let fanout = ["--devices", "50", "--messages", "5", "--processes", "2"];
        let fanout = gateway.run("fanout", &gateway.mqtt, &[&fanout, api, frames].concat());
        is_clean(&fanout, 50 * 5);
        let unicast = ["--devices", "50", "--messages", "1000", "--batch", "20"];
        let unicast = gateway.run("unicast", &gateway.mqtt, &[&unicast, api, frames].concat());
        is_clean(&unicast, 1000);
        let open = ["--devices", "50", "--messages", "100", "--rate", "500"];
        let open = gateway.run("unicast", &gateway.mqtt, &[&open, api, frames].concat());
        is_clean(&open, 100);
    }
}

#[test]
fn broadcasts_end_in_time_and_the_messages_beside_them_arrive_all_the_same() {
    let gateway = Gateway::start(20);
    let lanes = ["--frames", "--devices", "20", "--witnesses", "5", "--messages", "30"];
    let lanes = [lanes.as_slice(), &["--rate", "20"], gateway.api().as_slice()].concat();
    for (within, is_in_time) in [("30", true), ("0.3", false)] {
        let more = [lanes.as_slice(), &["--within", within]].concat();
        let result = &gateway.run("lanes", &gateway.mqtt, &more)["result"];
        assert_eq!((&result["lost"], &result["doubled"]), (&0.into(), &0.into()), "{result}");
        assert!(result["broadcasts"].as_u64() > Some(0), "{result}");
        assert_eq!(result["in_time"].as_u64() == Some(30), is_in_time, "{result}");
    }
}

#[test]
fn the_nat_command_forgets_and_counts() {
    let (_server, addr) = bare("mio");
    let mut command = Command::new(PROGRAM);
    command.args(["nat", "--target", &addr, "--timeout-ms", "30", "--seconds", "2", "--json", "-"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    let nat = line.trim().strip_prefix("connect to ").unwrap();
    let mut device = TcpStream::connect(nat).unwrap();
    // PINGREQ, its answer, and one more when nobody listens any longer.
    device.write_all(&[0xC0, 0]).unwrap();
    device.read_exact(&mut [0; 2]).unwrap();
    std::thread::sleep(Duration::from_millis(40));
    device.write_all(&[0xC0, 0]).unwrap();
    std::thread::scope(|scope| {
        let output = scope.spawn(|| child.wait_with_output().unwrap());
        let output = output.join().unwrap();
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let counts = &result["result"];
        assert_eq!((&counts["flows_opened"], &counts["flows_forgotten"]), (&1.into(), &1.into()));
        assert_eq!((&counts["bytes_passed"], &counts["bytes_dropped"]), (&4.into(), &2.into()));
        let fatal_us = counts["silences_fatal"]["max_us"].as_u64().unwrap();
        assert!(fatal_us >= 30_000, "{counts}");
    });
}

#[test]
fn floors_are_measured_side_by_side() {
    let result =
        result(&["floor", "--devices", "50", "--runs", "1", "--settle", "0.1", "--fanout"]);
    let columns = result["results"].as_array().unwrap();
    let names: Vec<&str> =
        columns.iter().map(|column| column["server"].as_str().unwrap()).collect();
    assert_eq!(names, ["floor-mio", "floor-tokio"]);
    for column in columns {
        assert_eq!(column["note"], Value::Null);
        assert_eq!(column["runs"][0]["storm"]["back"], 50);
    }
    assert_eq!(columns[0]["runs"][0]["fanout"]["delivered"], 50 * 20);
}

#[test]
fn a_comparison_shows_all_that_is_here_and_says_what_is_not() {
    gateway_program();
    let args = ["compare", "--devices", "40", "--runs", "1", "--settle", "0.1", "--unicast"];
    let more = ["--unicast-messages", "200", "--peers", "carillon-tls,flashmq,rumqttd"];
    let timed = ["--latency", "--latency-messages", "100", "--lanes", "--lanes-messages", "20"];
    let result = result(&[args.as_slice(), &more, &timed].concat());
    let columns = result["results"].as_array().unwrap();
    for column in columns.iter().filter(|column| column["server"] != "flashmq") {
        assert_eq!(column["note"], Value::Null, "{column}");
        assert_eq!(column["runs"][0]["connect"]["devices"], 40);
        assert_eq!(column["runs"][0]["unicast"]["delivered"], 200);
        assert_eq!(column["runs"][0]["unicast"]["lost"], 0);
        assert_eq!(column["runs"][0]["latency"]["unicast"]["delivered"], 100);
        let lanes = &column["runs"][0]["lanes"];
        assert!(lanes["beside"]["p99_us"].as_u64() > Some(0), "{lanes}");
        assert_eq!((&lanes["lost"], &lanes["doubled"]), (&0.into(), &0.into()));
    }
    if columns[1]["runs"].as_array().unwrap().is_empty() {
        assert!(columns[1]["note"].as_str().unwrap().contains("not installed"));
    }
}

#[test]
fn devices_fetch_resume_and_upload_until_all_hold_the_same() {
    gateway_program();
    let plan = ["--devices", "2", "--items", "90", "--missed", "70", "--rounds", "1"];
    let result = result(&[["sync", "--edits", "40"].as_slice(), &plan].concat());
    let column = &result["results"][0];
    assert_eq!(column["server"], "carillon");
    assert_eq!(column["changes"]["changes"], 90);
    for (kind, items) in [("whole", 90), ("resume", 70), ("upload", 40)] {
        let cost = &column[kind];
        assert_eq!((&cost["times"], &cost["items_each"]), (&2.into(), &items.into()));
        assert!(cost["seconds_median"].as_f64().unwrap() > 0.0);
        // Packed and without names they take at least their random bytes.
        let moved = if kind == "upload" { &cost["bytes_up"] } else { &cost["bytes_down"] };
        assert!(moved.as_f64().unwrap() > f64::from(items) * 100.0, "{kind}: {cost}");
    }
}

#[test]
fn mistakes_are_told_before_anything_starts() {
    let broker = |more: &[&str]| {
        let args = ["connect", "--target", "127.0.0.1:1", "--broker", "--devices", "10"];
        refused(&[args.as_slice(), more].concat())
    };
    let remote = refused(&["connect", "--target", "192.0.2.1:1883", "--broker"]);
    assert!(remote.contains("not this machine") && remote.contains("--allow-remote"), "{remote}");
    let remote = refused(&["nat", "--target", "192.0.2.1:1883", "--timeout-ms", "9"]);
    assert!(remote.contains("--allow-remote"), "{remote}");
    let neither = refused(&["storm", "--target", "127.0.0.1:1"]);
    assert!(neither.contains("--credentials") && neither.contains("--broker"), "{neither}");
    assert!(broker(&["--frames"]).contains("--credentials"));
    assert!(broker(&["--tls"]).contains("--ca"));
    assert!(broker(&["--resume-tls"]).contains("--tls"));
    assert!(broker(&["--websocket", "--tls"]).contains("--websocket"));
    assert!(broker(&["--source", "300"]).contains("count"));
    assert!(broker(&["--devices", "0"]).contains("cannot be used multiple times"));
    assert!(broker(&["--pid", "4000000"]).contains("no such process"));
    let many = ["connect", "--target", "127.0.0.1:1", "--broker", "--devices", "9000000"];
    let many = refused(&[many.as_slice(), &["--processes", "1"]].concat());
    assert!(many.contains("--processes"), "{many}");
    let slope = ["idle", "--target", "127.0.0.1:1", "--broker", "--from", "9", "--to", "9"];
    assert!(refused(&slope).contains("--from 9 must be less than --to 9"));
    let modules = ["sync", "--peer", "couch", "--modules", "/nowhere"];
    assert!(refused(&modules).contains("scripts/couch"));
    assert!(refused(&["sync", "--items", "9", "--missed", "10"]).contains("--missed"));
    let nobody = broker(&[]);
    assert!(nobody.contains("nothing answers on 127.0.0.1:1"), "{nobody}");
}
