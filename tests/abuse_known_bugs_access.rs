//! What brought other brokers down, part three: who may see what, and what stays behind.
//!
//! A test for each class of bugs that MQTT brokers had, with the known cases as its cases.
//! After each the node is well and somebody else is served.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;
mod wirelab;

use carillon_wire::idl::ResultCode;
use reqwest::Method;
use serde_json::json;
use support::{APP, Device, Options};
use wirelab::{
    bytes::{
        Connect, PINGREQ, Publish, VERSIONS, Version, Will, number4, packet, session_expiry,
        subscribe,
    },
    frames::{self, Framed},
    lab::{Patient, devices_of, open_files, revoke, send_numbers, try_send},
    seen::{Push, Seen},
    transport::{self, Cut},
    wire::{Wire, device_connect},
};

use Version::{V5, V311};

fn texts(pushes: &[Push]) -> Vec<String> {
    pushes.iter().map(Push::text).collect()
}

/// mosquitto CVE-2017-7650: a client id or user name that is a pattern.
#[tokio::test]
async fn an_identity_that_is_a_pattern_is_nobody() {
    let mut patient = Patient::new().await;
    let other = patient.node.create_device().await;
    let (own, foreign) = (patient.device.clone(), other);
    let strange = [
        "#",
        "+",
        "+/+",
        "#/",
        "$share/g/x",
        "$SYS",
        "/",
        "..",
        "%00",
        "*",
        "*\u{1}",
        "admin",
        "' OR 1=1 --",
        "\u{FEFF}",
        "\u{202E}abc",
        "é",
    ];
    let upper = own.device_id.to_uppercase();
    let longer = format!("{}a", own.device_id);
    let spaced = format!(" {}", own.device_id);
    let pattern = format!("{}#", &own.device_id[..15]);
    let ids = strange.iter().copied().chain([&upper[..], &longer, &spaced, &pattern, &own.regid]);
    for version in VERSIONS {
        let refused = if version == V5 { 0x86 } else { 4 };
        for id in ids.clone() {
            for (client_id, user) in [(id, id), (id, &own.device_id), (&own.device_id, id)] {
                let mut connect = Connect::new(version, client_id, &own.secret);
                connect.user = Some(user.into());
                let (_, connack) = Wire::greet(patient.node.listen().mqtt, &connect).await;
                assert_eq!(connack.code, refused, "{client_id:?} {user:?}");
            }
        }
        for (id, secret) in [(&own.device_id, &foreign.secret), (&foreign.device_id, &own.secret)] {
            let connect = Connect::new(version, id, secret);
            let (_, connack) = Wire::greet(patient.node.listen().mqtt, &connect).await;
            assert_eq!(connack.code, refused, "a secret opens its own device only");
        }
    }
    patient.is_well().await;
}

/// dojot 2529: only the first filter was checked; FlashMQ: the check saw `$share/…`; EMQX docs 3884;
/// mosquitto 3671 and 3672: checked before it was rewritten.
#[tokio::test]
async fn each_filter_is_judged_as_what_it_delivers() {
    let mut patient = Patient::new().await;
    patient.node.create_app("other").await;
    let spy = &patient.device;
    let victim = devices_of(&patient.node, "other", 1).await.remove(0);
    let near = patient.node.create_device().await;
    let named = [
        format!("push/{}", victim.regid),
        format!("topic/other/{}", victim.regid),
        format!("topic/{}", near.regid),
        format!("topic/own:{}", near.regid),
    ];
    let foreign = [
        "push/other",
        "topic/other/news",
        "$share/g/push/other",
        "$share/g/topic/other/news",
        "$queue/push",
        "$stream/push",
        "$exclusive/push",
        "$delayed/1/push",
        "$local/push",
        "push/../other",
        "push/demo/../other",
        "topic/demo/../other/news",
        "//push",
        "PUSH",
        "push/#",
        "+/other",
        "topic/+/news",
        "$SYS/#",
        "#",
        "push\u{2044}other",
    ];
    for version in VERSIONS {
        let mut wire = patient.clean(version).await;
        let named = named.iter().map(String::as_str);
        let mut filters = vec!["topic/mine"];
        filters.extend(
            foreign.iter().copied().chain(named.filter(|name| !name.starts_with("topic/o"))),
        );
        filters.push("topic/mine");
        let codes = wire.subscribe(&filters, 1).await;
        for (filter, code) in filters.iter().zip(&codes) {
            // A topic may have any name, also that of a registration: it is another queue.
            let is_own_topic = filter.starts_with("topic/") && filter.matches('/').count() == 1;
            assert_eq!(*code < 0x80, is_own_topic, "{filter}: {code:#04x}");
        }
        for (app, regid) in [("other", &victim.regid), (APP, &near.regid)] {
            patient.node.send_for(app, json!({"regids": [regid]}), json!("secret")).await;
        }
        patient.node.send_for("other", json!({"topic": "news"}), json!("secret")).await;
        patient.node.send_for("other", json!({"topic": "mine"}), json!("secret")).await;
        patient.node.send_for("other", json!({"all": true}), json!("secret")).await;
        patient.node.send(json!({"topic": "news"}), json!("secret")).await;
        patient.node.send(json!({"topic": "mine"}), json!("mine")).await;
        assert_eq!(texts(&wire.take(1).await), ["\"mine\""]);
        assert_eq!(wire.settle().await, [], "{} hears what is not its own", spy.regid);
    }
    patient.is_well().await;
}

