//! The gateway's API as the fleet's senders call it, through crashes and restarts.

use std::{fs, path::PathBuf};

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{device::Account, fleet::Door};
use crate::support::{APP, Admin, DEADLINE, Node, poll_until};

/// The API.
pub(super) struct Api {
    client: reqwest::Client,
    access: Access,
}

enum Access {
    /// Credentials and port outlive a restart.
    Https { url: String, secret: String },
    /// The token is new after each start, and in a file.
    Admin { file: PathBuf },
}

impl Api {
    pub(super) fn of(node: &Node, door: Door) -> Self {
        let access = match door {
            Door::Https => {
                Access::Https { url: node.https_url(), secret: node.app().app_secret.clone() }
            }
            Door::Admin => Access::Admin { file: node.data().join("admin.json") },
        };
        Self { client: node.https_client(), access }
    }

    /// Where the API is now and the bearer that it takes; none while the node is away.
    fn address(&self) -> Option<(String, String)> {
        match &self.access {
            Access::Https { url, secret } => Some((url.clone(), secret.clone())),
            Access::Admin { file } => {
                let admin: Admin = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
                Some((admin.url, admin.token))
            }
        }
    }

    /// An answer, or none if the connection failed before its end.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Option<(StatusCode, Value)> {
        let (url, bearer) = self.address()?;
        let request = self.client.request(method, format!("{url}{path}")).bearer_auth(bearer);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let response = request.send().await.ok()?;
        let status = response.status();
        let text = response.text().await.ok()?;
        Some((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }
}

/// Devices of the demo app.
pub(super) async fn create_accounts(node: &Node, count: usize) -> Vec<Account> {
    let csv = node.cli(&["device", "create", "--app", APP, "--count", &count.to_string()]).await;
    let account = |row: &str| {
        let [device_id, secret, regid] = row
            .split(',')
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .try_into()
            .expect("three columns");
        Account { device_id, secret, regid }
    };
    let accounts: Vec<Account> = csv.lines().skip(1).map(account).collect();
    assert_eq!(accounts.len(), count);
    accounts
}

/// Waits until a message is in all its queues, or taken back.
pub(super) async fn wait_until_sent(node: &Node, id: &str) {
    let path = format!("/v1/apps/{APP}/messages/{id}");
    let mut last = Value::Null;
    let sent = poll_until(DEADLINE, async || {
        last = node.call(Method::GET, &path, None).await.body;
        (last["state"] == "queued" || last["state"] == "recalled").then_some(())
    });
    assert!(sent.await.is_some(), "never sent: {last}");
}
