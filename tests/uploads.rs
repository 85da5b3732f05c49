//! Edits of devices: each is done once, whatever is sent again, and its maker knows what became
//! of it. Over connections and over HTTPS' frames alike.

mod dice;
mod edge_support;
#[path = "uploads/random.rs"]
mod random;

use std::collections::BTreeMap;

use carillon::{
    base::{
        clock::{Clock, DAY_MS},
        ids::{Alias, DeviceId, QueueName},
    },
    config::Config,
    queue::collection::rule::Rule,
    service::{apps::NewApp, bind::By},
};
use carillon_wire::{
    idl::{self, EditOutcome, ResultCode},
    mqtt::{self, Connect, Packet, Publish, Version},
};
use edge_support::{
    Account, Client, Node, team,
    team::{ALIAS, edit, member, outcomes, upload},
    visitor::{Visitor, encoded, result},
};
use futures_util::future::join_all;

use EditOutcome as O;

async fn notes(rule: Rule) -> (Node, NewApp) {
    notes_with(Config::default(), rule).await
}

async fn notes_with(config: Config, rule: Rule) -> (Node, NewApp) {
    let node = Node::start_with(config).await;
    let app = team::app_with(&node, &[("notes", rule)]).await;
    (node, app)
}

/// A visitor that stands at the head of everything.
async fn settled<'a>(node: &'a Node, account: &'a Account) -> Visitor<'a> {
    let mut visitor = Visitor::new(node, account);
    visitor.catch_up().await;
    visitor
}

fn head(node: &Node, app: &NewApp) -> u64 {
    let alias: Alias = ALIAS.parse().unwrap();
    node.service.head(&QueueName::Alias(app.app_id.clone(), alias).id()).unwrap().seq.0
}

/// Uploads without applying anything; the result.
async fn say(visitor: &Visitor<'_>, edits: Vec<idl::Edit>) -> idl::Result {
    let (epoch, _) = visitor.at();
    let downs = visitor.ask(&[upload(7, visitor.account, epoch, edits)]).await.unwrap();
    result(&downs, 7).clone()
}

/// The same over a connection that did not resume: nothing else comes.
async fn say_over(client: &mut Client, account: &Account, edits: Vec<idl::Edit>) -> idl::Result {
    client.up(upload(7, account, 1, edits)).await;
    client.down().await.result.expect("the answer")
}

#[tokio::test]
async fn s20_m9_an_own_change_comes_back_without_its_value_and_others_get_it() {
    let (node, app) = notes(Rule::Newest).await;
    let (ann, bob) = (member(&node, &app).await, member(&node, &app).await);
    let (mut one, mut other) = (settled(&node, &ann).await, settled(&node, &bob).await);
    // A snapshot is larger than what follows.
    let text = format!("\"{}\"", "x".repeat(10_000));
    say(&other, vec![edit(1, "large", Some(&text), 0, 0)]).await;
    one.reach(1).await;
    other.reach(1).await;
    let edits = vec![
        edit(1, "n1", Some("{\"a\":1}"), 0, 1),
        edit(2, "n2", Some("2"), 0, 2),
        edit(3, "n1", Some("{\"a\":3}"), 0, 3),
        edit(4, "n2", None, 0, 4),
    ];
    let result = say(&one, edits.clone()).await;
    assert_eq!(result.code, ResultCode::OK);
    assert_eq!(
        outcomes(&result),
        [(1, O::APPLIED), (2, O::APPLIED), (3, O::APPLIED), (4, O::APPLIED)]
    );
    let seqs: Vec<_> = result.edits.unwrap().iter().map(|edit| edit.seq.unwrap()).collect();
    assert_eq!(seqs, [2, 3, 4, 5]);
    one.reach(5).await;
    other.reach(5).await;
    // What was changed again is skipped, and n2 came and went.
    let of = |visitor: &Visitor<'_>| visitor.changes.clone();
    let (mine, theirs) = (of(&one).split_off(1), of(&other).split_off(1));
    assert_eq!(mine.len(), 1, "{mine:?}");
    let (seq, change) = &mine[0];
    assert_eq!(
        (*seq, change.cseq, &change.value, change.clock),
        (4, Some(3), &None, Some(team::clock(3)))
    );
    let (seq, change) = &theirs[0];
    assert_eq!((*seq, change.cseq, theirs.len()), (4, None, 1));
    assert_eq!(change.value.as_deref(), Some(&b"{\"a\":3}"[..]));
    let own = edits.into_iter().map(|edit| (edit.cseq, edit)).collect();
    let theirs = BTreeMap::from([(1, edit(1, "large", Some(&text), 0, 0))]);
    assert_eq!(one.items(&own), other.items(&theirs));
}