/// mosquitto CVE-2021-34434, CVE-2018-12546; EMQX 10433; queued messages that are not judged again on resume.
#[tokio::test]
async fn what_was_revoked_leaves_nothing_behind() {
    let mut patient = Patient::new().await;
    for version in VERSIONS {
        let device = patient.node.create_device().await;
        let connect = device_connect(&device, version).persistent(600);
        let mut wire = Wire::connect(&patient.node, &connect).await;
        assert_eq!(wire.subscribe(&["push", "topic/x"], 1).await, [1, 1]);
        patient.node.bind(&device.regid, "ann").await;
        patient.node.subscribe(&device.regid, "sport").await;
        send_all(&patient, &device, "before").await;
        assert_eq!(wire.settled_pushes().await.len(), 5);
        drop(wire);
        patient.node.wait_until_online(&device.regid, false).await;
        for topic in ["x", "sport"] {
            patient.node.unsubscribe(&device.regid, topic).await;
        }
        patient.node.unbind(&device.regid, "ann").await;
        send_all(&patient, &device, "after").await;
        let mut wire = Wire::connect(&patient.node, &connect).await;
        let mut got = texts(&wire.settled_pushes().await);
        got.sort();
        let wanted = ["after all", "after own", "before all", "before own"];
        assert_eq!(got, wanted.map(|text| json!(text).to_string()), "{version:?}");

        // Connected while it is revoked: it ends. Away: it comes back to nothing.
        revoke(&patient.node, APP, &device.regid).await;
        wire.must_end(0x87).await;
        let mut wire = Wire::connect(&patient.node, &connect).await;
        let sent =
            try_send(&patient.node, APP, json!({"regids": [device.regid]}), json!("x")).await;
        assert_eq!(sent["code"], "not_found", "{sent}");
        assert_eq!(wire.settle().await, []);
        let refused = if version == V5 { 0x87 } else { 0x80 };
        assert_eq!(wire.subscribe(&["push", "topic/x"], 1).await, [refused; 2]);
        assert_eq!(wire.settle().await, []);
    }
    revoked_in_frames(&patient).await;
    patient.is_well().await;
}

/// One message by each way to a device.
async fn send_all(patient: &Patient, device: &Device, word: &str) {
    for (name, target) in [
        ("own", json!({"regids": [device.regid]})),
        ("alias", json!({"aliases": ["ann"]})),
        ("topic", json!({"topic": "x"})),
        ("sport", json!({"topic": "sport"})),
        ("all", json!({"all": true})),
    ] {
        try_send(&patient.node, APP, target, json!(format!("{word} {name}"))).await;
    }
}

