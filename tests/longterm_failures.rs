//! What the long-term stores bear: kills, lost connections, bad answers.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod longterm;
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use carillon::longterm::{Error, LongTerm, embedded::Embedded, postgres::Postgres};
use longterm::{ALL, TIMEOUT, at, commit, delete, fold, name, put, queue, reached, value};
use support::postgres::Postgres as Server;

#[tokio::test]
async fn what_the_embedded_store_answered_survives_a_kill_and_a_cut_fold_is_none() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("longterm");
    let store = Embedded::open(&dir, 1 << 20).unwrap();
    let queue = queue(1, 1);
    store.fold(fold(queue, 1, vec![put(1, "a", "1"), put(2, "b", "1")])).await.unwrap();
    let before = journal_bytes(&dir);
    store.fold(fold(queue, 2, vec![put(3, "a", "2"), delete(4, "b")])).await.unwrap();
    let after = journal_bytes(&dir);
    assert!(after > before, "the journal grew");
    // What a kill leaves, with the journal cut at any byte of the second fold.
    for cut in (before..=after).step_by(7).chain([after]) {
        let copy = home.path().join(format!("copy {cut}"));
        copy_all(&dir, &copy);
        let journal = journal(&copy);
        cut_file(&journal, cut);
        let copy = Embedded::open(&copy, 1 << 20).unwrap();
        let pointer = copy.pointer(queue.shard()).await.unwrap();
        let found = (value(&copy, queue, "a").await, value(&copy, queue, "b").await);
        let position = copy.position(queue).await.unwrap();
        match pointer.number {
            1 => assert_eq!((found, position), ((Some("1".into()), Some("1".into())), Some(at(2)))),
            2 => assert_eq!((found, position), ((Some("2".into()), None), Some(at(4)))),
            other => panic!("pointer {other}"),
        }
        assert!(cut < after || pointer.number == 2, "what was answered is there");
    }
}

fn journal(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|e| e == "jnl")).max().expect("a journal")
}

/// The end of what was written: journals are longer than that.
fn journal_bytes(dir: &Path) -> u64 {
    let bytes = fs::read(journal(dir)).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
}

fn cut_file(file: &Path, bytes: u64) {
    fs::File::options().write(true).open(file).unwrap().set_len(bytes).unwrap();
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        match file.file_type().unwrap().is_dir() {
            true => copy_all(&file.path(), &target),
            false => drop(fs::copy(file.path(), target).unwrap()),
        }
    }
}