#[tokio::test]
async fn s23_edits_go_up_and_changes_come_down_in_one_request() {
    const EACH: i64 = 30;
    let (node, app) = notes(Rule::Newest).await;
    let (ann, bob) = (member(&node, &app).await, member(&node, &app).await);
    let (mut one, mut other) = (settled(&node, &ann).await, settled(&node, &bob).await);
    // Who was never given an item waits for a snapshot first.
    let first = edit(1, "first", Some("1"), 0, 0);
    say(&other, vec![first.clone()]).await;
    one.reach(1).await;
    other.reach(1).await;
    // 64 KiB up, and as much down.
    let value = |whose: &str, n| format!("{{\"{whose}\":{n},\"text\":\"{}\"}}", "x".repeat(2_150));
    let edits = |from: i64, whose: &str| {
        let edit = |n| edit(n, &format!("{whose} {n}"), Some(&value(whose, n)), 0, n as u64);
        (from..from + EACH).map(edit).collect::<Vec<_>>()
    };
    assert!(encoded(&upload(7, &ann, 1, edits(1, "one"))).len() > 64 << 10);
    say(&other, edits(2, "other")).await;
    let (epoch, _) = one.at();
    let (answers, frames) = one.visit(&[upload(7, &ann, epoch, edits(1, "one"))]).await;
    let result = answers.iter().find_map(|down| down.result.as_ref()).expect("the results");
    assert_eq!(outcomes(result), (1..=EACH).map(|n| (n, O::APPLIED)).collect::<Vec<_>>());
    assert_eq!(frames, 3, "all that is new comes with the same answer, 32 KiB a frame");
    let (own, theirs): (Vec<_>, Vec<_>) =
        one.changes[1..].iter().partition(|(_, change)| change.cseq.is_some());
    assert!(own.iter().all(|(_, change)| change.value.is_none()));
    assert!(theirs.iter().all(|(_, change)| change.value.is_some()));
    assert_eq!((own.len() as i64, theirs.len() as i64), (EACH, EACH));
    other.reach(1 + 2 * EACH as u64).await;
    let of = |edits: Vec<idl::Edit>| edits.into_iter().map(|edit| (edit.cseq, edit)).collect();
    let theirs = [vec![first], edits(2, "other")].concat();
    assert_eq!(one.items(&of(edits(1, "one"))), other.items(&of(theirs)));
}

#[tokio::test]
async fn s20_what_is_sent_again_gets_the_same_answer_and_is_not_done_again() {
    let (node, app) = notes(Rule::Newest).await;
    let ann = member(&node, &app).await;
    let visitor = settled(&node, &ann).await;
    let edits: Vec<_> =
        (1..=6).map(|n| edit(n, &format!("n{n}"), (n < 6).then_some("1"), 0, n as u64)).collect();
    let first = say(&visitor, edits[..4].to_vec()).await;
    assert_eq!((outcomes(&first).len(), head(&node, &app)), (4, 4));
    for _ in 0..3 {
        assert_eq!(say(&visitor, edits[..4].to_vec()).await, first);
    }
    // Some again and some new ones; the base may be said anew.
    let rebased = edits[2..].iter().map(|one| idl::Edit { base_seq: 4, ..one.clone() }).collect();
    let second = say(&visitor, rebased).await;
    assert_eq!(second.edits.as_ref().unwrap()[..2], first.edits.as_ref().unwrap()[2..]);
    assert_eq!(outcomes(&second).last(), Some(&(6, O::APPLIED)));
    let end = head(&node, &app);
    // Over a connection the same, also twice at once.
    let mut client = node.connect(&ann, Connect::default()).await;
    assert_eq!(say_over(&mut client, &ann, edits[2..].to_vec()).await, second);
    let again = || say(&visitor, edits[2..].to_vec());
    assert!(join_all([again(), again(), again()]).await.iter().all(|one| *one == second));
    assert_eq!(head(&node, &app), end);
}

