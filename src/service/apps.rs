//! Tenants and their credentials.

use serde::Serialize;

use super::{Error, Service, records::AliasPolicy};
use crate::base::{ids::AppId, keys::Secret};

/// A new tenant as its maker sees it, once.
#[derive(Clone, Debug, Serialize)]
pub struct NewApp {
    /// Its name.
    pub app_id: AppId,
    /// For devices.
    pub app_key: Secret,
    /// For app servers.
    pub app_secret: Secret,
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
    pub async fn create_app(&self, _id: &str, _policy: AliasPolicy) -> Result<NewApp, Error> {
        todo!()
    }

    /// All tenants.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn apps(&self) -> Result<Vec<AppSummary>, Error> {
        todo!()
    }

    /// Gives a tenant one more secret.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Limit`] (too many live ones), [`Error::Unavailable`].
    pub async fn rotate_secret(&self, _app: &str, _older: OlderSecrets) -> Result<Secret, Error> {
        todo!()
    }

    /// The tenant whose secret this is.
    ///
    /// # Errors
    /// [`Error::Forbidden`], the same for an unknown app and a wrong secret; [`Error::Unavailable`].
    pub fn authorize(&self, _app: &str, _secret: &str) -> Result<AppId, Error> {
        todo!()
    }

    /// The tenant of this name, for an operator.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub fn app(&self, _app: &str) -> Result<AppId, Error> {
        todo!()
    }

    /// A token with which a device binds an alias of an app whose policy is
    /// `signed`, valid until `expires_ms` (milliseconds since 1970).
    pub fn alias_token(&self, _app: &AppId, _regid: &str, _alias: &str, _expires_ms: u64) -> Result<String, Error> {
        todo!()
    }
}
