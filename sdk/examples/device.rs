//! A device in a terminal: connects, follows what it is told to, and prints what it receives.
//!
//! ```text
//! device tcp://127.0.0.1:1883 DEVICE_ID SECRET state.json [APP_ID APP_KEY [ALIAS [TOPIC…]]]
//! device tls://localhost:8883,ca.pem DEVICE_ID SECRET state.json
//! ```

use anyhow::Context;
use carillon_sdk::{Credentials, Device, Endpoint, Received};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, device_id, secret, state, rest @ ..] = args.as_slice() else {
        anyhow::bail!("device ENDPOINT DEVICE_ID SECRET STATE [APP_ID APP_KEY [ALIAS [TOPIC…]]]");
    };
    let endpoint = match endpoint.split_once(',') {
        Some((endpoint, roots)) => endpoint.parse::<Endpoint>()?.trust(roots.as_ref())?,
        None => endpoint.parse()?,
    };
    let credentials = Credentials { device_id: device_id.clone(), secret: secret.clone() };
    let device = Device::builder(endpoint, credentials, state)
        .connect_with(|received| async move { print(&received) })
        .await
        .context("cannot start")?;
    device.online().await?;
    eprintln!("online");
    if let [app_id, app_key, rest @ ..] = rest {
        let regid = device.register(app_id, app_key).await?;
        eprintln!("registered as {regid}");
        if let [alias, topics @ ..] = rest {
            device.bind(&regid, alias, None).await?;
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            if !topics.is_empty() {
                device.subscribe(&regid, &topics).await?;
            }
        }
    }
    tokio::select! {
        reason = device.stopped() => eprintln!("stopped: {reason}"),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            device.shutdown().await;
        }
    }
    Ok(())
}

fn print(received: &Received) {
    match received {
        Received::Message(message) => {
            let payload = String::from_utf8_lossy(&message.payload);
            println!("{} {} {payload}", message.id, message.queue);
        }
        Received::Unopened { regid, queue, seq } => {
            println!("{regid}: {seq} of {queue} cannot be opened")
        }
        Received::KeyMissing { regid } => println!("{regid} needs a key: register again"),
        Received::Recalled { id, .. } => println!("{id} is taken back"),
        Received::Ended { regid } => println!("{regid} has ended"),
        Received::Renewed { expired, regid, .. } => println!("{expired} is {regid} now"),
    }
}
