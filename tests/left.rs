//! A message that reaches a registration by several queues comes once, also to who leaves one of
//! them in between.

mod edge_support;

use carillon::{
    base::ids::{MessageId, QueueName, RegId},
    config::Config,
    queue::{entry::Body, position::Position},
    service::{
        bind::By,
        deliver::{Following, Take},
        send::Target,
    },
};
use edge_support::{Account, Node, message};

struct Scene {
    node: Node,
    account: Account,
    regid: RegId,
}

impl Scene {
    /// A registration that follows these topics.
    async fn new(topics: &[&str]) -> Self {
        let node = Node::start_with(Config::default()).await;
        let account = node.device().await;
        let regid = account.regid.as_deref().unwrap().parse().unwrap();
        let scene = Self { node, account, regid };
        scene.subscribe(topics).await;
        scene
    }

    async fn subscribe(&self, topics: &[&str]) {
        let topics: Vec<String> = topics.iter().map(|one| (*one).to_owned()).collect();
        let by = By::App(&self.node.app);
        self.node.service.subscribe(&self.regid.to_string(), &topics, by).await.unwrap();
    }

    async fn leave(&self, topic: &str) {
        let by = By::App(&self.node.app);
        let regid = self.regid.to_string();
        self.node.service.unsubscribe(&regid, &[topic.to_owned()], by).await.unwrap();
    }

    async fn send(&self, condition: &str) -> MessageId {
        let send = message(Target::Condition(condition.into()), "1");
        let id = self.node.service.send(&self.node.app, send).await.unwrap().id;
        // What is appended behind the answer is there then.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        id
    }

    /// What a topic has for the registration from its pointer on, and where that ends.
    fn look(&self, topic: &str) -> (Vec<MessageId>, Vec<MessageId>, Option<Position>) {
        let service = &self.node.service;
        let device = self.account.id.parse().unwrap();
        let registrations = service.registrations(&device).unwrap();
        let all = service.followings(&registrations[0]);
        let name = QueueName::Topic(self.node.app.clone(), topic.parse().unwrap());
        let is_it = |one: &Following| *one.queue.name() == name;
        let at = all.iter().position(is_it).expect("it follows that");
        let after = service.stored_position(&self.regid, &all[at]).unwrap().seq;
        let take = Take { entries: 100, bytes: usize::MAX };
        let Some(pulled) = service.pull(&all, at, after, take).unwrap() else {
            return (Vec::new(), Vec::new(), None);
        };
        let (mut messages, mut recalls) = (Vec::new(), Vec::new());
        for entry in &pulled.entries {
            match &entry.body {
                Body::Message(message) => messages.push(message.id),
                Body::Recall(recall) => recalls.push(recall.id),
                Body::Follow { .. } | Body::Unfollow { .. } | Body::Change(_) => {}
            }
        }
        (messages, recalls, Some(pulled.to))
    }

    /// The device handles what a topic has.
    fn take(&self, topic: &str) -> Vec<MessageId> {
        let (messages, _, to) = self.look(topic);
        let name = QueueName::Topic(self.node.app.clone(), topic.parse().unwrap());
        self.node.service.acknowledge(&self.regid, name.id(), to.expect("something"), None);
        messages
    }
}

const EITHER: &str = "'a' in topics || 'b' in topics";

#[tokio::test(start_paused = true)]
async fn who_had_a_message_by_a_topic_that_it_left_gets_it_by_no_other() {
    let scene = Scene::new(&["a", "b"]).await;
    let had = scene.send(EITHER).await;
    assert_eq!(scene.take("a"), [had]);
    let pending = scene.send(EITHER).await;
    scene.leave("a").await;
    assert_eq!(scene.look("b").0, [pending], "what waited in the one that it left comes by this");
    // Back again, it begins anew there.
    scene.subscribe(&["a"]).await;
    assert_eq!(scene.look("b").0, [pending]);
    assert_eq!(scene.look("a").0, []);
    let id = had.to_string();
    scene.leave("a").await;
    scene.node.service.recall(&scene.node.app, &id).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let (messages, recalls, _) = scene.look("b");
    assert_eq!((messages, recalls), (vec![pending], vec![had]), "it is told where it is now");
}

#[tokio::test(start_paused = true)]
async fn what_came_before_somebody_followed_a_topic_it_had_not_by_that() {
    let scene = Scene::new(&["b"]).await;
    let early = scene.send(EITHER).await;
    scene.subscribe(&["a"]).await;
    let late = scene.send(EITHER).await;
    assert_eq!(scene.take("a"), [late]);
    scene.leave("a").await;
    assert_eq!(scene.look("b").0, [early]);
}
