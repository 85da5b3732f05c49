//! Waits for what a node shows of a registration.

use serde_json::Value;

use super::{APP, DEADLINE, Node, poll_until};

impl Node {
    /// Waits until the registration has acknowledged everything that it follows, for as long
    /// as it goes on doing so.
    pub async fn wait_until_acknowledged(&self, regid: &str) {
        self.wait_until_acknowledged_for(APP, regid).await;
    }

    /// The same for another app's registration.
    pub async fn wait_until_acknowledged_for(&self, app: &str, regid: &str) {
        let (mut last, mut acked) = (Value::Null, Vec::new());
        loop {
            let done = poll_until(DEADLINE, async || {
                last = self.registration_for(app, regid).await;
                let pointers = last["pointers"].as_array().expect("pointers");
                let now: Vec<Value> = pointers.iter().map(|p| p["acked"].clone()).collect();
                let is_open = pointers.iter().any(|p| p["acked"] != p["head"]);
                let has_moved = now != acked;
                acked = now;
                (has_moved || !is_open).then_some(is_open)
            });
            match done.await {
                Some(true) => {}
                Some(false) => return,
                None => panic!("nothing more is acknowledged: {last}"),
            }
        }
    }

    /// Waits until the registration's device is connected, or no longer is.
    pub async fn wait_until_online(&self, regid: &str, online: bool) {
        let is = async || (self.registration(regid).await["online"] == online).then_some(());
        assert!(poll_until(DEADLINE, is).await.is_some(), "never became online: {online}");
    }
}
