//! How the subcommands reach a running node.

use std::{future::Future, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{admin::AdminFile, base::keys::Secret};

/// Which node.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The node's data directory
    #[arg(long, value_name = "DIR", default_value = "data", conflicts_with = "url")]
    data: PathBuf,
    /// Another machine's admin door
    #[arg(long, requires = "token")]
    url: Option<String>,
    /// Its operator's token
    #[arg(long, requires = "url")]
    token: Option<String>,
}

/// A node as its operator reaches it.
pub(super) struct Node {
    client: reqwest::Client,
    url: String,
    token: Secret,
    /// Where the address came from, for errors.
    source: String,
}

/// What we read of a problem.
#[derive(Deserialize)]
struct Problem {
    detail: String,
    code: String,
    trace_id: String,
}

impl Which {
    pub(super) fn node(self) -> anyhow::Result<Node> {
        let (file, source) = match (self.url, self.token) {
            (Some(url), Some(token)) => (
                AdminFile { url, token: Secret::stated(token), listen: Default::default() },
                "--url".to_owned(),
            ),
            _ => {
                let path = AdminFile::path(&self.data);
                let read = AdminFile::read(&self.data);
                let file = read.context(FIND_IT)?;
                (file, path.display().to_string())
            }
        };
        // The default may be set already, by an earlier node of this process.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .build()
            .context("cannot make an HTTP client")?;
        let url = file.url.trim_end_matches('/').to_owned();
        Ok(Node { client, url, token: file.token, source })
    }
}

impl Node {
    pub(super) async fn read<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::GET, path, None::<&()>).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::DELETE, path, None::<&()>).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let url = format!("{}{path}", self.url);
        let mut request = self.client.request(method, url).bearer_auth(self.token.reveal());
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable =
            || format!("the gateway at {} (from {}) does not answer", self.url, self.source);
        // The path is in the cause already, and with it the address.
        let answer =
            request.send().await.map_err(reqwest::Error::without_url).with_context(unreachable)?;
        let status = answer.status();
        let bytes =
            answer.bytes().await.map_err(reqwest::Error::without_url).with_context(unreachable)?;
        if status == StatusCode::UNAUTHORIZED {
            bail!("the gateway at {} does not accept the token from {}", self.url, self.source);
        }
        if !status.is_success() {
            return Err(refused(status, &bytes));
        }
        serde_json::from_slice(&bytes)
            .with_context(|| format!("the answer of {} cannot be read", self.url))
    }
}

fn refused(status: StatusCode, body: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<Problem>(body) {
        Ok(Problem { detail, code, trace_id }) => anyhow!("{detail} ({code}, trace id {trace_id})"),
        Err(_) => anyhow!("the gateway answered {status}"),
    }
}

/// Runs one command's calls.
pub(super) fn block_on<F: Future<Output = anyhow::Result<()>>>(command: F) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(command)
}

/// Makes a text fit for one segment of a path.
pub(super) fn segment(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~');
    text.bytes()
        .map(|b| if is_plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

const FIND_IT: &str = "cannot find a running gateway (give its --data, or --url and --token)";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bulk calls write many records.
const CALL_TIMEOUT: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_with_its_trace() {
        let body = br#"{"title":"t","detail":"no such app","code":"not_found","trace_id":"00ff"}"#;
        assert_eq!(
            refused(StatusCode::NOT_FOUND, body).to_string(),
            "no such app (not_found, trace id 00ff)"
        );
        assert!(refused(StatusCode::BAD_GATEWAY, b"<html>").to_string().contains("502"));
    }

    #[test]
    fn a_segment_cannot_leave_its_place() {
        assert_eq!(segment("../a b"), "%2E%2E%2Fa%20b");
    }
}