#[tokio::test]
async fn s20_a_registration_that_is_made_again_goes_on_with_its_uploads() {
    let on_day = |day| Clock::starting_at(1_700_000_000_000 + day * DAY_MS);
    let node = Node::start_at(Config::default(), on_day(0)).await;
    let app = team::app_with(&node, &[("notes", Rule::Newest)]).await;
    let ann = member(&node, &app).await;
    let device: DeviceId = ann.id.parse().unwrap();
    let upload = async |node: &Node, regid: &str, count: i64| {
        let edits = (1..=count).map(|n| edit(n, &format!("n{n}"), Some("1"), 0, n as u64));
        let (regid, alias_name, edits) = (regid.to_owned(), ALIAS.to_owned(), edits.collect());
        let upload = idl::Upload { regid, alias_name, epoch: 1, edits };
        node.service.upload(&device, upload).await.unwrap()
    };
    let again = async |node: &Node| {
        let (id, key) = (app.app_id.as_str(), app.app_key.reveal());
        let registered = node.service.register(&device, id, key, None).await.unwrap();
        let regid = registered.regid.to_string();
        node.service.bind(&regid, ALIAS, By::App(&app.app_id)).await.unwrap();
        regid
    };
    let old = ann.regid.unwrap();
    let first = upload(&node, &old, 2).await;

    let node = node.again_at(Config::default(), on_day(91)).await;
    while node.service.registration(&app.app_id, &old).is_ok() {
        node.service.expire_registrations().await.unwrap();
    }
    let successor = again(&node).await;
    assert_ne!(successor, old);
    let second = upload(&node, &successor, 3).await;
    assert_eq!((&second.fates[..2], second.next), (&first.fates[..], 4));
    assert_eq!(head(&node, &app), 3, "what was taken is not done again");

    // Who gives his registration back begins anew.
    node.service.unregister(&successor, By::App(&app.app_id)).await.unwrap();
    let other = again(&node).await;
    assert_eq!(upload(&node, &other, 0).await.next, 1);
}

#[tokio::test]
async fn s20_uploads_of_one_edit_at_once_do_it_once() {
    let (node, app) = notes(Rule::Merge).await;
    let ann = member(&node, &app).await;
    let visitor = settled(&node, &ann).await;
    for n in 1..=20 {
        let edits = vec![edit(n, "n", Some(&format!("{{\"f{n}\":{n}}}")), 0, n as u64)];
        let all = join_all((0..4).map(|_| say(&visitor, edits.clone()))).await;
        assert!(all.iter().all(|one| *one == all[0] && one.code == ResultCode::OK), "{all:?}");
        assert_eq!(head(&node, &app), n as u64);
    }
}

