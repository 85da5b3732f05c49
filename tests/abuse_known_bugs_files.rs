//! What brought other brokers down, part four: files.
//!
//! A damaged file is loud and never looks like an empty one; nobody else may read what is secret;
//! what guards the doors fails closed. mosquitto 2.0.16 and 2.0.23 (crash on a corrupt file), CVE-2017-9868
//! (world-readable), CVE-2018-12550 (an empty file allows all), -12551 (a bad line is a user).
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::json;
use support::{Device, Node, Options};
use wirelab::{
    bytes::{Connect, Version},
    lab::{Patient, send_numbers},
    rng::Rng,
    seen::{Push, Seen},
    wire::{Wire, device_connect},
};

use Version::V5;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode()
        & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own file");
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn nobody_else_may_read_what_is_secret() {
    let home = tempfile::tempdir().expect("a directory");
    // As an operator may have made it.
    let data = home.path().join("data");
    fs::create_dir(&data).expect("a new directory");
    set_mode(&data, 0o755);
    let node = Node::start_at(home, Options::default()).await;
    for secret in ["admin.json", "demo-app.json", "keys", "tls/ca-key.pem", "tls/server.pem"] {
        assert_eq!(mode(&data.join(secret)), 0o600, "{secret}");
    }
    assert_eq!(mode(&data.join("store")), 0o700, "messages and hashes of secrets");
    assert_eq!(mode(&data.join("commit-mark")), 0o600);
    let fresh = Node::start().await;
    assert_eq!(mode(&fresh.data()), 0o700);
    let (lock, socket) = (data.join("lock"), data.join("handover.sock"));
    assert_eq!(mode(&socket), 0o600, "who may connect to it gets the listeners");
    for file in files(&node.data()).into_iter().filter(|file| ![&lock, &socket].contains(&file)) {
        let text = fs::read(&file).expect("our own file");
        let secrets = [&node.app().app_key, &node.app().app_secret, &node.admin().token];
        let holds = |secret: &&String| text.windows(secret.len()).any(|w| w == secret.as_bytes());
        let is_shown = secrets.iter().any(holds);
        let is_handed_out = file.ends_with("admin.json") || file.ends_with("demo-app.json");
        assert_eq!(is_shown, is_handed_out, "{} holds a secret in clear", file.display());
    }
}

/// A node that has ended, with a device and ten messages for it.
async fn ended_node() -> (Node, Device) {
    let mut node = Node::start().await;
    let device = node.create_device().await;
    send_numbers(&node, &device.regid, 0..10).await;
    node.signal("TERM");
    assert!(node.wait_for_exit().await.success());
    (node, device)
}

/// It must not start, and say which file keeps it from that.
async fn refuses(node: &mut Node, file: &str, why: &str) {
    let before = node.log().len();
    node.spawn();
    let status = node.wait_for_exit().await;
    let said = node.log()[before..].to_owned();
    assert!(!status.success(), "{file} {why}: it started");
    assert!(said.contains(file), "{file} {why}: it does not say so: {said}");
    assert!(!said.contains("panicked"), "{said}");
}

async fn gets_all(node: &Node, device: &Device) -> Vec<String> {
    let connect = device_connect(device, V5).persistent(0);
    let mut wire = Wire::connect(node, &connect).await;
    assert_eq!(wire.subscribe(&["push"], 1).await, [1]);
    let pushes: Vec<Push> = wire.settled_pushes().await;
    pushes.iter().map(Push::text).collect()
}

