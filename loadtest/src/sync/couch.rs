//! PouchDB server as `sync` uses it: one database, and PouchDB's replication as its devices.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use reqwest::{Client as Http, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Client;
use super::corpus::Item;
use super::{Call, Changed};
use crate::peers::{Peer, node};

/// See the module.
pub struct Couch {
    pub peer: Peer,
    http: Http,
    database: Url,
    modules: PathBuf,
    batch: usize,
    /// What a change of a document must name.
    pub revs: HashMap<String, String>,
}

/// What became of a document.
#[derive(Deserialize)]
struct Done {
    id: String,
    rev: String,
}

impl Couch {
    /// `batch`: documents that replication asks for at a time.
    pub async fn start(modules: &Path, batch: usize) -> anyhow::Result<Self> {
        let peer = Peer::pouchdb(modules).await?;
        let database: Url = format!("http://{}/items", peer.addr).parse()?;
        let http = Http::builder().no_proxy().build()?;
        let made = http.put(database.clone()).send().await?;
        ensure!(made.status().is_success(), "no database: {}", made.text().await?);
        let modules = modules.to_owned();
        Ok(Self { peer, http, database, modules, batch, revs: HashMap::new() })
    }

    /// The app server changes documents.
    pub fn call(&self, items: &[Item]) -> anyhow::Result<Call> {
        let mut documents = Vec::with_capacity(items.len());
        for Item { collection, key, value } in items {
            let id = format!("{collection}:{key}");
            let mut document = value.clone();
            if let Some(rev) = self.revs.get(&id) {
                document["_rev"] = json!(rev);
            }
            document["_id"] = json!(id);
            documents.push(document);
        }
        let url: Url = format!("{}/_bulk_docs", self.database).parse()?;
        let body = serde_json::to_string(&json!({ "docs": documents }))?;
        let call = self.http.post(url).header("content-type", "application/json").body(body);
        let count = items.len();
        Ok(Box::pin(async move {
            let answer = call.send().await?.text().await?;
            let results: Vec<Done> =
                serde_json::from_str(&answer).with_context(|| answer.clone())?;
            ensure!(results.len() == count, "{} of {count} were changed", results.len());
            Ok(Changed::Revs(results.into_iter().map(|Done { id, rev }| (id, rev)).collect()))
        }))
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        Client::start(self.peer.addr, |addr| {
            let folder = self.peer.dir().join("replicas");
            std::fs::create_dir(&folder)?;
            let script = include_str!("../peers/couch/client.js");
            let mut command = node(&self.modules, self.peer.dir(), "client.js", script)?;
            command.arg(folder).arg(format!("http://{addr}/items")).arg(self.batch.to_string());
            Ok(command)
        })
    }
}

/// What of a document is PouchDB's own.
pub fn without_own(mut document: Value) -> Value {
    if let Some(fields) = document.as_object_mut() {
        fields.retain(|name, _| !name.starts_with('_'));
    }
    document
}
