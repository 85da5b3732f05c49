//! S22: the four ways to come together (SyncML 1.2, types 200, 201, 203 and 205), each by a device that holds nothing, the
//! same as the gateway, or something else.

use super::*;

/// What the device holds before.
#[derive(Clone, Copy, Debug)]
enum From {
    Empty,
    Equal,
    Diverged,
}

const ALL: [From; 3] = [From::Empty, From::Equal, From::Diverged];

/// A device that is offline, and a gateway with thirty notes.
struct Apart {
    scene: Scene,
    home: Arc<tempfile::TempDir>,
    account: support::Device,
}

impl Apart {
    async fn new() -> Self {
        let scene = Scene::new().await;
        scene.fill(30).await;
        let mut phone = Phone::new(&scene, scene.node.listen().mqtt).await;
        phone.bind(&scene).await;
        phone.hears(&served(&scene).await).await;
        let (home, account) = phone.stop().await;
        Self { scene, home, account }
    }

    async fn online(self) -> (Scene, Phone) {
        let Self { scene, home, account } = self;
        let phone = Phone::start(home, account, scene.node.listen().mqtt).await;
        phone.device.online().await.unwrap();
        (scene, phone)
    }

    /// Runs a statement on the replica's table of items, as damage would.
    fn damage(&self, statement: &str) {
        let database = rusqlite::Connection::open(self.home.path().join("device.db")).unwrap();
        database.execute_batch(statement).unwrap();
    }

    /// Takes every item, or changes values and loses some, in a way that no digest shows.
    fn spoil(&self, from: From) {
        match from {
            From::Empty => self.damage("DELETE FROM items"),
            From::Equal => {}
            From::Diverged => self.damage(
                "UPDATE items SET value = CAST('{\"wrong\":1}' AS BLOB) WHERE rowid % 3 = 0;
                 DELETE FROM items WHERE rowid % 3 = 1;",
            ),
        }
    }
}

/// Waits for the end of what was asked for.
async fn compared(phone: &mut Phone) -> usize {
    let mut changes = 0;
    loop {
        match phone.happening().await {
            Happening::Compared { collection, outcome, .. } => {
                assert_eq!((collection.as_str(), outcome), (NOTES, Comparison::Complete));
                return changes;
            }
            Happening::Changed(_) => changes += 1,
            _ => {}
        }
    }
}

fn json(value: &Value) -> carillon_sdk::Value {
    carillon_sdk::Value::json(value.to_string())
}

#[tokio::test]
async fn s22_two_way_by_positions() {
    for from in ALL {
        let apart = Apart::new().await;
        let replica = Collections::open(apart.home.path().join("device.db")).unwrap();
        let shelf = replica.of(&RegId::from(apart.account.regid.as_str()), ALIAS);
        match from {
            // A device without its database.
            From::Empty => {
                for end in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(apart.home.path().join(format!("device.db{end}")));
                }
            }
            From::Equal => {}
            From::Diverged => {
                shelf.put(NOTES, "here", json(&json!({"by": "the device"}))).unwrap();
                shelf.delete(NOTES, &key(1)).unwrap();
                apart.scene.change(vec![set("there", 1), delete(&key(2))]).await;
            }
        }
        drop((shelf, replica));
        let (scene, mut phone) = apart.online().await;
        timeout(DEADLINE, phone.shelf.uploaded()).await.unwrap().unwrap();
        let served = served(&scene).await;
        phone.hears(&served).await;
        assert_eq!(served.len(), 30, "{from:?}");
        let is_diverged = matches!(from, From::Diverged);
        assert_eq!(served.contains_key("here") && served.contains_key("there"), is_diverged);
    }
}

#[tokio::test]
async fn s22_slow_by_comparing_all_keys_and_numbers() {
    for from in ALL {
        let apart = Apart::new().await;
        match from {
            From::Empty | From::Equal => apart.spoil(from),
            // Numbers that are wrong, which a comparison of numbers finds.
            From::Diverged => apart.damage(
                "UPDATE items SET seq = seq - 1, value = CAST('{}' AS BLOB) WHERE rowid % 3 = 0;
                 DELETE FROM items WHERE rowid % 3 = 1;",
            ),
        }
        heals(apart, from, |shelf| shelf.compare(NOTES).unwrap()).await;
    }
}

#[tokio::test]
async fn s22_refresh_from_the_device() {
    for from in ALL {
        let (scene, mut phone) = Apart::new().await.online().await;
        let mut own = held(&phone.shelf);
        match from {
            From::Empty => own.clear(),
            From::Equal => {}
            From::Diverged => {
                own.retain(|key, _| !key.ends_with('0'));
                own.insert("of the device".into(), json!({"n": 1}));
                own.insert(key(4), json!({"n": 2}));
            }
        }
        let items = own.iter().map(|(key, value)| (key.clone(), json(value))).collect();
        let edits = phone.shelf.replace(NOTES, &items).unwrap();
        let expected = match from {
            From::Empty => 30,
            From::Equal => 0,
            From::Diverged => 3 + 2,
        };
        assert_eq!(edits, expected, "{from:?}");
        assert_eq!(held(&phone.shelf), own, "visible at once");
        timeout(DEADLINE, phone.shelf.uploaded()).await.unwrap().unwrap();
        assert_eq!(served(&scene).await, own, "{from:?}");
        phone.hears(&own).await;
    }
}

#[tokio::test]
async fn s22_refresh_from_the_gateway() {
    for from in ALL {
        let apart = Apart::new().await;
        apart.spoil(from);
        heals(apart, from, |shelf| shelf.fetch(NOTES).unwrap()).await;
    }
}

/// What is asked for changes what differs, and nothing else.
async fn heals(apart: Apart, from: From, ask: impl FnOnce(&Shelf)) {
    let (scene, mut phone) = apart.online().await;
    ask(&phone.shelf);
    let changes = compared(&mut phone).await;
    phone.hears(&served(&scene).await).await;
    let expected = match from {
        From::Empty => 30,
        From::Equal => 0,
        From::Diverged => 20,
    };
    assert_eq!(changes, expected, "{from:?}");
}
