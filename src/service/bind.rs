//! What a registration follows: aliases and topics.

use super::{Error, Service};
use crate::base::ids::{AppId, DeviceId};

/// Who asks for a change.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// The device itself, over its connection, with a token where it has one.
    Device {
        /// The device.
        device: &'a DeviceId,
        /// From the app server, for `signed` aliases.
        token: Option<&'a str>,
    },
    /// The app server.
    App(&'a AppId),
}

impl Service {
    /// Binds an alias: the registration follows it from its head on. Again begins anew.
    ///
    /// # Errors
    /// [`Error::NotFound`] (no such registration of the asker's), [`Error::Invalid`],
    /// [`Error::Forbidden`] (policy or token), [`Error::Limit`], [`Error::Unavailable`].
    pub async fn bind(&self, _regid: &str, _alias: &str, _by: By<'_>) -> Result<(), Error> {
        todo!()
    }

    /// Unbinds an alias; one that is not bound is no error.
    ///
    /// # Errors
    /// As [`Service::bind`].
    pub async fn unbind(&self, _regid: &str, _alias: &str, _by: By<'_>) -> Result<(), Error> {
        todo!()
    }

    /// Subscribes to topics: all of them or none. A topic that is followed already stays as it is.
    ///
    /// # Errors
    /// As [`Service::bind`].
    pub async fn subscribe(&self, _regid: &str, _topics: &[String], _by: By<'_>) -> Result<(), Error> {
        todo!()
    }

    /// Unsubscribes from topics; one that is not followed is no error.
    ///
    /// # Errors
    /// As [`Service::bind`].
    pub async fn unsubscribe(&self, _regid: &str, _topics: &[String], _by: By<'_>) -> Result<(), Error> {
        todo!()
    }
}
