//! However a dialogue is cut into segments, the answers are the same.
//!
//! A recorded dialogue is said packet by packet once. Then it is said again and again,
//! cut at every byte boundary, byte by byte, at random places, and glued; every time a
//! fresh device that is in the same state says it. What must not depend on the cut are the
//! answers in their order and the deliveries in theirs.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::time::Duration;

use carillon_wire::idl;
use serde_json::json;
use support::{Device, Node};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use wirelab::{
    bytes::{PINGREQ, PUBACK, Publish, Version, ack, disconnect, subscribe, unsubscribe},
    frames,
    lab::devices,
    rng::Rng,
    seen::{self, Seen},
    transport::let_it_read,
    wire::device_connect,
};

use Version::{V5, V311};

/// Packets of one device. A phase needs answers of the one before.
type Dialogue = Vec<Vec<Vec<u8>>>;

/// What the gateway said in one phase.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answers {
    control: Vec<Seen>,
    pushes: Vec<Seen>,
}

impl Answers {
    fn add(&mut self, mut seen: Seen, device: &Device) {
        match &mut seen {
            Seen::Publish(push) => {
                // What differs between devices and moments.
                push.properties.numbers.remove(&0x02);
                if push.topic == "down" {
                    let anonymous = format!("{:?}", without_names(frames::decode(push), device));
                    push.payload = anonymous.into_bytes();
                }
                self.pushes.push(seen);
            }
            _ => self.control.push(seen),
        }
    }

    fn count(&self) -> usize {
        self.control.len() + self.pushes.len()
    }
}

fn without_names(mut down: idl::Down, device: &Device) -> idl::Down {
    let hide = |regid: &mut String| {
        assert_eq!(*regid, device.regid, "a frame of another device");
        *regid = "regid".to_owned();
    };
    if let Some(deltas) = &mut down.deltas {
        hide(&mut deltas.regid);
        for delta in &mut deltas.deltas {
            delta.tag.clear();
            delta.entries.iter_mut().for_each(|entry| entry.time_ms = None);
        }
    }
    if let Some(resumed) = &mut down.resumed {
        resumed.regids.iter_mut().flatten().for_each(hide);
    }
    down
}

/// How the bytes of each phase are written.
#[derive(Clone, Debug)]
enum Cut {
    Packets,
    Glued,
    At(usize, usize),
    Bytes,
    Random(u64),
}

impl Cut {
    /// The segments of a phase.
    fn of(&self, phase: usize, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let all = packets.concat();
        let at = |at: usize| vec![all[..at].to_vec(), all[at..].to_vec()];
        match self {
            Self::Packets => packets.to_vec(),
            Self::At(which, byte) if *which == phase => at(*byte),
            Self::Glued | Self::At(..) => vec![all],
            Self::Bytes => all.iter().map(|byte| vec![*byte]).collect(),
            Self::Random(seed) => {
                let (mut rng, mut left, mut parts) = (Rng::new(*seed), &all[..], Vec::new());
                while !left.is_empty() {
                    let (part, rest) = left.split_at((1 + rng.below(40)).min(left.len()));
                    parts.push(part.to_vec());
                    left = rest;
                }
                parts
            }
        }
    }
}

