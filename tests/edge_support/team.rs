//! Devices of one user, whose alias has collections.

use std::collections::BTreeMap;

use carillon::{
    base::ids::AppId,
    queue::collection::rule::Rule,
    service::{apps::NewApp, bind::By, records::AliasPolicy, register::FirstRegistration},
};
use carillon_wire::{digest::kind_byte, idl};

use super::{Account, Node, up, visitor::Visitor};

pub const ALIAS: &str = "ann";

/// An app whose aliases only app servers bind, with a collection for each of these.
pub async fn app_with(node: &Node, collections: &[(&str, Rule)]) -> NewApp {
    let app = node.service.create_app("notes", AliasPolicy::Server).await.unwrap();
    for (name, rule) in collections {
        node.service.declare(&app.app_id, name, *rule).await.unwrap();
    }
    app
}

/// A device of an app, with a registration.
pub async fn device_of(node: &Node, app: &NewApp) -> Account {
    let (name, key) = (app.app_id.to_string(), app.app_key.reveal().to_owned());
    let new = node.service.create_device(&name, &key, FirstRegistration::Yes).await.unwrap();
    Account {
        id: new.device_id.to_string(),
        secret: new.secret.reveal().to_owned(),
        regid: new.regid.map(|regid| regid.to_string()),
    }
}

/// The same, signed in to [`ALIAS`].
pub async fn member(node: &Node, app: &NewApp) -> Account {
    let account = device_of(node, app).await;
    bind(node, &app.app_id, &account).await;
    account
}

pub async fn bind(node: &Node, app: &AppId, account: &Account) {
    let regid = account.regid.as_ref().unwrap();
    node.service.bind(regid, ALIAS, By::App(app)).await.unwrap();
}

/// An edit of a note, made at this time by who had seen so much. No text: a delete.
pub fn edit(cseq: i64, key: &str, text: Option<&str>, base_seq: i64, time: u64) -> idl::Edit {
    idl::Edit {
        cseq,
        collection: "notes".to_owned(),
        key: key.to_owned(),
        value: text.map(|text| text.as_bytes().to_vec()),
        format: None,
        base_seq,
        clock: clock(time),
    }
}

/// A hybrid clock of a time in the past.
pub fn clock(time: u64) -> i64 {
    ((1_700_000_000_000 + time) << 16).cast_signed()
}

pub fn upload(request: i64, account: &Account, epoch: i32, edits: Vec<idl::Edit>) -> idl::Up {
    let (regid, alias_name) = (account.regid.clone().unwrap(), ALIAS.to_owned());
    idl::Up { upload: Some(idl::Upload { regid, alias_name, epoch, edits }), ..up(request) }
}

/// The outcomes of a result, each with its number.
pub fn outcomes(result: &idl::Result) -> Vec<(i64, idl::EditOutcome)> {
    let edits = result.edits.as_deref().unwrap_or_default();
    edits.iter().map(|edit| (edit.cseq, edit.outcome)).collect()
}

impl Visitor<'_> {
    /// Where it stands in the queue of [`ALIAS`].
    pub fn at(&self) -> (i32, i64) {
        let kind = kind_byte(idl::QueueKind::ALIAS).unwrap();
        let key = (self.account.regid.clone().unwrap(), kind, ALIAS.to_owned());
        let held = self.held.get(&key).expect("it follows the alias");
        (held.epoch, held.seq)
    }

    /// Visits until it stands at this seq of [`ALIAS`]: a snapshot waits for the storage writer.
    pub async fn reach(&mut self, seq: u64) {
        for _ in 0..2_000 {
            self.catch_up().await;
            if self.at().1 as u64 == seq {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        panic!("it stands at {:?}, not at {seq}", self.at());
    }

    /// What the changes that it was given make of its items; of its own edits it has the values.
    pub fn items(&self, own: &BTreeMap<i64, idl::Edit>) -> BTreeMap<String, String> {
        let mut items = BTreeMap::new();
        for (_, change) in &self.changes {
            if change.kind == idl::ChangeKind::DELETE {
                items.remove(&change.key);
                continue;
            }
            let own = || own[&change.cseq.expect("a value, or an own edit")].value.clone();
            let value = change.value.clone().or_else(own).expect("a value");
            items.insert(change.key.clone(), String::from_utf8(value).unwrap());
        }
        items
    }
}
