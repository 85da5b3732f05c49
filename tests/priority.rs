//! What `priority` does for a device, from the send to the order in which things come: for plain
//! use and frames alike, with a window of one.

mod edge_support;

use carillon::{
    config::Config,
    queue::entry::Priority,
    service::{
        bind::By,
        send::{Send, Target},
    },
};
use carillon_wire::{
    frame, idl,
    mqtt::{Connect, Qos},
};
use edge_support::{Account, Client, Node, message, up};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    Frames,
}

struct Scene {
    node: Node,
    account: Account,
    client: Client,
    kind: Kind,
}

impl Scene {
    /// A device that follows two topics and has taken all that there was.
    async fn new(kind: Kind) -> Self {
        let mut config = Config::default();
        (config.edge.window, config.edge.window_per_registration) = (1, 1);
        let node = Node::start_with(config).await;
        let account = node.device().await;
        let topics = ["sport".to_owned(), "alarm".to_owned()];
        let regid = account.regid.clone().unwrap();
        node.service.subscribe(&regid, &topics, By::App(&node.app)).await.unwrap();
        let client = come(&node, &account, kind).await;
        let mut scene = Self { node, account, client, kind };
        if kind == Kind::Frames {
            // What it follows.
            scene.send(None, "ready", Priority::Normal).await;
            while scene.next().await != ["ready"] {}
        }
        scene
    }

    /// To itself or to a topic.
    async fn send(&self, topic: Option<&str>, text: &str, priority: Priority) {
        let target = match topic {
            Some(topic) => Target::Topic(topic.into()),
            None => Target::Regids(vec![self.account.regid.clone().unwrap()]),
        };
        let send = Send { priority: Some(priority), ..message(target, text) };
        self.node.service.send(&self.node.app, send).await.unwrap();
    }

    /// The texts of the next packet, which is acknowledged.
    async fn next(&mut self) -> Vec<String> {
        let publish = self.client.publish().await;
        self.client.ack(publish.packet_id).await;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        match self.kind {
            Kind::Plain => vec![text(publish.payload.to_vec())],
            Kind::Frames => {
                let deltas = frame::decode_down(&publish.payload).unwrap().deltas;
                let deltas = deltas.map(|deltas| deltas.deltas).unwrap_or_default();
                let entries = deltas.into_iter().flat_map(|delta| delta.entries);
                entries.filter_map(|entry| entry.payload.map(text)).collect()
            }
        }
    }

    async fn take(&mut self, count: usize) -> Vec<String> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.next().await);
        }
        all
    }
}

async fn come(node: &Node, account: &Account, kind: Kind) -> Client {
    let connect = Connect { clean_start: false, session_expiry_s: 600, ..Connect::default() };
    let mut client = node.connect(account, connect).await;
    match kind {
        // A session that is there has its subscriptions.
        Kind::Plain if client.session_present => {}
        Kind::Plain => assert_eq!(client.subscribe(&[("push", Qos::AtLeastOnce)]).await, [1]),
        Kind::Frames => {
            client.resume(0).await;
            assert!(client.down().await.ask_positions.is_some());
            let positions = idl::Positions::new(Vec::new(), None);
            client.up(idl::Up { positions: Some(positions), ..up(0) }).await;
            assert!(client.down().await.resumed.is_some());
        }
    }
    client
}

#[tokio::test(start_paused = true)]
async fn what_is_urgent_comes_before_all_that_waits_in_other_queues_and_never_out_of_order() {
    for kind in [Kind::Plain, Kind::Frames] {
        let mut scene = Scene::new(kind).await;
        scene.send(None, "first", Priority::Normal).await;
        let held = scene.client.publish().await;
        // There is no room for these.
        scene.send(None, "own", Priority::Normal).await;
        scene.send(Some("sport"), "sport", Priority::Low).await;
        scene.send(Some("alarm"), "before", Priority::Normal).await;
        scene.send(Some("alarm"), "alarm", Priority::High).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        scene.client.ping().await;
        scene.client.ack(held.packet_id).await;
        let mut came = scene.take(4).await;
        assert_eq!(came[..2], ["before", "alarm"], "{kind:?}: {came:?}");
        came[2..].sort();
        assert_eq!(came[2..], ["own", "sport"], "{kind:?}: {came:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waited_for_a_device_comes_queue_by_queue_its_own_first() {
    let mut scene = Scene::new(Kind::Plain).await;
    scene.client = Client::new(tokio::io::duplex(1).0);
    scene.node.quiet().await;
    scene.send(Some("sport"), "sport", Priority::Low).await;
    scene.send(Some("alarm"), "alarm", Priority::High).await;
    scene.send(None, "own", Priority::Normal).await;
    scene.send(None, "urgent", Priority::High).await;
    scene.client = come(&scene.node, &scene.account, Kind::Plain).await;
    let mut came = scene.take(4).await;
    assert_eq!(came[..2], ["own", "urgent"], "{came:?}");
    came[2..].sort();
    assert_eq!(came[2..], ["alarm", "sport"], "{came:?}");
}