#[tokio::test]
async fn s20_numbers_that_do_not_go_on_are_told_where_to() {
    let (node, app) = notes(Rule::Newest).await;
    let ann = member(&node, &app).await;
    let visitor = settled(&node, &ann).await;
    let asked = say(&visitor, vec![]).await;
    assert_eq!((asked.code, asked.next_cseq), (ResultCode::OK, Some(1)));
    let numbered = |from: i64, count: i64| -> Vec<_> {
        (from..from + count).map(|n| edit(n, &format!("k{n}"), Some("1"), 0, n as u64)).collect()
    };
    assert_eq!(say(&visitor, numbered(1, 256)).await.code, ResultCode::OK);
    assert_eq!(say(&visitor, numbered(257, 4)).await.code, ResultCode::OK);
    assert_eq!(say(&visitor, vec![]).await.next_cseq, Some(261));
    let lost_its_storage = vec![edit(260, "new", Some("2"), 0, 999)];
    let huge = vec![edit(i64::MAX, "k", Some("1"), 0, 1)];
    for edits in [numbered(262, 1), huge, numbered(4, 1), numbered(1, 10), lost_its_storage] {
        let refused = say(&visitor, edits).await;
        assert_eq!((refused.code, refused.next_cseq), (ResultCode::RENUMBER, Some(261)));
        assert_eq!(outcomes(&refused), []);
    }
    // An older copy of its storage: what was taken is told, what differs gets new numbers.
    let other = edit(260, "new", Some("2"), 0, 999);
    let refused = say(&visitor, [numbered(258, 2), vec![other]].concat()).await;
    assert_eq!((refused.code, refused.next_cseq), (ResultCode::RENUMBER, Some(261)));
    assert_eq!(outcomes(&refused), [(258, O::APPLIED), (259, O::APPLIED)]);
    assert_eq!(outcomes(&say(&visitor, numbered(5, 256)).await).len(), 256, "as many are kept");
    assert_eq!(head(&node, &app), 260);
    for edits in [
        vec![edit(0, "k", None, 0, 1)],
        vec![edit(-3, "k", None, 0, 1)],
        vec![edit(i64::MAX, "k", None, 0, 1), edit(i64::MIN, "k", None, 0, 1)],
        vec![edit(261, "k", None, 0, 1), edit(263, "k", None, 0, 1)],
        vec![edit(262, "k", None, 0, 1), edit(261, "k", None, 0, 1)],
        numbered(261, 257),
    ] {
        assert_eq!(say(&visitor, edits).await.code, ResultCode::INVALID);
    }
    assert_eq!(head(&node, &app), 260);
}

#[tokio::test]
async fn s21_the_rule_decides_between_devices_by_what_each_had_seen() {
    for (rule, text, later, wanted) in [
        (Rule::Newest, "1", "2", [O::LOST, O::APPLIED]),
        (Rule::Merge, "{\"a\":1}", "{\"b\":2}", [O::MERGED, O::APPLIED]),
        (Rule::KeepBoth, "1", "2", [O::COPIED, O::APPLIED]),
    ] {
        let (node, app) = notes(rule).await;
        let (ann, bob) = (member(&node, &app).await, member(&node, &app).await);
        let (one, other) = (settled(&node, &ann).await, settled(&node, &bob).await);
        let said = say(&other, vec![edit(1, "n", Some(later), 0, 50)]).await;
        assert_eq!(outcomes(&said), [(1, O::APPLIED)]);
        let seen = said.edits.unwrap()[0].seq.unwrap();
        // It did not know of the other one, and is older; then it has seen it.
        let said = say(&one, vec![edit(1, "n", Some(text), 0, 10)]).await;
        assert_eq!(outcomes(&said), [(1, wanted[0])], "{rule:?}");
        let said = say(&one, vec![edit(2, "n", Some("{\"c\":3}"), seen + 1, 11)]).await;
        let knew = if rule == Rule::Merge { O::MERGED } else { wanted[1] };
        assert_eq!(outcomes(&said), [(2, knew)], "{rule:?}");
    }
}

#[tokio::test]
async fn a_base_of_an_epoch_that_is_yet_to_come_or_of_no_epoch_proves_nothing() {
    let (node, app) = notes(Rule::Newest).await;
    let (ann, bob) = (member(&node, &app).await, member(&node, &app).await);
    let (one, other) = (settled(&node, &ann).await, settled(&node, &bob).await);
    say(&other, vec![edit(1, "n", Some("1"), 0, 50)]).await;
    let ups = [upload(7, &ann, -4, vec![edit(1, "n", Some("2"), 1, 10)])];
    let downs = one.ask(&ups).await.unwrap();
    assert_eq!(outcomes(result(&downs, 7)), [(1, O::INVALID)]);
    let ups = [upload(7, &ann, 0, vec![edit(2, "n", Some("2"), 1, 10)])];
    let downs = one.ask(&ups).await.unwrap();
    assert_eq!(
        outcomes(result(&downs, 7)),
        [(2, O::LOST)],
        "what came in another epoch is not seen"
    );
}