#[tokio::test]
async fn what_guards_the_doors_fails_closed() {
    let (mut node, device) = ended_node().await;
    let data = node.data();
    type Patches = &'static [(&'static str, &'static [u8])];
    let cases: [(&str, Patches); 3] = [
        ("keys", &[("is empty", b""), ("is garbage", b"\xFF\0\n#"), ("is cut", b"abcdefgh")]),
        ("server.pem", &[("is garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n")]),
        ("demo-app.json", &[("is empty", b""), ("is garbage", b"{}")]),
    ];
    for (name, damages) in cases {
        let path = match name {
            "server.pem" => data.join("tls/server.pem"),
            name => data.join(name),
        };
        let whole = fs::read(&path).expect("our own file");
        for (why, bytes) in damages {
            fs::write(&path, bytes).expect("our own file");
            if name == "server.pem" {
                // It can be issued anew; what it guards is the CA's.
                node.restart().await;
                node.kill9();
            } else {
                refuses(&mut node, name, why).await;
            }
        }
        fs::write(&path, whole).expect("our own file");
    }
    set_mode(&data.join("keys"), 0o640);
    refuses(&mut node, "keys", "is readable by the group").await;
    set_mode(&data.join("keys"), 0o600);
    fs::rename(data.join("keys"), data.join("away")).expect("our own file");
    refuses(&mut node, "keys", "is missing").await;
    fs::rename(data.join("away"), data.join("keys")).expect("our own file");
    fs::rename(data.join("store"), data.join("away")).expect("our own directory");
    refuses(&mut node, "store", "is missing").await;
    fs::rename(data.join("away"), data.join("store")).expect("our own directory");
    fs::rename(data.join("tls/ca-key.pem"), data.join("away")).expect("our own file");
    refuses(&mut node, "ca-key.pem", "is missing").await;
    fs::rename(data.join("away"), data.join("tls/ca-key.pem")).expect("our own file");
    fs::write(data.join("commit-mark"), [0xA5; 8_192]).expect("our own file");
    refuses(&mut node, "commit-mark", "is damaged").await;
    fs::remove_file(data.join("commit-mark")).expect("our own file");
    node.restart().await;
    let wrong = Connect::new(V5, &device.device_id, "wrong");
    let (_, connack) = Wire::greet(node.listen().mqtt, &wrong).await;
    assert_eq!(connack.code, 0x86);
    let wanted: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    assert_eq!(gets_all(&node, &device).await, wanted);
}

#[tokio::test]
async fn a_configuration_that_is_wrong_starts_nothing() {
    for (text, why) in [
        ("[edge]\nwindow = 0\n", "edge.window"),
        ("[edge]\nno_such_key = 1\n", "no_such_key"),
        ("[listen]\nmqtt = \"nonsense\"\n", "nonsense"),
        ("[log", "carillon.toml"),
    ] {
        let home = tempfile::tempdir().expect("a directory");
        let file = home.path().join("carillon.toml");
        fs::write(&file, text).expect("our own file");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_carillon"))
            .args(["serve", "--data"])
            .arg(home.path().join("data"))
            .arg("--config")
            .arg(&file)
            .output()
            .expect("the binary runs");
        assert!(!output.status.success(), "{text}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(why), "{text}: {said}");
        assert!(!home.path().join("data/keys").exists(), "it began to start");
    }
}

/// One way to damage a file.
fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) -> &'static str {
    match rng.below(4) {
        0 => {
            bytes.truncate(bytes.len() / 2);
            "is cut in half"
        }
        1 => {
            bytes.clear();
            "is empty"
        }
        2 => {
            let at = rng.below(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
            "has a bit flipped"
        }
        _ => {
            bytes.fill(0);
            "is all zeros"
        }
    }
}

