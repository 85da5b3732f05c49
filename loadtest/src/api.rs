//! The app server's side of a gateway: messages, aliases and topics through the HTTP API.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use reqwest::{Certificate, Client, Method, Url, header::CONTENT_TYPE};
use serde_json::{Value, json, value::RawValue};
use tokio::task::JoinSet;

use crate::credentials::Credentials;
use crate::report::Line;

/// Where and as whom messages are sent.
#[derive(Clone, Debug, Default, Args)]
pub struct Access {
    /// A gateway's API, https://…
    #[arg(long, value_name = "URL")]
    pub api: Option<Url>,
    /// The app
    #[arg(long, default_value = "demo")]
    pub app: String,
    /// The app's secret (a gateway's demo app has it in <data>/demo-app.json)
    #[arg(long)]
    pub secret: Option<String>,
}

/// An app server.
#[derive(Clone, Debug)]
pub struct Api {
    client: Client,
    url: Url,
    app: String,
    secret: String,
}

impl Access {
    /// Makes a client that keeps its connections. `ca` signed the API's certificate.
    pub fn client(&self, ca: Option<&PathBuf>, allow_remote: bool) -> anyhow::Result<Api> {
        let url =
            self.api.clone().context("a gateway gets its messages by --api https://ADDR:PORT")?;
        let secret = self.secret.clone().context("--api needs --secret, the app's secret")?;
        let host = url.host_str().unwrap_or_default();
        let is_local = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        ensure!(is_local || allow_remote, "{url} is not this machine (--allow-remote)");
        // Somebody may have set it already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut client = Client::builder().no_proxy().timeout(CALL_WITHIN);
        if let Some(ca) = ca {
            let pem = std::fs::read(ca).with_context(|| ca.display().to_string())?;
            client = client.tls_certs_only([Certificate::from_pem(&pem)?]);
        }
        let client = client.build().context("cannot make an HTTP client")?;
        Ok(Api { client, url, app: self.app.clone(), secret })
    }
}

impl Api {
    /// Opens so many connections, so that no message waits for a handshake.
    pub async fn warm(&self, connections: usize) -> anyhow::Result<()> {
        let url = self.url.join("/healthz")?;
        let mut calls = JoinSet::new();
        for _ in 0..connections {
            let (api, url) = (self.clone(), url.clone());
            calls.spawn(async move { api.call(Method::GET, url, None::<&()>).await.map(drop) });
        }
        while !calls.is_empty() {
            one_is_done(&mut calls).await?;
        }
        Ok(())
    }

    /// Sends a message to one of these, or one each in a batch; done when the gateway has them durably.
    pub async fn send_to(&self, regids: &[&str], payload: &str) -> anyhow::Result<()> {
        if let [regid] = regids {
            return self.send(json!({ "regids": [regid] }), payload, None).await;
        }
        let url = self.url.join(&format!("/v1/apps/{}/messages:batch", self.app))?;
        let answer = self.call_with(Method::POST, url, Some(batch(regids, payload))).await?;
        #[derive(serde::Deserialize)]
        struct Results {
            accepted: usize,
        }
        let Results { accepted } = serde_json::from_str(&answer)?;
        ensure!(accepted == regids.len(), "of {} messages {accepted} were accepted", regids.len());
        Ok(())
    }

    /// Sends one message to one registration.
    pub async fn send_one(&self, regid: &str, payload: &str, priority: &str) -> anyhow::Result<()> {
        self.send(json!({ "regids": [regid] }), payload, Some(priority)).await
    }

    /// Sends one message to a topic.
    pub async fn send_topic(&self, topic: &str, payload: &str) -> anyhow::Result<()> {
        self.send_topic_as(topic, payload, None).await
    }

    /// The same with a priority.
    pub async fn send_topic_as(
        &self,
        topic: &str,
        payload: &str,
        priority: Option<&str>,
    ) -> anyhow::Result<()> {
        self.send(json!({ "topic": topic }), payload, priority).await
    }

