//! The SDK's replica against a real node: what an app server changes is on the device, whatever is cut or restarted.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

#[path = "sync_sdk/loss.rs"]
mod loss;
#[path = "../sdk/examples/notes.rs"]
#[allow(dead_code, reason = "its own gateway is for terminals")]
mod notes;
#[path = "sync_sdk/s22.rs"]
mod s22;
mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use carillon::service::apps::alias_token;
use carillon_sdk::{
    Collections, Credentials, Device, Endpoint, RegId,
    collections::{Comparison, Happening, Shelf, Who},
};
use carillon_wire::digest::{Digest, item_hash};
use reqwest::Method;
use serde_json::{Value, json};
use support::{
    DEADLINE,
    sync::{ALIAS, APP, NOTES, Scene, key, set},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::broadcast,
    time::timeout,
};

/// Keys and values of a collection.
type Items = BTreeMap<String, Value>;

/// A device of the SDK with its database.
struct Phone {
    device: Device,
    collections: Collections,
    shelf: Shelf,
    happenings: broadcast::Receiver<Happening>,
    /// What somebody knows who only listens to changes.
    heard: Items,
    home: Arc<tempfile::TempDir>,
    account: support::Device,
}

impl Phone {
    /// A device that does not follow the alias yet.
    async fn new(scene: &Scene, at: SocketAddr) -> Self {
        let home = Arc::new(tempfile::tempdir().unwrap());
        Self::start(home, scene.new_device().await, at).await
    }

    async fn start(home: Arc<tempfile::TempDir>, account: support::Device, at: SocketAddr) -> Self {
        let collections = Collections::open(home.path().join("device.db")).unwrap();
        Self::over(collections, home, account, at).await
    }

    async fn over(
        collections: Collections,
        home: Arc<tempfile::TempDir>,
        account: support::Device,
        at: SocketAddr,
    ) -> Self {
        let endpoint: Endpoint = format!("tcp://{at}").parse().unwrap();
        let credentials =
            Credentials { device_id: account.device_id.clone(), secret: account.secret.clone() };
        let shelf = collections.of(&RegId::from(account.regid.as_str()), ALIAS);
        let heard = held(&shelf);
        let happenings = collections.changes();
        let device = Device::builder_with_store(endpoint, credentials, collections.clone());
        let device = device.connect_with(|_| async {}).await.unwrap();
        Self { device, collections, shelf, happenings, heard, home, account }
    }

    /// Follows the alias with a token of the app server's.
    async fn bind(&self, scene: &Scene) {
        self.device.online().await.unwrap();
        let later = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + DEADLINE;
        let later = later.as_millis() as u64;
        let regid = &self.account.regid;
        let token = alias_token(&scene.app.app_secret, regid, ALIAS, later);
        self.device.bind(self.shelf.regid(), ALIAS, Some(&token)).await.unwrap();
    }

    /// Two devices that follow the alias, hold what is there, and are offline.
    async fn two_offline(scene: &Scene) -> [Self; 2] {
        let at = scene.node.listen().mqtt;
        let mut phones = [Self::new(scene, at).await, Self::new(scene, at).await];
        for phone in &mut phones {
            phone.bind(scene).await;
            phone.hears(&served(scene).await).await;
            phone.device.shutdown().await;
        }
        phones
    }

    async fn stop(self) -> (Arc<tempfile::TempDir>, support::Device) {
        self.device.shutdown().await;
        (self.home, self.account)
    }

    /// The next that happens; of changes it is checked that they continue what was heard before.
    async fn happening(&mut self) -> Happening {
        let heard = timeout(DEADLINE, self.happenings.recv()).await.expect("it comes in time");
        let happening = heard.expect("no listener is slow here");
        if let Happening::Changed(change) = &happening {
            let old = change.old.as_ref().map(|old| document(&old.bytes));
            assert_eq!(self.heard.get(&change.key), old.as_ref(), "{change:?}");
            match &change.new {
                Some(new) => drop(self.heard.insert(change.key.clone(), document(&new.bytes))),
                None => drop(self.heard.remove(&change.key)),
            }
        }
        happening
    }