#[tokio::test]
async fn an_edit_that_cannot_be_read_is_told_and_holds_up_no_other() {
    let (node, app) = notes(Rule::Merge).await;
    let ann = member(&node, &app).await;
    let visitor = settled(&node, &ann).await;
    let good = edit(1, "n", Some("{\"a\":1}"), 0, 1);
    let large = format!("{{\"big\":\"{}\"}}", "x".repeat(65_000));
    let edits = vec![
        good.clone(),
        idl::Edit { collection: "nothing".into(), ..edit(2, "n", Some("{}"), 0, 2) },
        edit(3, "n", Some("[1]"), 0, 3),
        edit(4, "n", Some("{"), 0, 4),
        edit(5, "", Some("{}"), 0, 5),
        idl::Edit { base_seq: -1, ..edit(6, "n", Some("{}"), 0, 6) },
        idl::Edit { format: Some(idl::ValueFormat(9)), ..edit(7, "n", Some("{}"), 0, 7) },
        edit(8, "n", Some("{\"b\":2}"), 0, 8),
    ];
    let said = say(&visitor, edits.clone()).await;
    let invalid = |n| (n, O::INVALID);
    assert_eq!(
        outcomes(&said)[1..7],
        [invalid(2), invalid(3), invalid(4), invalid(5), invalid(6), invalid(7)]
    );
    let told = said.edits.as_ref().unwrap();
    for (edit, words) in
        told[1..7].iter().zip(["collection", "object", "JSON", "key", "seq", "format"])
    {
        let message = edit.message.as_deref().unwrap();
        assert!(message.contains(words) && edit.seq.is_none(), "{words}: {message}");
    }
    assert_eq!(told[7].seq, Some(2), "only two changes were made");
    assert_eq!(say(&visitor, edits).await, said);
    say(&visitor, vec![edit(9, "large", Some(&large), 0, 9)]).await;
    let large = large.replace("big", "too");
    let said = say(&visitor, vec![edit(10, "large", Some(&large), 0, 10)]).await;
    assert_eq!(outcomes(&said), [invalid(10)], "together they are too large");
    // A longer value than any may be is no frame.
    let sized = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    let up = upload(7, &ann, 1, vec![edit(11, "huge", Some(&sized(65_537)), 0, 11)]);
    let downs = visitor.ask(&[up]).await.unwrap();
    assert_eq!(result(&downs, 0).code, ResultCode::MALFORMED);
    let said = say(&visitor, vec![edit(11, "huge", Some(&sized(65_536)), 0, 11)]).await;
    assert_eq!((outcomes(&said), head(&node, &app)), (vec![(11, O::APPLIED)], 4));
}

#[tokio::test]
async fn s20_an_upload_that_is_cut_at_any_byte_is_done_once_when_it_is_sent_again() {
    let (node, app) = notes(Rule::Newest).await;
    let ann = member(&node, &app).await;
    let visitor = settled(&node, &ann).await;
    let bytes_of = |edits: Vec<idl::Edit>| {
        let payload = encoded(&upload(7, &ann, 1, edits));
        let publish = Publish { topic: "up".into(), payload, ..Publish::default() };
        let mut bytes = bytes::BytesMut::new();
        mqtt::encode(Version::V5, &Packet::Publish(publish), &mut bytes).unwrap();
        bytes
    };
    let mut next = 1;
    for cut in 0.. {
        let numbers = next..next + 2;
        let edits: Vec<_> =
            numbers.map(|n| edit(n, &format!("k{}", n % 5), Some("1"), 0, n as u64)).collect();
        let bytes = bytes_of(edits.clone());
        if cut > bytes.len() {
            break;
        }
        let mut client = node.connect(&ann, Connect::default()).await;
        client.send_raw(&bytes[..cut]).await;
        drop(client);
        let said = say(&visitor, edits).await;
        let seqs: Vec<_> = said.edits.unwrap().iter().map(|edit| edit.seq).collect();
        assert_eq!(seqs, [Some(next), Some(next + 1)], "cut at {cut}");
        next += 2;
    }
    assert!(next > 200 && head(&node, &app) as i64 == next - 1);
}

