//! `POST /v1/frames` of a running node: a device that has HTTPS and nothing else.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use std::time::Duration;

use bytes::Bytes;
use carillon_wire::{
    digest::{Digest, kind_byte, position_hash},
    frame::{self, FRAMES_TYPE, put_frame, split_frames},
    idl::{self, Down, Up},
};
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::json;
use support::{Device, Node, Options};
use wirelab::frames::{Framed, bind, encode, positions, resume};

/// One request.
async fn post(
    client: &reqwest::Client,
    node: &Node,
    device: &Device,
    ups: &[Up],
) -> reqwest::Response {
    let mut body = Vec::new();
    ups.iter().for_each(|up| put_frame(&encode(up), &mut body));
    let request = client
        .post(format!("{}/v1/frames", node.https_url()))
        .basic_auth(&device.device_id, Some(&device.secret))
        .header(CONTENT_TYPE, FRAMES_TYPE)
        .body(body);
    request.send().await.expect("an answer")
}

async fn exchange(client: &reqwest::Client, node: &Node, device: &Device, ups: &[Up]) -> Vec<Down> {
    let answer = post(client, node, device, ups).await;
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(answer.headers()[CONTENT_TYPE], FRAMES_TYPE);
    let downs: Vec<Bytes> = split_frames(answer.bytes().await.unwrap()).unwrap();
    downs.iter().map(|down| frame::decode_down(down).unwrap()).collect()
}

/// The end of each queue in these frames, and the texts in them.
fn applied(downs: &[Down]) -> (Vec<idl::Position>, Vec<String>) {
    let deltas = downs.iter().filter_map(|down| down.deltas.as_ref());
    let deltas: Vec<_> = deltas.flat_map(|frame| &frame.deltas).collect();
    let ends = deltas.iter().map(|delta| idl::Position {
        queue: delta.queue.clone(),
        epoch: delta.epoch,
        seq: delta.to_seq,
        tag: Some(delta.tag.clone()),
    });
    let payloads = deltas.iter().flat_map(|delta| &delta.entries).filter_map(|e| e.payload.clone());
    (ends.collect(), payloads.map(|bytes| String::from_utf8(bytes).unwrap()).collect())
}

#[tokio::test]
async fn s23_a_device_uses_https_alone_and_a_connection_goes_on_where_it_is() {
    let mut node = Node::start().await;
    let (client, device) = (node.https_client(), node.create_device().await);
    let downs = exchange(&client, &node, &device, &[positions(vec![])]).await;
    let (mut held, _) = applied(&downs);
    assert_eq!(held.len(), 2, "own queue and all: {downs:?}");
    for n in 0..3 {
        node.send(json!({"regids": [device.regid]}), json!(n)).await;
    }
    let stated = |held: &[idl::Position]| {
        let (regid, positions) = (device.regid.clone(), held.to_vec());
        self::positions(vec![idl::RegistrationPositions { regid, positions, gathered: None }])
    };
    let downs = exchange(&client, &node, &device, &[stated(&held)]).await;
    let (moved, texts) = applied(&downs);
    assert_eq!(texts, ["0", "1", "2"]);
    held.retain(|old| moved.iter().all(|new| new.queue != old.queue));
    held.extend(moved);
    let downs = exchange(&client, &node, &device, &[stated(&held)]).await;
    assert_eq!(applied(&downs).1.len(), 0, "{downs:?}");

    // What was acknowledged by that is kept over an orderly end; a connection's digest fits.
    assert!(node.terminate().await.success());
    node.restart().await;
    node.send(json!({"regids": [device.regid]}), json!(3)).await;
    let mut digest = Digest::new();
    for at in &held {
        let (kind, name) = (kind_byte(at.queue.kind).unwrap(), at.queue.name.as_deref());
        let (epoch, seq) = (at.epoch as u32, at.seq as u64);
        digest.add(position_hash(&device.regid, kind, name.unwrap_or(""), epoch, seq));
    }
    let mut framed = Framed::mute(&node, &device).await;
    framed.say(&resume(digest.to_idl())).await;
    let (id, down) = framed.down().await;
    assert!(down.resumed.is_some(), "{down:?}");
    framed.wire.ack(id).await;
    assert_eq!(framed.messages(1).await, [(device.regid.clone(), "3".to_owned())]);
    // And the live connection hears what a request changes.
    let answers = exchange(&client, &node, &device, &[bind(&device.regid, "ann", None)]).await;
    assert_eq!(answers[0].result.as_ref().unwrap().code, idl::ResultCode::OK);
    node.send(json!({"aliases": ["ann"]}), json!("to ann")).await;
    assert_eq!(framed.messages(1).await[0].1, "\"to ann\"");
}

/// What a connection is given that states where it stands and acknowledges nothing, as bytes.
async fn given(node: &Node, device: &Device, stated: &Up) -> Vec<Vec<u8>> {
    let mut framed = Framed::mute(node, device).await;
    framed.say(stated).await;
    let (id, down) = framed.down().await;
    assert!(down.resumed.is_some(), "{down:?}");
    framed.wire.ack(id).await;
    let (mut frames, mut messages) = (Vec::new(), 0);
    while messages < MESSAGES {
        let (_, down) = framed.down().await;
        messages += applied(std::slice::from_ref(&down)).1.len();
        frames.push(encoded(&down));
    }
    frames
}

