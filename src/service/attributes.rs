//! What devices say of themselves: attributes of registrations, which filters look at.
//!
//! They live in the device's record; a change takes effect with its answer.

use super::{
    Error, Service,
    bind::By,
    register::{NO_REGISTRATION, load},
};
use crate::{
    base::ids::RegId,
    queue::{
        filter::{Attributes, Filter, Invalid},
        store::{Space, encode},
    },
};

impl Service {
    /// From now on a registration has these attributes and no others.
    ///
    /// # Errors
    /// [`Error::NotFound`] (no such registration of the asker's), [`Error::Invalid`],
    /// [`Error::Unavailable`].
    pub async fn describe(
        &self,
        regid: &str,
        attributes: Attributes,
        by: By<'_>,
    ) -> Result<(), Error> {
        check(&attributes)?;
        let (device, registration) = self.registration_of(regid, by)?;
        let regid = registration.regid;
        if registration.attributes == attributes {
            return Ok(());
        }
        self.router
            .run(device.shard(), move |txn| {
                let mut record = load(txn, &device)?;
                let registration = record.registrations.iter_mut().find(|one| one.regid == regid);
                registration.ok_or(NO_REGISTRATION)?.attributes = attributes;
                txn.put(Space::Devices, device.as_bytes(), encode(&record));
                Ok(())
            })
            .await
    }

    /// Whether a filter matches the attributes that a registration has now.
    pub(super) fn is_matched(&self, filter: &Filter, regid: &RegId) -> Result<bool, Error> {
        let Some(device) = self.device_of(regid)? else { return Ok(false) };
        let Some(record) = self.device(&device)? else { return Ok(false) };
        let mut registrations = record.registrations.iter();
        let mine = registrations.find(|one| one.regid == *regid);
        Ok(mine.is_some_and(|one| filter.matches(&one.attributes)))
    }
}

/// Whether attributes keep to their bounds.
///
/// # Errors
/// [`Error::Invalid`].
pub(super) fn check(attributes: &Attributes) -> Result<(), Error> {
    attributes.check().map_err(Error::from)
}

impl From<Invalid> for Error {
    fn from(Invalid { field, rule }: Invalid) -> Self {
        Self::Invalid { field, rule: rule.to_owned() }
    }
}