#[tokio::test]
async fn only_a_follower_of_an_alias_that_is_bound_safely_may_upload_to_it() {
    let (node, app) = notes(Rule::Newest).await;
    let (ann, stranger) = (member(&node, &app).await, team::device_of(&node, &app).await);
    let one = || vec![edit(1, "n", Some("1"), 0, 1)];
    let ask = async |account: &Account, up: idl::Up| {
        let visitor = Visitor::new(&node, account);
        let downs = visitor.ask(&[up]).await.unwrap();
        result(&downs, 7).code
    };
    assert_eq!(ask(&stranger, upload(7, &stranger, 1, one())).await, ResultCode::FORBIDDEN);
    assert_eq!(ask(&stranger, upload(7, &ann, 1, one())).await, ResultCode::NOT_FOUND);
    for (alias_name, code) in [("", ResultCode::INVALID), ("bob", ResultCode::FORBIDDEN)] {
        let mut up = upload(7, &ann, 1, one());
        up.upload.as_mut().unwrap().alias_name = alias_name.to_owned();
        assert_eq!(ask(&ann, up).await, code, "{alias_name}");
    }
    let open = node.device().await;
    node.service.bind(open.regid.as_ref().unwrap(), ALIAS, By::App(&node.app)).await.unwrap();
    assert_eq!(ask(&open, upload(7, &open, 1, one())).await, ResultCode::FORBIDDEN);
    assert_eq!(ask(&ann, upload(7, &ann, 1, one())).await, ResultCode::OK);
    // Who is signed out may not; signed in again it goes on with its numbers.
    let regid = ann.regid.as_ref().unwrap();
    node.service.unbind(regid, ALIAS, By::App(&app.app_id)).await.unwrap();
    assert_eq!(ask(&ann, upload(7, &ann, 1, one())).await, ResultCode::FORBIDDEN);
    team::bind(&node, &app.app_id, &ann).await;
    assert_eq!(ask(&ann, upload(7, &ann, 1, one())).await, ResultCode::OK);
    assert_eq!(head(&node, &app), 1);
    node.service.unregister(regid, By::App(&app.app_id)).await.unwrap();
    assert_eq!(ask(&ann, upload(7, &ann, 1, one())).await, ResultCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn too_many_edits_at_once_wait_and_what_is_sent_again_is_free() {
    let mut config = Config::default();
    (config.limits.edits_per_s, config.limits.edits_burst) = (2, 10);
    let (node, app) = notes_with(config, Rule::Newest).await;
    let (ann, bob) = (member(&node, &app).await, member(&node, &app).await);
    let (visitor, other) = (settled(&node, &ann).await, settled(&node, &bob).await);
    let numbered = |numbers: std::ops::RangeInclusive<i64>| -> Vec<_> {
        numbers.map(|n| edit(n, &format!("k{n}"), Some("1"), 0, n as u64)).collect()
    };
    let first = say(&visitor, numbered(1..=10)).await;
    assert_eq!(first.code, ResultCode::OK);
    let refused = say(&visitor, numbered(8..=12)).await;
    assert_eq!((refused.code, outcomes(&refused).len()), (ResultCode::LIMIT, 3), "those it had");
    assert_eq!(say(&visitor, numbered(1..=10)).await, first);
    assert_eq!(say(&other, numbered(1..=10)).await.code, ResultCode::OK, "another has its own");
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    assert_eq!(outcomes(&say(&visitor, numbered(8..=12)).await).len(), 5);
    assert_eq!(say(&visitor, numbered(13..=13)).await.code, ResultCode::LIMIT);
}