async fn revoked_in_frames(patient: &Patient) {
    let device = patient.node.create_device().await;
    let mut framed = Framed::connect(&patient.node, &device).await;
    send_numbers(&patient.node, &device.regid, 0..3).await;
    revoke(&patient.node, APP, &device.regid).await;
    loop {
        let (id, down) = framed.down().await;
        framed.wire.ack(id).await;
        if let Some(ended) = down.ended {
            assert_eq!(ended.regid, device.regid);
            break;
        }
    }
    for up in [
        frames::subscribe(&device.regid, &["x"]),
        frames::bind(&device.regid, "ann", None),
        frames::unregister(&device.regid),
    ] {
        assert_eq!(framed.ask(up).await.code, ResultCode::NOT_FOUND);
    }
    try_send(&patient.node, APP, json!({"all": true}), json!("gone")).await;
    assert_eq!(framed.wire.settle().await, []);
    let app_key = &patient.node.app().app_key;
    let again = framed.ask(frames::register(APP, app_key)).await;
    assert_eq!(again.code, ResultCode::OK);
    assert_ne!(again.regid, Some(device.regid.clone()), "a new registration has a new name");
}

/// EMQX 8978; mosquitto 2.0.16: a Will goes where its sender must not; one that is sent or lost at a takeover.
#[tokio::test]
async fn wills_are_taken_and_go_nowhere() {
    let mut patient = Patient::new().await;
    let listener = patient.node.create_device().await;
    let mut ears = Wire::clean(&patient.node, &listener, V5).await;
    assert_eq!(ears.subscribe(&["push", "topic/news"], 1).await, [1, 1]);
    let register = frames::encode(&frames::unregister(&listener.regid));
    let topics =
        ["topic/news", "push", "push/demo", "up", "down", "$CONTROL/dynamic-security/v1", "all"];
    for version in VERSIONS {
        for topic in topics {
            for qos in 0..=2 {
                let properties = if version == V5 { number4(0x18, 0) } else { Vec::new() };
                let will = Will {
                    topic: topic.into(),
                    payload: register.clone(),
                    qos,
                    is_retained: qos == 1,
                    properties,
                };
                let connect =
                    Connect { will: Some(will), ..device_connect(&patient.device, version) };
                let broken = Wire::connect(&patient.node, &connect).await;
                drop(broken);
                let mut older = Wire::connect(&patient.node, &connect).await;
                let mut newer = Wire::connect(&patient.node, &connect).await;
                older.must_end(0x8E).await;
                newer.send([0xC1, 0]).await;
                newer.must_end(0x81).await;
            }
        }
    }
    patient.until_gone_but(2).await;
    assert_eq!(ears.settle().await, []);
    patient.node.send(json!({"topic": "news"}), json!("news")).await;
    assert_eq!(texts(&ears.take(1).await), ["\"news\""]);
    patient.is_well().await;
}

/// sol 17: the old connection stays and gets the other's messages.
#[tokio::test]
async fn the_old_connection_neither_gets_nor_acknowledges_anything() {
    let mut patient = Patient::new().await;
    for version in VERSIONS {
        let device = patient.node.create_device().await;
        let connect = device_connect(&device, version).persistent(600);
        let mut older = Wire::connect(&patient.node, &connect).await;
        assert_eq!(older.subscribe(&["push"], 1).await, [1]);
        let mut newer = Wire::connect(&patient.node, &connect).await;
        send_numbers(&patient.node, &device.regid, 0..5).await;
        let mut open = Vec::new();
        while open.len() < 5 {
            open.push(newer.push().await);
        }
        for push in &open {
            older.ack(push.id).await;
        }
        older.must_end(0x8E).await;
        drop(newer);
        patient.node.wait_until_online(&device.regid, false).await;
        let mut back = Wire::connect(&patient.node, &connect).await;
        let again = back.take(5).await;
        assert_eq!(texts(&again), texts(&open), "the old one acknowledged them");
    }
    patient.is_well().await;
}

