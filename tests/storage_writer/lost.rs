//! The queue store loses entries that were folded, and of some items nothing older is known.

use carillon::queue::{
    entry::{Body, Entry},
    store::Batch,
};

use super::*;

impl Scene {
    async fn on_day(&mut self, day: u64) {
        self.clock = Clock::starting_at(START_MS + day * DAY_MS);
        self.restart().await;
    }

    /// What app servers read of user 0.
    async fn page(&self) -> String {
        let page = self.service().items(&self.app, &Self::alias(0), None, 99).await.unwrap();
        let item = |item: &items::ItemView| {
            format!("{}={}", item.key, String::from_utf8_lossy(&item.value.bytes))
        };
        page.items.iter().map(item).collect::<Vec<_>>().join(" ")
    }

    /// What the store holds now.
    fn copy(&self) -> Arc<MemoryStore> {
        let (copy, mut all) = (MemoryStore::default(), Batch::default());
        let days = self.store.days().into_iter().flat_map(Space::of_day);
        for space in Space::FIXED.into_iter().chain(days) {
            for (key, value) in self.store.scan(space, &Range::prefix(&[]), usize::MAX).unwrap() {
                all.put(space, key.to_vec(), value.to_vec());
            }
        }
        copy.write(&all).unwrap();
        Arc::new(copy)
    }

    /// The node stops, and comes back with what an older copy holds, in an epoch that nobody had.
    async fn comes_back_with(&mut self, copy: Arc<MemoryStore>) {
        let mut epoch = Batch::default();
        epoch.put(Space::Meta, b"epoch".as_slice(), 9_u64.to_le_bytes().to_vec());
        copy.write(&epoch).unwrap();
        self.core.take().unwrap().stop().await;
        self.store = copy;
        self.start().await;
    }
}

/// History keeps a day, the queue a week. Of `a`, `b`, `c` and `d` the long-term store alone has
/// values then, of `held` the queue too, of `new` all of them.
async fn scene() -> Scene {
    let mut scene = Scene::over(Moody::new()).await;
    scene.config.longterm.history_days = 1;
    scene.restart().await;
    scene.service().declare(&scene.app, "merged", Rule::Merge).await.unwrap();
    for key in ["a", "b", "c"] {
        scene.change(0, key, Some("1")).await.unwrap();
    }
    scene.change_in("merged", 0, "d", Some(r#"{"x":1}"#)).await.unwrap();
    scene.all_is_folded().await;
    for (day, key) in [(30, "held"), (33, "new")] {
        scene.on_day(day).await;
        scene.change(0, key, Some("1")).await.unwrap();
        scene.all_is_folded().await;
    }
    let trimmed = async || {
        let history = scene.longterm.history(scene.queue(0), Seq(0), longterm::ALL).await.unwrap();
        history.len() == 1
    };
    while !trimmed().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scene
}

/// What is lost afterwards.
async fn change_all(scene: &Scene) {
    for (key, value) in [("a", Some("2")), ("b", None), ("held", Some("2")), ("new", Some("2"))] {
        scene.change(0, key, value).await.unwrap();
    }
    scene.change_in("merged", 0, "d", Some(r#"{"y":2}"#)).await.unwrap();
    scene.change(0, "never was", Some("1")).await.unwrap();
    scene.all_is_folded().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_change_is_made_again_where_nothing_older_is_known() {
    let mut scene = scene().await;
    let copy = scene.copy();
    change_all(&scene).await;
    assert_eq!(scene.page().await, r#"d={"x":1,"y":2} a=2 c=1 held=2 never was=1 new=2"#);
    scene.comes_back_with(copy).await;
    // `b` has no value anywhere: its delete is all that is known.
    let lost = r#"d={"x":1,"y":2} a=2 c=1 held=1 new=1"#;
    assert_eq!(scene.page().await, lost);
    let alias = Scene::alias(0);
    let stood = scene.service().items(&scene.app, &alias, None, 1).await.unwrap().at;
    // Any entry makes the writer look.
    scene.message(0).await;
    scene.all_is_folded().await;
    assert_eq!(scene.page().await, lost);
    // Who holds the older values hears of the changes.
    let page = scene.service().changes_after(&scene.app, &alias, stood, 99).await.unwrap();
    let key = |entry: &Arc<Entry>| match &entry.body {
        Body::Change(change) => change.key.to_string(),
        other => panic!("{other:?}"),
    };
    let mut heard: Vec<_> = page.entries.iter().map(key).collect();
    heard.sort_unstable();
    assert_eq!(heard, ["a", "b", "d"]);
    let folded =
        longterm::folded_as_queued(scene.store.as_ref(), scene.longterm.as_ref(), scene.queue(0));
    assert_eq!(longterm::keys_of(&folded.await).len(), 5);
    // All can be changed as ever.
    scene.change_in("merged", 0, "d", Some(r#"{"z":3}"#)).await.unwrap();
    scene.change(0, "b", Some("3")).await.unwrap();
    let all = r#"d={"x":1,"y":2,"z":3} a=2 b=3 c=1 held=1 new=1"#;
    assert_eq!(scene.page().await, all);
    scene.all_is_folded().await;
    scene.on_day(90).await;
    assert_eq!(scene.page().await, all, "from the fold alone");
}

#[tokio::test(start_paused = true)]
async fn an_item_whose_value_is_lost_can_be_changed_before_the_fold_is_taken_back() {
    let mut scene = scene().await;
    let copy = scene.copy();
    change_all(&scene).await;
    scene.comes_back_with(copy).await;
    scene.change_in("merged", 0, "d", Some(r#"{"z":3}"#)).await.unwrap();
    scene.change(0, "a", Some("3")).await.unwrap();
    scene.all_is_folded().await;
    assert_eq!(scene.page().await, r#"d={"x":1,"y":2,"z":3} a=3 c=1 held=1 new=1"#);
    longterm::folded_as_queued(scene.store.as_ref(), scene.longterm.as_ref(), scene.queue(0)).await;
}