async fn direct(server: &Server) -> tokio_postgres::Client {
    let connected = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await;
    let (client, connection) = connected.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn a_fold_that_postgres_does_not_finish_is_none_and_can_be_done_again() {
    let server = Server::start();
    let queue = queue(1, 1);
    let patient = reached(&server);
    patient.fold(fold(queue, 1, vec![put(1, "a", "1")])).await.unwrap();

    // Somebody holds a row that the fold reaches after it has written others.
    let other = direct(&server).await;
    let lock = "BEGIN; SELECT * FROM carillon_queue FOR UPDATE";
    other.batch_execute(lock).await.unwrap();
    let hasty = Postgres::new(&server.url(), None, Duration::from_millis(300)).unwrap();
    let steps = vec![put(2, "a", "2"), put(3, "b", "1")];
    let late = hasty.fold(fold(queue, 2, steps.clone())).await;
    assert!(matches!(late, Err(Error::Unreachable { .. })), "{late:?}");
    other.batch_execute("ROLLBACK").await.unwrap();

    assert_eq!(hasty.pointer(queue.shard()).await.unwrap(), commit(1));
    assert_eq!(value(&hasty, queue, "a").await.as_deref(), Some("1"));
    assert_eq!(value(&hasty, queue, "b").await, None);
    patient.fold(fold(queue, 2, steps)).await.unwrap();
    assert_eq!(value(&hasty, queue, "a").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_lost_connection_is_opened_again_and_a_server_that_is_away_is_an_error_with_an_end() {
    let mut server = Server::start();
    let queue = queue(1, 1);
    let store = reached(&server);
    store.fold(fold(queue, 1, vec![put(1, "a", "1")])).await.unwrap();
    assert_eq!(store.pointer(queue.shard()).await.unwrap(), commit(1));

    let other = direct(&server).await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'carillon'";
    assert_eq!(other.query(end, &[]).await.unwrap().len(), 2, "one folds, one reads");
    assert_eq!(value(store.as_ref(), queue, "a").await.as_deref(), Some("1"));
    store.fold(fold(queue, 2, vec![put(2, "a", "2")])).await.unwrap();

    server.stop();
    let read = store.item(queue, name("notes", "a")).await;
    assert!(matches!(read, Err(Error::Unreachable { .. })), "{read:?}");
    let folded = store.fold(fold(queue, 3, vec![put(3, "a", "3")])).await;
    assert!(matches!(folded, Err(Error::Unreachable { .. })), "{folded:?}");

    server.restart();
    assert_eq!(value(store.as_ref(), queue, "a").await.as_deref(), Some("2"));
    store.fold(fold(queue, 3, vec![put(3, "a", "3")])).await.unwrap();
    assert_eq!(value(store.as_ref(), queue, "a").await.as_deref(), Some("3"));
}

#[tokio::test]
async fn a_database_with_other_tables_is_an_error_that_says_so() {
    let server = Server::start();
    let queue = queue(1, 1);
    reached(&server).fold(fold(queue, 1, vec![put(1, "a", "1")])).await.unwrap();
    let other = direct(&server).await;
    other.batch_execute("ALTER TABLE carillon_item DROP COLUMN born").await.unwrap();
    let read = reached(&server).newest(queue, None, ALL).await;
    assert!(
        matches!(&read, Err(Error::Refused { cause, .. }) if cause.contains("born")),
        "{read:?}"
    );
    other.batch_execute("UPDATE carillon_format SET version = 9").await.unwrap();
    let read = reached(&server).newest(queue, None, ALL).await;
    assert!(matches!(&read, Err(Error::Damaged(text)) if text.contains('9')), "{read:?}");
}

#[tokio::test]
async fn rows_that_make_no_sense_are_errors() {
    let server = Server::start();
    let queue = queue(1, 1);
    let store = reached(&server);
    store.fold(fold(queue, 1, vec![put(1, "a", "1")])).await.unwrap();
    let other = direct(&server).await;
    for (spoil, mend) in [
        ("format = 7", "format = 1"),
        ("regid = 'short', cseq = 1", "regid = NULL, cseq = NULL"),
        ("epoch = -1", "epoch = 3"),
        ("key = '\\xff'", "key = 'a'"),
    ] {
        other.batch_execute(&format!("UPDATE carillon_item SET {spoil}")).await.unwrap();
        let read = store.newest(queue, None, ALL).await;
        assert!(matches!(read, Err(Error::Damaged(_))), "{spoil}: {read:?}");
        other.batch_execute(&format!("UPDATE carillon_item SET {mend}")).await.unwrap();
        store.newest(queue, None, ALL).await.unwrap();
    }
}

#[test]
fn a_wrong_connection_string_or_ca_is_told_at_once() {
    let wrong = |url: &str, ca: Option<&Path>| Postgres::new(url, ca, TIMEOUT).err().unwrap();
    assert!(wrong("host=a port=many", None).contains("connection string"));
    let missing = Path::new("/nowhere/ca.pem");
    assert!(wrong("host=a", Some(missing)).contains("/nowhere/ca.pem"));
    let home = tempfile::tempdir().unwrap();
    let empty = home.path().join("ca.pem");
    fs::write(&empty, "").unwrap();
    assert!(wrong("host=a", Some(&empty)).contains("no certificate"));
}
