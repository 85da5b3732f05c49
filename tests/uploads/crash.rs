//! The node dies between an upload's append and its answer, and at every other step of its way:
//! sent again, each edit has been done once.

use carillon::base::crash_point;
use carillon_wire::{
    frame::{self, FRAMES_TYPE, put_frame, split_frames},
    idl::{self, EditOutcome, ResultCode, Up},
};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::json;

use crate::{
    support::{AppCredentials, Device, Node, Options},
    wirelab::frames::{encode, nothing},
};

const APP: &str = "kept";
/// Edits of one upload.
const EDITS: i64 = 3;
/// How often the node dies at each point, unless `CARILLON_ROUNDS` says.
const ROUNDS: usize = 1;

async fn app_and_device(node: &Node) -> Device {
    let made = node.cli(&["app", "create", APP, "--alias-policy", "server"]).await;
    let app: AppCredentials = serde_json::from_str(&made).unwrap();
    let path = format!("/v1/apps/{APP}/collections/notes");
    let declared = node.call(Method::PUT, &path, Some(json!({"rule": "newest"}))).await;
    assert!(declared.status.is_success(), "{}", declared.body);
    let body = json!({"app_id": APP, "app_key": app.app_key, "register": true});
    let made = node.call(Method::POST, "/v1/devices", Some(body)).await;
    let device: Device = serde_json::from_value(made.body).unwrap();
    let path = format!("/v1/apps/{APP}/registrations/{}/aliases/ann", device.regid);
    assert_eq!(node.call(Method::PUT, &path, None).await.status, 204);
    device
}

/// The answers to one frame, unless the node dies meanwhile.
async fn exchange(node: &Node, device: &Device, up: &Up) -> Option<Vec<idl::Down>> {
    let mut body = Vec::new();
    put_frame(&encode(up), &mut body);
    let request = node
        .https_client()
        .post(format!("{}/v1/frames", node.https_url()))
        .basic_auth(&device.device_id, Some(&device.secret))
        .header(CONTENT_TYPE, FRAMES_TYPE)
        .body(body);
    let answer = request.send().await.ok()?;
    assert_eq!(answer.status().as_u16(), 200);
    let downs = split_frames(answer.bytes().await.ok()?).unwrap();
    Some(downs.iter().map(|down| frame::decode_down(down).unwrap()).collect())
}

/// The edits from this number on.
fn upload(device: &Device, first: i64) -> Up {
    let edit = |cseq: i64| idl::Edit {
        cseq,
        collection: "notes".to_owned(),
        key: format!("n{cseq}"),
        value: Some(cseq.to_string().into_bytes()),
        format: None,
        base_seq: 0,
        clock: cseq << 16,
    };
    let edits = (first..first + EDITS).map(edit).collect();
    let (regid, alias_name) = (device.regid.clone(), "ann".to_owned());
    Up { upload: Some(idl::Upload { regid, alias_name, epoch: 1, edits }), ..nothing() }
}

fn result(downs: &[idl::Down]) -> &idl::Result {
    downs.iter().find_map(|down| down.result.as_ref()).expect("a result")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s20_a_node_that_dies_around_an_upload_has_done_it_once() {
    let mut node = Node::start().await;
    let device = app_and_device(&node).await;
    let points = [
        "writer::before_commit",
        "writer::before_sync",
        "writer::after_sync",
        "shard::before_publish",
        crash_point::OF_UPLOADS[0],
    ];
    let rounds = std::env::var("CARILLON_ROUNDS").ok().and_then(|text| text.parse().ok());
    let mut next = 1;
    for round in 0..rounds.unwrap_or(ROUNDS) {
        for point in points {
            node.kill9();
            // What a start writes must not be what dies.
            let skipped = if point.starts_with("uploads") { round } else { round + 10 };
            let env = vec![("FAILPOINTS".to_owned(), format!("{point}={skipped}*off->return"))];
            node.restart_with(Options { env, ..Options::default() }).await;
            while let Some(downs) = exchange(&node, &device, &upload(&device, next)).await {
                all_are_there(result(&downs), point);
                next += EDITS;
            }
            node.wait_for_exit().await;
            assert!(node.log().contains(&format!("crash point {point}\n")), "{point}");
            node.restart_with(Options::default()).await;
            let again = exchange(&node, &device, &upload(&device, next)).await.expect("it lives");
            all_are_there(result(&again), point);
            let once_more = exchange(&node, &device, &upload(&device, next)).await.unwrap();
            assert_eq!(result(&again), result(&once_more));
            next += EDITS;
        }
    }
    println!("{} edits were made", next - 1);
}

/// One device, no conflict: every edit is one entry, in their order.
fn all_are_there(result: &idl::Result, point: &str) {
    assert_eq!(result.code, ResultCode::OK);
    let edits = result.edits.as_ref().unwrap();
    assert_eq!(edits.len() as i64, EDITS);
    for edit in edits {
        let wanted = (EditOutcome::APPLIED, Some(edit.cseq));
        assert_eq!((edit.outcome, edit.seq), wanted, "{point}");
    }
}