/// Says a dialogue. Without `wanted` a quiet moment ends each phase; with it, as many
/// answers as it has. At the end the gateway closes and nothing more may have come.
async fn play(
    node: &Node,
    device: &Device,
    version: Version,
    (dialogue, cut): (&Dialogue, &Cut),
    wanted: Option<&[Answers]>,
) -> Vec<Answers> {
    let mut stream = TcpStream::connect(node.listen().mqtt).await.expect("the gateway listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let (mut unread, mut said) = (Vec::new(), Vec::new());
    for (at, packets) in dialogue.iter().enumerate() {
        for (number, segment) in cut.of(at, packets).iter().enumerate() {
            if number > 0 {
                let_it_read().await;
            }
            stream.write_all(segment).await.expect("the gateway is there");
        }
        let mut answers = Answers::default();
        let count = wanted.map(|wanted| wanted[at].count());
        while count.is_none_or(|count| answers.count() < count) {
            let wait = if count.is_some() { DEADLINE } else { QUIET };
            match timeout(wait, next(&mut stream, version, &mut unread)).await {
                Ok(Seen::Closed) if at + 1 == dialogue.len() => break,
                Ok(seen) => answers.add(seen, device),
                Err(_) if count.is_none() => break,
                Err(_) => panic!("{cut:?}, phase {at}: no more than {answers:?}"),
            }
        }
        said.push(answers);
    }
    let end = timeout(DEADLINE, next(&mut stream, version, &mut unread)).await;
    assert_eq!(end.ok(), Some(Seen::Closed), "{cut:?}: more than was wanted");
    said
}

async fn next(stream: &mut TcpStream, version: Version, unread: &mut Vec<u8>) -> Seen {
    loop {
        if let Some(seen) = seen::take(version, unread) {
            return seen;
        }
        match stream.read_buf(unread).await {
            Ok(0) | Err(_) => return Seen::Closed,
            Ok(_) => {}
        }
    }
}

/// Plays every cut of a dialogue and compares.
async fn cut_everywhere(name: &str, version: Version, dialogue: fn(&Device) -> Dialogue) {
    let node = Node::start().await;
    let mut rng = Rng::seeded(name, 20_251_120);
    let mut cuts = vec![Cut::Packets, Cut::Glued, Cut::Bytes];
    let sample = dialogue(&node.create_device().await);
    for (phase, packets) in sample.iter().enumerate() {
        cuts.extend((1..packets.concat().len()).map(|byte| Cut::At(phase, byte)));
    }
    cuts.extend((0..30).map(|_| Cut::Random(rng.next())));
    let devices = devices(&node, cuts.len() + 2).await;
    for number in 0..3 {
        let regids: Vec<_> = devices.iter().map(|device| &device.regid).collect();
        node.send(json!({"regids": regids}), json!(number)).await;
    }
    let whole = (&dialogue(&devices[0]), &Cut::Packets);
    let wanted = play(&node, &devices[0], version, whole, None).await;
    assert!(wanted.iter().map(|answers| answers.pushes.len()).sum::<usize>() >= 3);
    for (device, cut) in devices[1..].iter().zip(&cuts) {
        let said = (&dialogue(device), cut);
        let answers = play(&node, device, version, said, Some(&wanted)).await;
        assert_eq!(answers, wanted, "{cut:?}");
    }
    for device in &devices[..=cuts.len()] {
        node.wait_until_acknowledged(&device.regid).await;
    }
    println!("count: {name}: {} cuts, all answered as the whole", cuts.len());

    // Without waiting for any answer: PUBACKs run ahead and are ignored, DISCONNECT is left out.
    let last = devices.last().expect("two more than cuts");
    let mut packets = dialogue(last).concat();
    packets.pop();
    let mut stream = TcpStream::connect(node.listen().mqtt).await.expect("the gateway listens");
    stream.write_all(&packets.concat()).await.expect("the gateway is there");
    let (mut unread, mut answers) = (Vec::new(), Answers::default());
    let all = wanted.iter().flat_map(|answers| answers.control.iter().cloned());
    let all: Vec<Seen> = all.collect();
    let pushes: Vec<Seen> = wanted.into_iter().flat_map(|answers| answers.pushes).collect();
    while answers.control.len() < all.len() || messages(&answers.pushes) != messages(&pushes) {
        let seen = timeout(DEADLINE, next(&mut stream, version, &mut unread)).await;
        answers.add(seen.unwrap_or_else(|_| panic!("no more than {answers:?}")), last);
    }
    assert_eq!(answers.control, all, "all glued");
}

/// The texts of all deliveries, however they are grouped.
fn messages(pushes: &[Seen]) -> Vec<String> {
    let mut texts = Vec::new();
    for seen in pushes {
        let Seen::Publish(push) = seen else { continue };
        let text = push.text();
        match push.topic.as_str() {
            "down" => {
                let entries = text.split("payload: Some([").skip(1);
                texts.extend(entries.filter_map(|rest| rest.split(']').next()).map(str::to_owned));
            }
            _ => texts.push(text),
        }
    }
    texts
}

fn plain(version: Version, device: &Device) -> Dialogue {
    let connect = device_connect(device, version).persistent(0);
    // Long enough that the packet's length takes two bytes.
    let long = "x/".repeat(60);
    let filters: &[(&[u8], u8)] =
        &[(b"push", 1), (b"topic/x", 0), (long.as_bytes(), 1), (b"#", 1), (b"topic/y", 2)];
    let mut second = vec![ack(PUBACK, 2), ack(PUBACK, 1), PINGREQ.to_vec(), ack(PUBACK, 3)];
    if version == V5 {
        second.push(Publish::new(V5, "elsewhere", "hello").qos(1, 300).bytes());
        second.push(Publish::new(V5, "elsewhere", "hello").bytes());
    }
    second.push(unsubscribe(version, 1_000, &[b"topic/x", b"nothing"]));
    second.push(PINGREQ.to_vec());
    let first = vec![connect.bytes(), subscribe(version, 700, filters), PINGREQ.to_vec()];
    vec![first, second, vec![PINGREQ.to_vec(), disconnect()]]
}

fn framed(device: &Device) -> Dialogue {
    let up = |id: u16, up: &idl::Up| Publish::new(V5, "up", frames::encode(up)).qos(1, id).bytes();
    let connect = device_connect(device, V5);
    let subscribe = idl::Up { request: Some(7), ..frames::subscribe(&device.regid, &["x", "y"]) };
    let register = idl::Up { request: Some(-1), ..frames::register("demo", "wrong") };
    let bind = frames::bind("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "alice", Some("token"));
    vec![
        vec![connect.bytes(), up(1, &frames::resume(0))],
        vec![ack(PUBACK, 1), up(2, &frames::positions(vec![]))],
        vec![ack(PUBACK, 2), ack(PUBACK, 3), up(3, &subscribe)],
        vec![
            ack(PUBACK, 4),
            ack(PUBACK, 5),
            up(4, &register),
            PINGREQ.to_vec(),
            up(5, &bind),
            Publish::new(V5, "up", [0xFF; 140]).qos(1, 6).bytes(),
            up(6, &frames::nothing()),
            Publish::new(V5, "elsewhere", "hello").qos(1, 7).bytes(),
            wirelab::bytes::subscribe(V5, 8, &[(b"down", 1), (b"push", 1)]),
        ],
        vec![ack(PUBACK, 6), ack(PUBACK, 7), ack(PUBACK, 8), ack(PUBACK, 9), disconnect()],
    ]
}

#[tokio::test]
async fn a_plain_dialogue_of_3_1_1_may_be_cut_anywhere() {
    cut_everywhere("plain 3.1.1", V311, |device| plain(V311, device)).await;
}

#[tokio::test]
async fn a_plain_dialogue_of_5_may_be_cut_anywhere() {
    cut_everywhere("plain 5", V5, |device| plain(V5, device)).await;
}

#[tokio::test]
async fn a_dialogue_of_frames_may_be_cut_anywhere() {
    cut_everywhere("frames 5", V5, framed).await;
}

/// For an answer that must come.
const DEADLINE: Duration = Duration::from_secs(30);
/// After this the recording goes on: long enough for any answer of an idle node. A record that
/// missed one makes the comparisons fail, never pass.
const QUIET: Duration = Duration::from_millis(700);