#[tokio::test]
async fn a_damaged_store_is_loud_and_never_looks_empty() {
    let mut rng = Rng::seeded("damaged store", 7);
    let (mut node, device) = ended_node().await;
    // Once more, so that tables are there besides the journal.
    node.restart().await;
    node.signal("TERM");
    assert!(node.wait_for_exit().await.success());
    let backup_home = tempfile::tempdir().expect("a directory");
    let backup = backup_home.path().join("data");
    copy(&node.data(), &backup);
    let store = node.data().join("store");
    let whole: Vec<(PathBuf, Vec<u8>)> = files(&node.data())
        .into_iter()
        .filter(|path| path.starts_with(&store) || path.ends_with("commit-mark"))
        .map(|path| (path.clone(), fs::read(path).expect("our own file")))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    let wanted: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    let (mut refused, mut harmless, mut told) = (0, 0, 0);
    for round in 0..60 {
        let (path, bytes) = &whole[(round * 7) % whole.len()];
        let mut bytes = bytes.clone();
        // A journal is mostly room for what is to come.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
        bytes.truncate(used);
        let what = format!("{} {}", path.display(), damage(&mut bytes, &mut rng));
        fs::write(path, &bytes).expect("our own file");
        let before = node.log().len();
        match starts(&mut node).await {
            false => {
                let said = node.log()[before..].to_owned();
                assert!(said.contains("carillon: "), "{what}: it ends without a word: {said}");
                refused += 1;
            }
            true => {
                let got = (node_knows(&node, &device).await, node.log()[before..].to_owned());
                let is_loud = got.1.contains("ERROR");
                assert!(!got.1.contains("panicked"), "{what}: {}", got.1);
                match got.0 {
                    Some(texts) if texts == wanted => harmless += 1,
                    lost => {
                        assert!(is_loud, "{what}: silently lost, {lost:?} is left\n{}", got.1);
                        told += 1;
                    }
                }
                node.kill9();
            }
        }
        copy(&backup, &node.data());
    }
    println!("count: 60 damages: {refused} refused, {told} told, {harmless} without effect");
    node.restart().await;
    assert_eq!(gets_all(&node, &device).await, wanted);
}

/// Makes a directory the same as another. A journal is a file with a large hole.
fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("our own directory");
    }
    let mut cp = std::process::Command::new("cp");
    let done = cp.args(["-a", "--sparse=always"]).args([from, to]).status();
    assert!(done.expect("cp is there").success());
}

/// Whether the node comes up; if not, it must have said why.
async fn starts(node: &mut Node) -> bool {
    let before = node.log().len();
    node.spawn();
    let admin = node.data().join("admin.json");
    loop {
        if !node.is_running() {
            assert!(!node.wait_for_exit().await.success());
            assert!(node.log().len() > before, "it ends without a word");
            return false;
        }
        if admin.exists() && node.log()[before..].contains("the node is ready") {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// What the device still gets; `None` if it is not known any more.
async fn node_knows(node: &Node, device: &Device) -> Option<Vec<String>> {
    let text = fs::read_to_string(node.data().join("admin.json")).expect("it is ready");
    let admin: support::Admin = serde_json::from_str(&text).expect("an admin file");
    let connect = device_connect(device, V5).persistent(0);
    let (mut wire, connack) = Wire::greet(admin.listen.mqtt, &connect).await;
    if connack.code != 0 {
        return None;
    }
    if wire.subscribe(&["push"], 1).await != [1] {
        return None;
    }
    let pushes = wire.settle().await.into_iter().filter_map(|seen| match seen {
        Seen::Publish(push) => Some(push.text()),
        _ => None,
    });
    Some(pushes.collect())
}

#[tokio::test]
async fn an_app_secret_that_was_rotated_away_opens_nothing() {
    let mut patient = Patient::new().await;
    let node = &patient.node;
    let old = node.app().app_secret.clone();
    let path = "/admin/v1/apps/demo/secrets";
    let made = node.call(reqwest::Method::POST, path, Some(json!({"revoke_older": true}))).await;
    let new = made.body["app_secret"].as_str().expect("a secret").to_owned();
    let client = node.https_client();
    let url = format!("{}/v1/apps/demo/registrations/{}", node.https_url(), patient.device.regid);
    for (secret, status) in [(&old, 401), (&new, 200), (&node.admin().token, 401)] {
        let answer = client.get(&url).bearer_auth(secret).send().await.expect("an answer");
        assert_eq!(answer.status(), status);
    }
    patient.is_well().await;
}