/// tinyMQTT CVE-2025-56352, sol CVE-2025-63235: CONNACK says no, and the socket stays.
#[tokio::test]
async fn a_refused_connection_is_closed_and_nothing_behind_it_is_read() {
    let mut patient = Patient::new().await;
    let good = || device_connect(&patient.device, V5);
    let refused = [
        (Connect::new(V5, &patient.device.device_id, "wrong").bytes(), Some(0x86)),
        (Connect::new(V311, &patient.device.device_id, "wrong").bytes(), Some(4)),
        (Connect { client_id: Vec::new(), ..good() }.bytes(), Some(0x85)),
        (good().with(wirelab::bytes::auth_method("x")).bytes(), Some(0x8C)),
        (packet(0x10, b"\0\x04MQTT\x09\x02\0\0\0\x01x"), Some(1)),
        (packet(0x10, b"\0\x04MQTT\x05\x03\0\0\0\0\x01x"), Some(0x81)),
        (PINGREQ.to_vec(), None),
    ];
    let behind = [
        subscribe(V5, 1, &[(b"push", 1)]),
        Publish::new(V5, "up", frames::encode(&frames::resume(0))).qos(1, 1).bytes(),
        good().bytes(),
        PINGREQ.to_vec(),
    ];
    let before = open_files(&patient.node);
    let mut open = Vec::new();
    for _ in 0..20 {
        for (bytes, code) in &refused {
            let mut wire = patient.open(if *code == Some(4) { V311 } else { V5 }).await;
            wire.send([&bytes[..], &behind.concat()].concat()).await;
            // What was not read may cut the answer off; nothing else may come.
            match (wire.until_closed().await.as_slice(), code) {
                ([Seen::ConnAck(connack)], Some(code)) => assert_eq!(connack.code, *code),
                ([], _) => {}
                (other, code) => panic!("{code:?}: {other:?}"),
            }
            open.push(wire);
        }
    }
    patient.until_gone().await;
    patient.until_files(before + 3).await;
    drop(open);
    assert_eq!(patient.node.registration(&patient.device.regid).await["online"], false);
    patient.is_well().await;
}

/// mosquitto CVE-2018-20145 and its WebSocket listener; CVE-2017-7652: without files, security falls back.
#[tokio::test]
async fn every_door_asks_for_the_secret_also_without_files() {
    const FILES: usize = 600;
    let limit = format!("ulimit -n {FILES}; exec \"$0\" \"$@\"");
    let options = Options {
        wrapper: vec!["bash".into(), "-c".into(), limit],
        config: Some("[edge]\nhandshake_timeout_ms = 8000\n".into()),
        ..Options::default()
    };
    let mut patient = Patient::with_options(options).await;
    doors_are_shut(&patient).await;
    let address = patient.node.listen().mqtt;
    let mut idle = Vec::new();
    for _ in 0..FILES {
        idle.push(tokio::net::TcpStream::connect(address).await.expect("a backlog"));
    }
    let mut turned_away = patient.open(V5).await;
    turned_away.send(device_connect(&patient.device, V5).bytes()).await;
    assert_eq!(turned_away.next().await, Seen::Closed, "there is no file left for it");
    assert!(open_files(&patient.node) < FILES - 300, "none is left for the store");
    for _ in 0..10 {
        // The first message of a day makes files of the store.
        patient.is_well().await;
    }
    for secret in ["", "wrong", "#"] {
        let mut wire = patient.open(V5).await;
        wire.send(Connect::new(V5, &patient.device.device_id, secret).bytes()).await;
        assert!(wire.until_closed().await.len() <= 1);
    }
    drop(idle);
    patient.until_files(150).await;
    doors_are_shut(&patient).await;
    patient.clean(V5).await.disconnect().await;
    let node = &patient.node;
    for token in ["", "wrong", &node.app().app_key] {
        let client = node.https_client();
        let url =
            format!("{}/v1/apps/demo/registrations/{}", node.https_url(), patient.device.regid);
        let answer = client.request(Method::GET, url).bearer_auth(token).send().await;
        assert_eq!(answer.expect("an answer").status(), 401, "{token}");
    }
    patient.is_well().await;
}

/// No door lets a wrong secret in.
async fn doors_are_shut(patient: &Patient) {
    for secret in ["", "wrong"] {
        let connect = Connect::new(V5, &patient.device.device_id, secret);
        let doors = [
            patient.open(V5).await,
            Wire::over(transport::tls(&patient.node).await, V5),
            Wire::over(transport::websocket(&patient.node, Cut::Whole).await, V5),
        ];
        for mut wire in doors {
            wire.send(connect.clone().with(session_expiry(9)).bytes()).await;
            assert_eq!(wire.connack().await.code, 0x86);
            assert_eq!(wire.next().await, Seen::Closed);
        }
    }
}