    async fn send(
        &self,
        target: Value,
        payload: &str,
        priority: Option<&str>,
    ) -> anyhow::Result<()> {
        #[derive(serde::Serialize)]
        struct Message<'a> {
            target: Value,
            payload: Box<RawValue>,
            ttl_s: u32,
            #[serde(skip_serializing_if = "Option::is_none")]
            priority: Option<&'a str>,
        }
        let payload = RawValue::from_string(payload.to_owned())?;
        let message = Message { target, payload, ttl_s: TTL_S, priority };
        let url = self.url.join(&format!("/v1/apps/{}/messages", self.app))?;
        self.call(Method::POST, url, Some(&message)).await.map(drop)
    }

    /// Subscribes every registration to one of `topics` topics, in turn.
    pub async fn subscribe_all(&self, devices: &Credentials, topics: usize) -> anyhow::Result<()> {
        let topics = topics.max(1);
        for topic in 0..topics {
            let mine = (topic..devices.count()).step_by(topics);
            let mine: Vec<&str> = mine.map(|at| devices.device(at).regid).collect();
            for regids in mine.chunks(REGIDS_A_CALL) {
                self.subscribe(&topic_name(topic), regids).await?;
            }
        }
        Ok(())
    }

    /// Binds an alias of its own to every registration.
    pub async fn bind_all(&self, devices: &Credentials, line: &Line) -> anyhow::Result<()> {
        let mut calls = JoinSet::new();
        for at in 0..devices.count() {
            if calls.len() >= CALLS_AT_ONCE {
                one_is_done(&mut calls).await?;
            }
            if at % 1000 == 0 {
                line.show(&format!("{at} aliases bound"));
            }
            let (api, regid) = (self.clone(), devices.device(at).regid.to_owned());
            calls.spawn(async move { api.bind(&regid, &format!("load-{at}")).await });
        }
        while !calls.is_empty() {
            one_is_done(&mut calls).await?;
        }
        Ok(())
    }

    /// The same as the app server of another app.
    pub fn of(&self, app: &str, secret: &str) -> Self {
        Self { app: app.to_owned(), secret: secret.to_owned(), ..self.clone() }
    }

    /// Declares a collection.
    pub async fn declare(&self, collection: &str) -> anyhow::Result<()> {
        let path = format!("/v1/apps/{}/collections/{collection}", self.app);
        let rule = json!({ "rule": "newest" });
        self.call(Method::PUT, self.url.join(&path)?, Some(&rule)).await.map(drop)
    }

    /// Changes items of an alias; the seq of the last change.
    pub async fn change(&self, alias: &str, changes: String) -> anyhow::Result<u64> {
        #[derive(serde::Deserialize)]
        struct Results {
            results: Vec<Changed>,
        }
        #[derive(serde::Deserialize)]
        struct Changed {
            outcome: String,
            seq: Option<u64>,
        }
        let url = self.url.join(&format!("/v1/apps/{}/aliases/{alias}/changes", self.app))?;
        let answer = self.call_with(Method::POST, url, Some(changes)).await?;
        let Results { results } = serde_json::from_str(&answer)?;
        let is_good = results.iter().all(|one| one.outcome == "applied");
        ensure!(is_good, "not all changes were applied: {answer}");
        results.last().and_then(|last| last.seq).context("no change has a seq")
    }

    /// What a page of the node's says.
    pub async fn page(&self, url: Url) -> anyhow::Result<String> {
        self.call_with(Method::GET, url, None).await
    }

    pub async fn bind(&self, regid: &str, alias: &str) -> anyhow::Result<()> {
        let path = format!("/v1/apps/{}/registrations/{regid}/aliases/{alias}", self.app);
        self.call(Method::PUT, self.url.join(&path)?, None::<&()>).await.map(drop)
    }

    async fn subscribe(&self, topic: &str, regids: &[&str]) -> anyhow::Result<()> {
        let body = json!({ "regids": regids });
        let path = format!("/v1/apps/{}/topics/{topic}:subscribe", self.app);
        let answer = self.call(Method::POST, self.url.join(&path)?, Some(&body)).await?;
        let answer: Value = serde_json::from_str(&answer)?;
        let failed = answer["failed"].as_array().map_or(0, Vec::len);
        ensure!(failed == 0, "{failed} registrations could not subscribe: {answer}");
        Ok(())
    }

    async fn call(
        &self,
        method: Method,
        url: Url,
        body: Option<&impl serde::Serialize>,
    ) -> anyhow::Result<String> {
        self.call_with(method, url, body.map(serde_json::to_string).transpose()?).await
    }

    async fn call_with(
        &self,
        method: Method,
        url: Url,
        body: Option<String>,
    ) -> anyhow::Result<String> {
        let mut request = self.client.request(method, url).bearer_auth(&self.secret);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let answer = request.send().await.context("the API does not answer")?;
        let status = answer.status();
        let body = answer.text().await.context("the API's answer broke off")?;
        if !status.is_success() {
            bail!("the API answered {status}: {body}");
        }
        Ok(body)
    }
}

/// A message to each, as the gateway wants it. By hand: what the generator spends is measured with
/// the gateway. Payloads are JSON already, and regIDs need no escapes.
fn batch(regids: &[&str], payload: &str) -> String {
    let ttl = TTL_S.to_string();
    let mut body = String::with_capacity(regids.len() * (payload.len() + 100) + 20);
    for (at, regid) in regids.iter().enumerate() {
        body.push_str(if at == 0 { r#"{"messages":["# } else { "," });
        let target = [r#"{"target":{"regids":[""#, regid, r#""]},"payload":"#];
        let rest = [payload, r#","ttl_s":"#, &ttl, "}"];
        target.iter().chain(&rest).for_each(|part| body.push_str(part));
    }
    body.push_str("]}");
    body
}

async fn one_is_done(calls: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    calls.join_next().await.map_or(Ok(()), |call| call.context("a call")?)
}

/// The topics of [`Api::subscribe_all`]; fan-outs go to the first one.
pub fn topic_name(topic: usize) -> String {
    format!("load-{topic}")
}

const CALL_WITHIN: Duration = Duration::from_secs(60);
const TTL_S: u32 = 3600;
const REGIDS_A_CALL: usize = 1000;
const CALLS_AT_ONCE: usize = 64;
