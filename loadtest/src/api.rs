//! The app server's side: messages through the HTTP API, or through the admin door with the operator's token.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use reqwest::{Certificate, Client, Url};
use serde::Serialize;

/// Where and as whom messages are sent.
#[derive(Debug, Args)]
pub struct Access {
    /// https://… of the API, or http://… of the admin door
    #[arg(long, value_name = "URL")]
    api: Url,
    /// The app
    #[arg(long)]
    app: String,
    /// The app's secret, or the operator's token
    #[arg(long)]
    secret: String,
    /// The CA that signed the API's certificate, as PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// An app server.
#[derive(Clone, Debug)]
pub struct Api {
    client: Client,
    url: Url,
    secret: String,
}

#[derive(Serialize)]
struct Message<'a> {
    target: Target<'a>,
    payload: Stamp,
    ttl_s: u32,
}

#[derive(Serialize)]
struct Target<'a> {
    regids: &'a [&'a str],
}

/// What a load message carries: its number and when it was sent, in microseconds since the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Stamp {
    pub n: u32,
    pub t: u64,
}

impl Access {
    /// Makes a client that keeps its connections.
    pub fn client(&self) -> anyhow::Result<Api> {
        let host = self.api.host_str().unwrap_or_default();
        let is_local = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        ensure!(is_local, "{} is not this machine", self.api);
        // Somebody may have set it already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut client = Client::builder().no_proxy().timeout(CALL_WITHIN);
        if let Some(ca) = &self.ca {
            let pem = std::fs::read(ca).with_context(|| ca.display().to_string())?;
            client = client.tls_certs_only([Certificate::from_pem(&pem)?]);
        }
        let path = format!("/v1/apps/{}/messages", self.app);
        Ok(Api {
            client: client.build().context("cannot make an HTTP client")?,
            url: self.api.join(&path)?,
            secret: self.secret.clone(),
        })
    }
}

impl Api {
    /// Sends one message to all of these; done when the gateway has it durably.
    pub async fn send(&self, regids: &[&str], payload: Stamp) -> anyhow::Result<()> {
        let message = Message { target: Target { regids }, payload, ttl_s: TTL_S };
        let request = self.client.post(self.url.clone()).bearer_auth(&self.secret).json(&message);
        let answer = request.send().await.context("the API does not answer")?;
        let status = answer.status();
        let body = answer.text().await.context("the API's answer broke off")?;
        if !status.is_success() {
            bail!("the API answered {status}: {body}");
        }
        Ok(())
    }
}

const CALL_WITHIN: Duration = Duration::from_secs(60);
const TTL_S: u32 = 3600;
