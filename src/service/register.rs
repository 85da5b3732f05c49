//! Device accounts and registrations.

use super::{Error, Service};
use crate::base::{
    ids::{AppId, DeviceId, RegId},
    keys::Secret,
};

/// A device account as its maker sees it, once.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// MQTT client id and user name.
    pub device_id: DeviceId,
    /// MQTT password.
    pub secret: Secret,
    /// The first registration, if it was asked for.
    pub regid: Option<RegId>,
}

/// Whether a new account comes with a registration of its app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstRegistration {
    /// It does.
    Yes,
    /// The device registers later, over its connection.
    No,
}

impl Service {
    /// Creates a device account for somebody who knows the app's key.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a wrong app or key; [`Error::Unavailable`].
    pub async fn create_device(&self, _app_id: &str, _app_key: &str, _first: FirstRegistration) -> Result<NewDevice, Error> {
        todo!()
    }

    /// Creates many accounts with a registration each: for operators.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn create_devices(&self, _app: &AppId, _count: usize) -> Result<Vec<NewDevice>, Error> {
        todo!()
    }

    /// Registers an app on a device; the same app again gives the same regID.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a wrong app or key, [`Error::Limit`], [`Error::Unavailable`].
    pub async fn register(&self, _device: &DeviceId, _app_id: &str, _app_key: &str) -> Result<RegId, Error> {
        todo!()
    }

    /// Ends a registration. Other apps on the device stay.
    ///
    /// # Errors
    /// [`Error::NotFound`] if `by` has no such registration, [`Error::Unavailable`].
    pub async fn unregister(&self, _regid: &str, _by: super::bind::By<'_>) -> Result<(), Error> {
        todo!()
    }
}
