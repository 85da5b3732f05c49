//! Tenants and their credentials.

use std::{collections::BTreeMap, sync::Arc};

use aws_lc_rs::{digest, hmac};
use serde::{Deserialize, Serialize};

use super::{
    Error, Service,
    receipts::signature,
    records::{AliasPolicy, App, AppSecret},
    seals::{AppSeal, SealState},
};
use crate::{
    base::{
        ids::{AppId, Shard, base32, from_base32},
        keys::Secret,
    },
    queue::{
        store::{Range, Space, decode, encode},
        txn::Txn,
    },
};

/// Live secrets of one app.
const SECRETS_MAX: usize = 8;
/// Apps that one list shows.
const APPS_MAX: usize = 10_000;
/// All app records live on one shard: they change rarely.
pub(super) const APPS_SHARD: Shard = Shard(0);

const NO_APP: Error = Error::NotFound { what: "app" };
const UNAUTHORIZED: Error = Error::Forbidden("unknown app or wrong app secret");

/// A new tenant as its maker sees it, once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewApp {
    /// Its name.
    pub app_id: AppId,
    /// For devices.
    pub app_key: Secret,
    /// For app servers.
    pub app_secret: Secret,
}

impl NewApp {
    /// New credentials for a tenant.
    pub fn random(app_id: AppId) -> Self {
        Self { app_id, app_key: Secret::random(), app_secret: Secret::random() }
    }
}

/// A tenant as a list shows it.
#[derive(Clone, Debug, Serialize)]
pub struct AppSummary {
    /// Its name.
    pub app_id: AppId,
    /// Who may bind an alias.
    pub alias_policy: AliasPolicy,
    /// How many secrets are live.
    pub secrets: usize,
    /// It was ended; its name is not given again.
    pub is_revoked: bool,
    /// Its sealing.
    pub seal: SealState,
}

/// What happens to the older secrets at a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OlderSecrets {
    /// They stay live, until the next rotation that revokes.
    Keep,
    /// They end now.
    Revoke,
}

impl Service {
    /// Creates a tenant.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Conflict`], [`Error::Unavailable`].
    pub async fn create_app(&self, id: &str, policy: AliasPolicy) -> Result<NewApp, Error> {
        let new = NewApp::random(id.parse()?);
        self.create_app_as(&new, policy).await?;
        Ok(new)
    }

