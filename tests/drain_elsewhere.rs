//! A device of the SDK goes where a draining node sends it, and comes home when nobody is there.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use carillon_sdk::{Credentials, Device, Endpoint, MemoryStore, Received};
use reqwest::Method;
use serde_json::json;
use support::{APP, DEADLINE, Node, Options};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

/// An address of the gateway's: what comes there goes on to the node.
struct Way {
    at: SocketAddr,
    used: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Way {
    async fn open(listener: TcpListener, node: SocketAddr) -> Self {
        let (at, used) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = used.clone();
        let task = tokio::spawn(async move {
            let mut passing = JoinSet::new();
            loop {
                let Ok((mut device, _)) = listener.accept().await else { return };
                passing.spawn(async move {
                    // A node that starts makes its devices wait, no more.
                    let mut gateway = loop {
                        match TcpStream::connect(node).await {
                            Ok(gateway) => break gateway,
                            Err(_) => sleep(Duration::from_millis(20)).await,
                        }
                    };
                    // However it ends, both ends are closed.
                    let _ = copy_bidirectional(&mut device, &mut gateway).await;
                });
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { at, used, task }
    }

    fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    /// Nobody listens there any more, and its connections are cut.
    async fn close(self) {
        self.task.abort();
        assert!(self.task.await.is_err());
    }
}

async fn deliver(
    node: &Node,
    regid: &str,
    number: u32,
    heard: &mut mpsc::UnboundedReceiver<Vec<u8>>,
) {
    let body = json!({"target": {"regids": [regid]}, "payload": number});
    let path = format!("/v1/apps/{APP}/messages");
    assert_eq!(node.call(Method::POST, &path, Some(body)).await.status.as_u16(), 202);
    let payload = timeout(DEADLINE, heard.recv()).await.expect("it comes").expect("a device");
    assert_eq!(payload, number.to_string().into_bytes());
}

#[tokio::test]
async fn advice_names_a_server_and_the_device_goes_there_until_it_is_gone() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config =
        format!("[drain]\nserver = \"{}\"\nreconnect_s = 1\n", elsewhere.local_addr().unwrap());
    let options = Options { config: Some(config), ..Options::default() };
    let mut node = Node::start_with(options).await;
    let mqtt = node.listen().mqtt;
    let home = Way::open(TcpListener::bind("127.0.0.1:0").await.unwrap(), mqtt).await;
    let elsewhere = Way::open(elsewhere, mqtt).await;

    let account = node.create_device().await;
    let endpoint: Endpoint = format!("tcp://{}", home.at).parse().unwrap();
    let credentials =
        Credentials { device_id: account.device_id.clone(), secret: account.secret.clone() };
    let (tell, mut heard) = mpsc::unbounded_channel();
    let handler = move |received| {
        if let Received::Message(message) = received {
            tell.send(message.payload.to_vec()).unwrap();
        }
        std::future::ready(())
    };
    let device = Device::builder_with_store(endpoint, credentials, MemoryStore::default())
        .connect_with(handler)
        .await
        .unwrap();
    deliver(&node, &account.regid, 1, &mut heard).await;
    assert_eq!((home.used(), elsewhere.used()), (1, 0));

    assert!(node.terminate().await.success());
    node.restart().await;
    deliver(&node, &account.regid, 2, &mut heard).await;
    assert_eq!(home.used(), 1, "it was sent elsewhere");
    assert!(elsewhere.used() > 0);

    elsewhere.close().await;
    deliver(&node, &account.regid, 3, &mut heard).await;
    assert_eq!(home.used(), 2, "nobody was there, so it came home");
    device.shutdown().await;
}