    /// Listens until this is heard of and held; nothing more is told then.
    async fn hears(&mut self, items: &Items) {
        while self.heard != *items || held(&self.shelf) != *items {
            self.happening().await;
        }
        while let Ok(more) = self.happenings.try_recv() {
            assert!(!matches!(more, Happening::Changed(_)), "told twice: {more:?}");
        }
    }
}

fn document(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn held(shelf: &Shelf) -> Items {
    let items = shelf.items(NOTES).unwrap().into_iter();
    items.map(|item| (item.key, document(&item.value.bytes))).collect()
}

/// What the app server reads.
async fn served(scene: &Scene) -> Items {
    let (https, url) = (scene.node.https_client(), scene.node.https_url());
    let (mut items, mut after) = (Items::new(), String::new());
    loop {
        let path = format!("{url}/v1/apps/{APP}/aliases/{ALIAS}/snapshot?limit=1000{after}");
        let page = https.request(Method::GET, path).bearer_auth(&scene.app.app_secret);
        let page = support::answer(page).await;
        assert_eq!(page.status, 200, "{}", page.body);
        for item in page.body["items"].as_array().unwrap() {
            items.insert(item["key"].as_str().unwrap().to_owned(), item["value"].clone());
        }
        match page.body["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return items,
        }
    }
}

fn delete(key: &str) -> Value {
    json!({"collection": NOTES, "key": key, "delete": true})
}

/// A way to the node that cuts each of the first connections after so many bytes to the device.
async fn cut_after(node: SocketAddr, cuts: &'static [u64]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, done) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = done.clone();
    tokio::spawn(async move {
        let mut cuts = cuts.iter().copied();
        while let Ok((mut device, _)) = listener.accept().await {
            let mut gateway = TcpStream::connect(node).await.unwrap();
            let (limit, count) = (cuts.next(), count.clone());
            tokio::spawn(async move {
                let (mut up, mut down) = device.split();
                let (from, mut to) = gateway.split();
                let mut from = from.take(limit.unwrap_or(u64::MAX));
                tokio::select! {
                    _ = copy(&mut up, &mut to) => {}
                    _ = copy(&mut from, &mut down) => {
                        count.fetch_add(usize::from(from.limit() == 0), Ordering::SeqCst);
                        let _ = down.shutdown().await;
                    }
                }
            });
        }
    });
    (at, done)
}

#[tokio::test]
async fn i5_deltas_through_cuts_and_a_restart_make_the_items_that_the_app_server_reads() {
    let scene = Scene::new().await;
    scene.fill(300).await;
    let (at, cuts) = cut_after(scene.node.listen().mqtt, &[700, 9_000, 4_001]).await;
    let mut phone = Phone::new(&scene, at).await;
    phone.bind(&scene).await;
    phone.hears(&served(&scene).await).await;
    // A change that is made while it listens, and nothing twice.
    scene.change(vec![set("live", 1), delete(&key(7))]).await;
    phone.hears(&served(&scene).await).await;
    assert_eq!(phone.heard.len(), 300);
    assert!(cuts.load(Ordering::SeqCst) > 0, "no connection was cut");

    let (home, account) = phone.stop().await;
    let changes = (0..200).map(|n| match n % 3 {
        0 => delete(&key(n)),
        1 => set(&key(n), n + 1_000),
        _ => set(&format!("later {n}"), n),
    });
    scene.change(changes.collect()).await;
    let mut phone = Phone::start(home, account, at).await;
    assert_eq!(phone.heard.len(), 300, "the old items are there before it is online");
    phone.hears(&served(&scene).await).await;
    assert_eq!(phone.heard.len(), 300 - 66 + 66);
}

#[tokio::test]
async fn s12_a_new_device_gets_a_packed_snapshot_and_then_deltas() {
    let scene = Scene::new().await;
    scene.fill(1_500).await;
    let counter = async |name: &str| scene.node.counter(name).await;
    let mut phone = Phone::new(&scene, scene.node.listen().mqtt).await;
    phone.bind(&scene).await;
    phone.hears(&served(&scene).await).await;
    assert_eq!(counter("carillon_snapshots_total{reason=\"new\"}").await, 1);
    assert!(counter("carillon_snapshot_chunks_total").await > 1);
    let of = async |side| {
        counter(&format!("carillon_packed_frames_bytes_total{{side=\"{side}\"}}")).await
    };
    let (plain, packed) = (of("plain").await, of("packed").await);
    assert!(packed > 0 && packed * 2 < plain, "{plain} bytes became {packed}");
    assert!(plain > counter("carillon_snapshot_bytes_total").await / 2, "chunks are packed");
    scene.change(vec![set("after", 1), delete(&key(7))]).await;
    phone.hears(&served(&scene).await).await;
    assert_eq!(counter("carillon_snapshots_total{reason=\"new\"}").await, 1);
}

#[tokio::test]
async fn i10_a_poison_item_is_fetched_once_more_then_marked_and_nothing_waits_for_it() {
    let scene = Scene::new().await;
    let home = Arc::new(tempfile::tempdir().unwrap());
    let collections = Collections::open(home.path().join("device.db")).unwrap();
    let tries = Arc::new(AtomicUsize::new(0));
    let count = tries.clone();
    let handler = move |change: &carillon_sdk::collections::ItemChange| match change.key.as_str() {
        "poison" => {
            count.fetch_add(1, Ordering::SeqCst);
            Err("too long for the screen".to_owned())
        }
        _ => Ok(()),
    };
    collections.handle_with(handler).unwrap();
    let account = scene.new_device().await;
    let mut phone = Phone::over(collections, home, account, scene.node.listen().mqtt).await;
    phone.bind(&scene).await;
    scene.change(vec![set("before", 1), set("poison", 2), set("behind", 3)]).await;
    let skipped = loop {
        if let Happening::Skipped { key, reason, .. } = phone.happening().await {
            break (key, reason);
        }
    };
    assert_eq!(skipped, ("poison".to_owned(), "too long for the screen".to_owned()));
    assert_eq!(tries.load(Ordering::SeqCst), 2);
    let flags = phone.shelf.items(NOTES).unwrap().into_iter();
    let flags: Vec<_> = flags.map(|item| (item.key, item.is_skipped)).collect();
    let flag = |key: &str, is_skipped| (key.to_owned(), is_skipped);
    assert_eq!(flags, [flag("before", false), flag("behind", false), flag("poison", true)]);
    scene.change(vec![set("later", 4)]).await;
    phone.hears(&served(&scene).await).await;
    assert_eq!(tries.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn s19_wrong_items_in_the_replica_are_found_by_the_digest_and_repaired() {
    let scene = Scene::new().await;
    scene.fill(200).await;
    let at = scene.node.listen().mqtt;
    let mut phone = Phone::new(&scene, at).await;
    phone.bind(&scene).await;
    phone.hears(&served(&scene).await).await;
    let (home, account) = phone.stop().await;
    spoil(&home.path().join("device.db"));
    // It hears of digests when something comes.
    scene.change(vec![set("another", 1)]).await;
    let mut phone = Phone::start(home, account, at).await;
    let served = served(&scene).await;
    assert_ne!(phone.heard.get(&key(4)), served.get(&key(4)));
    assert_eq!(phone.heard.get(&key(5)), None);
    phone.hears(&served).await;
}

/// Gives an item another value and loses one, as a bug in applying changes would.
fn spoil(database: &Path) {
    let database = rusqlite::Connection::open(database).unwrap();
    let mut digest: i64 =
        database.query_row("SELECT digest FROM digests", [], |row| row.get(0)).unwrap();
    let mut of = Digest::from_idl(digest);
    for (n, to) in [(4, Some(1)), (5, None)] {
        let key = key(n);
        let seq = |row: &rusqlite::Row<'_>| row.get(0);
        let old: u64 =
            database.query_row("SELECT seq FROM items WHERE key = ?", [&key], seq).unwrap();
        of.remove(item_hash(NOTES, &key, old));
        match to {
            Some(seq) => {
                of.add(item_hash(NOTES, &key, seq));
                let wrong = "UPDATE items SET seq = ?, value = CAST('{}' AS BLOB) WHERE key = ?";
                database.execute(wrong, rusqlite::params![seq, key]).unwrap();
            }
            None => drop(database.execute("DELETE FROM items WHERE key = ?", [&key]).unwrap()),
        }
    }
    digest = of.to_idl();
    database.execute("UPDATE digests SET digest = ?, items = items - 1", [digest]).unwrap();
}

#[tokio::test]
async fn the_story_of_the_shared_notes_comes_to_its_end() {
    let node = support::Node::start().await;
    notes::story(Path::new(env!("CARGO_BIN_EXE_carillon")), &node.data()).await.unwrap();
}

#[tokio::test]
async fn s20_two_devices_that_edit_offline_end_alike_and_hear_no_echo_of_their_own() {
    let scene = Scene::with(support::Options::default(), "merge").await;
    scene.change(vec![set("both", 1), set("gone", 2)]).await;
    let at = scene.node.listen().mqtt;
    let phones = Phone::two_offline(&scene).await;
    let json = |value: Value| carillon_sdk::Value::json(value.to_string());
    let [one, other] = &phones;
    one.shelf.patch(NOTES, "both", json(json!({"done": true}))).unwrap();
    one.shelf.put(NOTES, "own", json(json!({"by": "one"}))).unwrap();
    other.shelf.patch(NOTES, "both", json(json!({"text": "other"}))).unwrap();
    other.shelf.delete(NOTES, "gone").unwrap();
    let mut back = Vec::new();
    for Phone { collections, home, account, mut happenings, .. } in phones {
        while happenings.try_recv().is_ok() {}
        back.push(Phone::over(collections, home, account, at).await);
    }
    let end = json!({
        "both": {"done": true, "text": "other"},
        "own": {"by": "one"},
    });
    let end: Items = serde_json::from_value(end).unwrap();
    for (phone, news) in back.iter_mut().zip([["both", "gone"], ["both", "own"]]) {
        timeout(DEADLINE, phone.shelf.uploaded()).await.unwrap().unwrap();
        while phone.heard != end {
            if let Happening::Changed(change) = phone.happening().await {
                assert_eq!(change.who, Who::Elsewhere);
                assert!(news.contains(&change.key.as_str()), "an echo: {change:?}");
            }
        }
        phone.hears(&end).await;
    }
    assert_eq!(served(&scene).await, end);
}

#[tokio::test]
async fn s20_a_device_whose_database_is_lost_or_an_old_copy_goes_on_with_its_edits() {
    let scene = Scene::new().await;
    let at = scene.node.listen().mqtt;
    let phone = Phone::new(&scene, at).await;
    phone.bind(&scene).await;
    let edit = async |phone: &Phone, key: &str| {
        phone.shelf.put(NOTES, key, carillon_sdk::Value::json("{}")).unwrap();
        timeout(DEADLINE, phone.shelf.uploaded()).await.unwrap().unwrap();
    };
    edit(&phone, "first").await;
    let (home, account) = phone.stop().await;
    let (database, copy) = (home.path().join("device.db"), home.path().join("copy.db"));
    std::fs::copy(&database, &copy).unwrap();
    let phone = Phone::start(home, account, at).await;
    edit(&phone, "second").await;
    edit(&phone, "third").await;
    let (home, account) = phone.stop().await;

    for file in ["device.db", "device.db-wal", "device.db-shm"] {
        let _ = std::fs::remove_file(home.path().join(file));
    }
    std::fs::rename(&copy, &database).unwrap();
    let mut phone = Phone::start(home, account, at).await;
    edit(&phone, "from an old copy").await;
    phone.hears(&served(&scene).await).await;
    let (_, account) = phone.stop().await;

    let empty = Arc::new(tempfile::tempdir().unwrap());
    let mut phone = Phone::start(empty, account, at).await;
    edit(&phone, "from nothing").await;
    let served = served(&scene).await;
    phone.hears(&served).await;
    assert_eq!(served.len(), 5);
}