    /// Creates a tenant whose credentials are made already.
    ///
    /// # Errors
    /// As [`Service::create_app`].
    pub async fn create_app_as(&self, new: &NewApp, policy: AliasPolicy) -> Result<(), Error> {
        let app = App {
            id: new.app_id.clone(),
            key: self.keys.hash(new.app_key.reveal().as_bytes()),
            secrets: vec![self.app_secret(&new.app_secret)],
            alias_policy: policy,
            is_revoked: false,
            seal: AppSeal::default(),
            collections: BTreeMap::new(),
        };
        let change = move |txn: &mut Txn<'_>| {
            let key = app.id.as_str().as_bytes().to_vec();
            if txn.get(Space::Apps, &key)?.is_some() {
                return Err(Error::Conflict("an app of this name"));
            }
            txn.put(Space::Apps, key, encode(&app));
            Ok(())
        };
        self.router.run(APPS_SHARD, change).await
    }

    /// All tenants.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn apps(&self) -> Result<Vec<AppSummary>, Error> {
        let summary = |app: App| AppSummary {
            app_id: app.id,
            alias_policy: app.alias_policy,
            secrets: app.secrets.len(),
            is_revoked: app.is_revoked,
            seal: app.seal.state(),
        };
        Ok(self.app_records()?.into_iter().map(summary).collect())
    }

    pub(super) fn app_records(&self) -> Result<Vec<App>, Error> {
        let records = self.router.scan(Space::Apps, &Range::prefix(b""), APPS_MAX)?;
        records.iter().map(|(_, bytes)| Ok(decode(bytes)?)).collect()
    }

    /// Gives a tenant one more secret.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Limit`] (too many live ones), [`Error::Unavailable`].
    pub async fn rotate_secret(&self, app: &str, older: OlderSecrets) -> Result<Secret, Error> {
        let id: AppId = app.parse()?;
        let secret = Secret::random();
        let stored = self.app_secret(&secret);
        let change = move |txn: &mut Txn<'_>| {
            let mut app = load_app(txn, &id)?;
            if older == OlderSecrets::Revoke {
                app.secrets.clear();
            }
            if app.secrets.len() >= SECRETS_MAX {
                let what = "live secrets of an app; revoke the older ones";
                return Err(Error::Limit { what, max: SECRETS_MAX });
            }
            app.secrets.push(stored);
            txn.put(Space::Apps, id.as_str().as_bytes(), encode(&app));
            Ok(())
        };
        self.router.run(APPS_SHARD, change).await?;
        Ok(secret)
    }

    /// The tenant whose secret this is.
    ///
    /// # Errors
    /// [`Error::Forbidden`], the same for an unknown app and a wrong secret; [`Error::Unavailable`].
    pub fn authorize(&self, app: &str, secret: &str) -> Result<AppId, Error> {
        let id: AppId = app.parse().map_err(|_| UNAUTHORIZED)?;
        let app = self.app_record(&id)?.ok_or(UNAUTHORIZED)?;
        let hashes = app.secrets.iter().map(|stored| &stored.hash);
        if !self.keys.is_one_of(hashes, secret.as_bytes()) {
            return Err(UNAUTHORIZED);
        }
        Ok(id)
    }

    /// The tenant of this name, for an operator.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub fn app(&self, app: &str) -> Result<AppId, Error> {
        let id: AppId = app.parse().map_err(|_| NO_APP)?;
        self.app_record(&id)?.map(|app| app.id.clone()).ok_or(NO_APP)
    }

    /// The tenant that a device names with its key.
    pub(super) fn app_by_key(&self, app_id: &str, app_key: &str) -> Result<Arc<App>, Error> {
        const WRONG: Error = Error::NotFound { what: "app with this app_id and app_key" };
        let id: AppId = app_id.parse().map_err(|_| WRONG)?;
        let app = self.app_record(&id)?.ok_or(WRONG)?;
        if !self.keys.is_same(&app.key, app_key.as_bytes()) {
            return Err(WRONG);
        }
        Ok(app)
    }

    fn app_secret(&self, secret: &Secret) -> AppSecret {
        AppSecret {
            hash: self.keys.hash(secret.reveal().as_bytes()),
            alias_key: alias_key(secret.reveal()),
            callback_key: signature::key(secret.reveal()),
        }
    }
}

/// The record of a live app as a change sees it.
pub(super) fn load_app(txn: &Txn<'_>, id: &AppId) -> Result<App, Error> {
    let bytes = txn.get(Space::Apps, id.as_str().as_bytes())?.ok_or(NO_APP)?;
    Some(decode::<App>(&bytes)?).filter(|app| !app.is_revoked).ok_or(NO_APP)
}

/// The key under which an app server signs alias tokens: it follows from the
/// app secret, and the secret does not follow from it.
fn alias_key(app_secret: &str) -> [u8; 32] {
    let mut key = [0; 32];
    let hash = digest::digest(&digest::SHA256, format!("carillon alias {app_secret}").as_bytes());
    key.copy_from_slice(hash.as_ref());
    key
}

/// A token with which a device binds an alias of an app whose policy is `signed`,
/// valid until `expires_ms` (milliseconds since 1970). App servers make it
/// themselves; docs/PROTOCOL.md says how.
pub fn alias_token(app_secret: &str, regid: &str, alias: &str, expires_ms: u64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &alias_key(app_secret));
    let tag = hmac::sign(&key, &token_text(regid, alias, expires_ms));
    base32(&[&expires_ms.to_be_bytes(), tag.as_ref()].concat())
}

/// Whether a token is one of the app's, for this binding and still valid.
pub(super) fn is_alias_token(
    app: &App,
    regid: &str,
    alias: &str,
    token: &str,
    now_ms: u64,
) -> bool {
    let Some(bytes) = from_base32(token) else {
        return false;
    };
    let Some((expires, tag)) = bytes.split_first_chunk::<8>() else {
        return false;
    };
    let expires_ms = u64::from_be_bytes(*expires);
    let text = token_text(regid, alias, expires_ms);
    let is_signed = |secret: &AppSecret| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret.alias_key);
        hmac::verify(&key, &text, tag).is_ok()
    };
    now_ms < expires_ms && app.secrets.iter().any(is_signed)
}

fn token_text(regid: &str, alias: &str, expires_ms: u64) -> Vec<u8> {
    [regid.as_bytes(), &[0], alias.as_bytes(), &[0], &expires_ms.to_be_bytes()].concat()
}
