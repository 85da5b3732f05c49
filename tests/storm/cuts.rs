//! N1: every connection is cut at a random byte, again and again. In the slow set for 30 minutes,
//! at some 2,000 deliveries a second.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use crate::{
    flood::size,
    ledger::{
        Dice,
        fleet::{Fleet, Plan},
    },
    support::Node,
};

/// A proxy that lets each connection live for a while, and cuts it then: between any two
/// bytes, both ways at once.
async fn cutting_proxy(
    to: SocketAddr,
    mut dice: Dice,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("a port");
    let serving = tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.expect("a socket");
            let mut dice = dice.fork();
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(to).await else { return };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let life = dice.millis(100..size(2_000, 5_000) as u64);
                let (mut near_in, mut near_out) = near.into_split();
                let (mut far_in, mut far_out) = far.into_split();
                let both = async {
                    let up = relay(&mut near_in, &mut far_out, dice.fork());
                    let down = relay(&mut far_in, &mut near_out, dice.fork());
                    tokio::select! { () = up => {}, () = down => {} }
                };
                // The end of a life finds some bytes passed on and others not.
                let _ = timeout(life, both).await;
            });
        }
    });
    (address, serving)
}

/// Passes bytes on in pieces of any size, so that a cut may come within a packet.
async fn relay(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut dice: Dice,
) {
    let mut buffer = [0; 4_096];
    loop {
        let most = 1 + dice.index(buffer.len());
        let Ok(count @ 1..) = from.read(&mut buffer[..most]).await else { return };
        let (first, second) = buffer[..count].split_at(dice.index(count + 1));
        if to.write_all(first).await.is_err() {
            return;
        }
        if dice.percent(10) {
            // Here a cut falls between two bytes of one write.
            sleep(dice.millis(0..30)).await;
        }
        if to.write_all(second).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_at_any_byte_lose_nothing_and_keep_the_order() {
    let mut dice = Dice::of_this_run("cuts");
    let node = Node::start().await;
    let (address, proxy) = cutting_proxy(node.listen().mqtt, dice.fork()).await;
    let devices_at = Some(address);
    let plan = Plan { devices: size(30, 200), devices_at, ..Plan::default() };
    let mut fleet = Fleet::set_up(&node, plan, dice.fork()).await;
    fleet.start_load();
    // The length of the run is its size: no event ends it.
    sleep(Duration::from_secs(size(6, 1_800) as u64)).await;
    fleet.stop_load().await;
    fleet.settle(&node).await;
    let report = fleet.end().await;
    println!("cuts: {report}");
    assert!(report.connections > 100, "connections were cut: {report}");
    proxy.abort();
}
