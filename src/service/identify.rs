//! Who is this device, and what is registered on it.

use super::{Error, Service, records::Registration};
use crate::base::ids::DeviceId;

const BAD_CREDENTIALS: Error = Error::Forbidden("unknown device or wrong secret");

impl Service {
    /// The device that shows this id and secret. One store read, or none for one that was here lately.
    ///
    /// # Errors
    /// [`Error::Forbidden`], the same for an unknown device and a wrong secret;
    /// [`Error::Unavailable`].
    pub fn identify(&self, device_id: &str, secret: &[u8]) -> Result<DeviceId, Error> {
        let device: DeviceId = device_id.parse().map_err(|_| BAD_CREDENTIALS)?;
        let record = self.device(&device)?.ok_or(BAD_CREDENTIALS)?;
        if !self.keys.is_same(&record.secret, secret) {
            return Err(BAD_CREDENTIALS);
        }
        if record.seen_day != self.today() {
            self.note_seen(device);
        }
        Ok(device)
    }

    /// What is registered on a device; nothing for one that is unknown.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn registrations(&self, device: &DeviceId) -> Result<Vec<Registration>, Error> {
        Ok(self.device(device)?.map(|record| record.registrations.clone()).unwrap_or_default())
    }
}