fn encoded(down: &Down) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_down(down, &mut bytes).unwrap();
    bytes
}

/// To the device and to its alias: several frames of each.
const MESSAGES: usize = 200;

#[tokio::test]
async fn s9_the_same_resume_gives_the_same_bytes_while_the_node_lives_and_after_it_was_killed() {
    let config = Some("[edge]\nframe_entries_max = 64\n".to_owned());
    let mut node = Node::start_with(Options { config, ..Options::default() }).await;
    let device = node.create_device().await;
    node.bind(&device.regid, "ann").await;
    let downs = exchange(&node.https_client(), &node, &device, &[positions(vec![])]).await;
    let (mut held, _) = applied(&downs);
    let entries = downs.iter().filter_map(|down| down.deltas.as_ref());
    let entries = entries.flat_map(|frame| &frame.deltas).flat_map(|delta| &delta.entries);
    held.extend(entries.filter_map(|entry| entry.follow.as_ref()).map(|follow| idl::Position {
        queue: follow.queue.clone(),
        epoch: follow.epoch,
        seq: follow.since,
        tag: None,
    }));
    assert_eq!(held.len(), 3, "own queue, all and the alias: {downs:?}");
    let regid = device.regid.clone();
    let stated = idl::RegistrationPositions { regid, positions: held, gathered: None };
    let stated = positions(vec![stated]);
    let to_own = (0..MESSAGES - 70).map(|n| (json!({"regids": [device.regid]}), n));
    for (target, n) in
        to_own.chain((MESSAGES - 70..MESSAGES).map(|n| (json!({"aliases": ["ann"]}), n)))
    {
        node.send(target, json!(n)).await;
    }
    let mut first = None;
    for is_killed in [false, false, true] {
        if is_killed {
            node.kill9();
            node.restart().await;
        }
        let client = node.https_client();
        let answer = post(&client, &node, &device, std::slice::from_ref(&stated)).await;
        let both = (answer.bytes().await.unwrap(), given(&node, &device, &stated).await);
        let downs = split_frames(both.0.clone()).unwrap();
        let downs: Vec<_> = downs.iter().map(|down| frame::decode_down(down).unwrap()).collect();
        assert_eq!(applied(&downs).1.len(), MESSAGES);
        assert_eq!(first.get_or_insert_with(|| both.clone()), &both, "killed: {is_killed}");
    }
}

#[tokio::test]
async fn refusals_say_what_to_do_and_wrong_credentials_are_soon_not_looked_at() {
    let config = "[edge.gate]\nunlimited_networks = []\nauth_failures_per_address_per_minute = 5\n\
                  [api]\nrequest_timeout_ms = 1000\n";
    let node =
        Node::start_with(Options { config: Some(config.to_owned()), ..Options::default() }).await;
    let (client, device) = (node.https_client(), node.create_device().await);
    assert_eq!(post(&client, &node, &device, &[resume(1)]).await.status().as_u16(), 200);
    let wrong = Device { secret: "wrong".to_owned(), ..device.clone() };
    for _ in 0..5 {
        let refused = post(&client, &node, &wrong, &[resume(1)]).await;
        assert_eq!(refused.status().as_u16(), 401);
        assert!(refused.headers()[WWW_AUTHENTICATE].to_str().unwrap().starts_with("Basic"));
    }
    let refused = post(&client, &node, &device, &[resume(1)]).await;
    assert_eq!(refused.status().as_u16(), 429);
    let after: u64 = refused.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=120).contains(&after), "{after}");
    assert!(
        node.metrics()
            .await
            .contains("carillon_refused_connections_total{reason=\"address_auth\"} 1")
    );
}

#[tokio::test]
async fn slow_bodies_hold_no_call_and_no_connection_for_long() {
    let config = "[api]\nrequest_timeout_ms = 500\ncalls_max = 1\n";
    let node =
        Node::start_with(Options { config: Some(config.to_owned()), ..Options::default() }).await;
    let (client, device) = (node.https_client(), node.create_device().await);
    let never = || {
        let body = stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
        let request = client
            .post(format!("{}/v1/frames", node.https_url()))
            .basic_auth(&device.device_id, Some(&device.secret))
            .header(CONTENT_TYPE, FRAMES_TYPE)
            .body(reqwest::Body::wrap(StreamBody::new(body)));
        tokio::spawn(tokio::time::timeout(Duration::from_secs(30), request.send()))
    };
    let slow: Vec<_> = (0..8).map(|_| never()).collect();
    assert_eq!(post(&client, &node, &device, &[resume(1)]).await.status().as_u16(), 200);
    for one in slow {
        let answer = one.await.unwrap().expect("an end").expect("an answer");
        assert_eq!(answer.status().as_u16(), 408);
    }
}
