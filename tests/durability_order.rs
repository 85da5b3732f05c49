//! What is answered or pushed was on the disk before: shown by the node's system calls,
//! since a kill keeps the page cache and so proves nothing about syncs.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod ledger;
mod support;

use ledger::{
    Dice,
    fleet::{Door, Fleet, Plan},
    trace::{self, Known, Order},
};
use support::{DEADLINE, Node, Options, poll_until};

/// Messages of one run.
const MESSAGES: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_answered_or_pushed_before_it_is_synced() {
    let order = order_of_a_run("").await;
    println!("order: {} answers, {} pushes, {} syncs", order.answers, order.pushes, order.syncs);
    assert!(order.violations.is_empty(), "{:#?}", order.violations);
    assert!(order.answers >= MESSAGES && order.pushes >= MESSAGES && order.syncs > 0, "{order:?}");
    assert_eq!(order.unread, 0, "every answer was held against the rule");
}

/// The check can fail: a node that was told not to sync breaks the rule with each message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_sync_is_found_out() {
    let order = order_of_a_run("[store]\nfsync = false\n").await;
    println!("order without syncs: {} violations", order.violations.len());
    assert_eq!(order.violations.len(), order.answers + order.pushes, "{:?}", order.violations);
    assert!(order.answers >= MESSAGES && order.pushes >= MESSAGES, "{order:?}");
}

/// Sends to all kinds of targets with a node under strace, and judges what it did.
async fn order_of_a_run(config: &str) -> Order {
    let mut dice = Dice::of_this_run("order");
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("trace");
    let command = format!("exec {} \"$@\"", trace::command(&file, ""));
    let wrapper = ["sh", "-c", &command, "sh"].map(str::to_owned).to_vec();
    let config = Some(config.to_owned());
    let node = Node::start_with(Options { wrapper, config, ..Options::default() }).await;
    let plan =
        Plan { devices: 8, frames: 0, aliases: 6, topics: 4, door: Door::Admin, ..Plan::default() };
    let mut fleet = Fleet::set_up(&node, plan, dice.fork()).await;
    fleet.start_load();
    let enough = async || (fleet.ledger.accepted() >= MESSAGES).then_some(());
    poll_until(DEADLINE, enough).await.expect("enough messages");
    fleet.stop_load().await;
    fleet.settle(&node).await;
    let (mqtt, admin) = (node.listen().mqtt.to_string(), node.listen().admin.to_string());
    let known = Known::of(&fleet.ledger, 0);
    drop(node);
    let calls = trace::read(&trace::whole(&file).await);
    trace::judge(&calls, &known, &mqtt, &admin)
}

#[test]
fn a_trace_is_read_as_strace_writes_it() {
    let text = r#"
7 1.5 write(3</d/0.jnl>, "\0{\"m\":1,\"x\":\"\"}", 15 <unfinished ...>
8 1.6 sendto(9<TCP:[127.0.0.1:80->127.0.0.1:5]>, "HTTP/1.1 202 \r\n\"id\":\"a\"", 9, 0) = 22
7 1.7 <... write resumed>) = 15
7 1.8 fdatasync(3</d/0.jnl>) = -1 EIO (Input/output error) (INJECTED)
7 1.9 +++ exited with 1 +++
"#;
    let calls = trace::read(text);
    let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
    assert_eq!(names, ["write", "sendto", "fdatasync"]);
    assert_eq!((calls[0].begun, calls[0].ended, calls[0].result), (1, 3, 15));
    assert_eq!(calls[0].bytes, b"\0{\"m\":1,\"x\":\"\"}");
    assert_eq!((calls[0].file.as_str(), calls[2].result), ("/d/0.jnl", -1));
    assert_eq!(calls[1].file, "TCP:[127.0.0.1:80->127.0.0.1:5]");
}

/// The same calls in the right and in wrong orders.
#[test]
fn an_answer_or_a_push_before_its_sync_is_a_violation() {
    let write = r#"1 1.0 write(3</d/0.jnl>, "{\"m\":1,}", 8) = 8"#;
    let sync = "1 1.0 fdatasync(3</d/0.jnl>) = 0";
    let failed = "1 1.0 fdatasync(3</d/0.jnl>) = -1 EIO (Input/output error)";
    let answer = r#"2 1.0 sendto(9<TCP:[h:80->h:5]>, "HTTP/1.1 202 \"id\":\"a\"", 9) = 9"#;
    let push = r#"2 1.0 sendto(9<TCP:[h:1883->h:6]>, "0\1{\"m\":1,}", 9) = 9"#;
    let judge = |lines: &[&str], several: bool, first: u64| {
        let known = Known {
            first,
            ids: [("a".to_owned(), 1)].into(),
            several: several.then_some(1).into_iter().collect(),
        };
        trace::judge(&trace::read(&lines.join("\n")), &known, "h:1883", "h:80").violations.len()
    };
    let violations = |lines: &[&str], several: bool| judge(lines, several, 1);
    assert_eq!(violations(&[write, sync, answer, push], false), 0);
    assert_eq!(violations(&[write, answer, sync, push], false), 1);
    assert_eq!(violations(&[write, push, sync, answer], false), 1);
    assert_eq!(violations(&[sync, write, answer, push], false), 2);
    assert_eq!(judge(&[sync, push], false, 2), 0, "found at the start and synced");
    assert_eq!(judge(&[push, sync], false, 2), 1, "found at the start, not synced");
    assert_eq!(violations(&[write, failed, sync, answer, push], false), 2);
    assert_eq!(violations(&[write, sync, answer, push], true), 1, "the record alone is not enough");
    assert_eq!(violations(&[write, sync, answer, write, sync, push], true), 0);
}
