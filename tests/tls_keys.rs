//! The keys of a TLS connection change while it lives: OpenSSL's client against a node, both ways.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::{path::Path, process::Stdio};

use serde_json::json;
use support::{DEADLINE, Node, tools};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use wirelab::{
    bytes::{PINGREQ, PUBACK, Version, ack, subscribe},
    wire::device_connect,
};

/// `openssl s_client`: a letter at the start of a piece of its input is an order, all else goes
/// to the node as it is.
struct OpenSsl {
    child: Child,
    orders: ChildStdin,
    heard: Heard<ChildStdout>,
    told: Heard<ChildStderr>,
}

/// What a stream has said, and how much of it has been looked at.
struct Heard<S> {
    stream: S,
    bytes: Vec<u8>,
    at: usize,
}

impl<S: AsyncRead + Unpin> Heard<S> {
    fn of(stream: Option<S>) -> Self {
        Self { stream: stream.expect("piped"), bytes: Vec::new(), at: 0 }
    }

    /// Reads on until this comes. Gives what came from the last such place to its end.
    async fn until(&mut self, what: &[u8]) -> &[u8] {
        let from = self.at;
        loop {
            let fresh = self.bytes[from..].windows(what.len()).position(|part| part == what);
            if let Some(found) = fresh {
                self.at = from + found + what.len();
                return &self.bytes[from..self.at];
            }
            let read = timeout(DEADLINE, self.stream.read_buf(&mut self.bytes)).await;
            let is_there = read.is_ok_and(|count| count.is_ok_and(|count| count > 0));
            let text = || String::from_utf8_lossy(&self.bytes).into_owned();
            assert!(is_there, "no {} in {}", what.escape_ascii(), text());
        }
    }
}

impl OpenSsl {
    fn connect(node: &Node, protocol: &Path) -> Self {
        let mut child = Command::new(tools::program("openssl"))
            .args(["s_client", "-tls1_3", "-verify_return_error", "-msg"])
            .arg("-connect")
            .arg(node.listen().mqtts.to_string())
            .arg("-CAfile")
            .arg(node.ca_file())
            .arg("-msgfile")
            .arg(protocol)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl starts");
        let orders = child.stdin.take().expect("piped");
        let (heard, told) = (Heard::of(child.stdout.take()), Heard::of(child.stderr.take()));
        Self { child, orders, heard, told }
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.orders.write_all(bytes).await.expect("openssl lives");
    }

    /// Changes the client's keys, and asks the node to change its own if `K`.
    async fn change_keys(&mut self, order: &[u8]) {
        self.say(order).await;
        self.told.until(b"KEYUPDATE").await;
    }

    /// The node answers, and so has read everything before.
    async fn ping(&mut self) {
        self.say(&PINGREQ).await;
        self.heard.until(&[0xD0, 0]).await;
    }

    async fn end(mut self) {
        self.say(b"Q\n").await;
        let ended = timeout(DEADLINE, self.child.wait()).await.expect("an end").expect("a child");
        assert!(ended.success(), "{ended}");
    }
}

#[tokio::test]
async fn a_connection_lives_on_when_openssl_changes_its_keys() {
    let node = Node::start().await;
    let device = node.create_device().await;
    let home = tempfile::tempdir().unwrap();
    let protocol = home.path().join("protocol");
    let mut openssl = OpenSsl::connect(&node, &protocol);
    // Before, it does not read what it is given.
    openssl.heard.until(b"Verify return code: 0 (ok)").await;
    openssl.say(&device_connect(&device, Version::V311).bytes()).await;
    openssl.heard.until(&[0x20, 2, 0, 0]).await;
    openssl.say(&subscribe(Version::V311, 1, &[(b"push", 1)])).await;
    openssl.heard.until(&[0x90, 3, 0, 1, 1]).await;
    let orders: [&[u8]; 5] = [b"K\n", b"k\n", b"K\n", b"K\n", b"k\n"];
    for (round, order) in orders.into_iter().enumerate() {
        openssl.change_keys(order).await;
        openssl.ping().await;
        let text = format!("behind change {round}");
        node.send(json!({"regids": [device.regid]}), json!(text)).await;
        let came = openssl.heard.until(text.as_bytes()).await;
        let id = packet_id(came);
        openssl.say(&ack(PUBACK, id)).await;
        node.wait_until_acknowledged(&device.regid).await;
    }
    openssl.end().await;
    let protocol = std::fs::read_to_string(protocol).unwrap();
    let changes = |way: &str| {
        let told = protocol.lines().filter(|line| line.starts_with(way));
        told.filter(|line| line.contains("KeyUpdate")).count()
    };
    assert_eq!((changes(">>>"), changes("<<<")), (5, 3), "{protocol}");
}

/// Of the PUBLISH at QoS 1 to `push` that is the last in these bytes.
fn packet_id(bytes: &[u8]) -> u16 {
    let topic = b"\x00\x04push";
    let at = bytes.windows(topic.len()).rposition(|part| part == topic).expect("a PUBLISH");
    let id = &bytes[at + topic.len()..];
    u16::from_be_bytes([id[0], id[1]])
}
