//! What app servers and devices ask for again and again: credentials, settings, who a regID is.
//!
//! The owner of a record says when it has changed, once that is durable and before it is
//! answered; so nobody who was told of a change meets what was before it.

use std::sync::Arc;

use super::{
    Error, Service,
    records::{App, Device, device_of},
};
use crate::{
    base::{
        cache::Cache,
        ids::{AppId, DeviceId, RegId},
        metrics::{
            Metrics,
            engine::CacheKind::{self, Apps, Devices, Registrations},
        },
    },
    config,
    queue::store::{Space, decode},
};

/// Apps that are kept: a kilobyte or so each.
const APPS_MAX: usize = 1_024;

/// Records of the registry in memory.
pub struct Caches {
    apps: Cache<AppId, Arc<App>>,
    devices: Cache<DeviceId, Arc<Device>>,
    registrations: Cache<RegId, Registered>,
}

/// Whose a regID is. A registration never moves to another device or app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) device: DeviceId,
    pub(super) app: AppId,
}

impl Caches {
    /// Empty ones.
    pub fn new(config: &config::Store, metrics: &Metrics) -> Self {
        let count = |kind: CacheKind| {
            let engine = &metrics.engine;
            (engine.cache_hits.of(kind).clone(), engine.cache_misses.of(kind).clone())
        };
        let ((hits, misses), (device_hits, device_misses)) = (count(Apps), count(Devices));
        let (regid_hits, regid_misses) = count(Registrations);
        Self {
            apps: Cache::new(APPS_MAX, hits, misses),
            devices: Cache::new(config.devices_cached, device_hits, device_misses),
            registrations: Cache::new(config.registrations_cached, regid_hits, regid_misses),
        }
    }

    /// A record has another value from now on, or none.
    pub fn changed(&self, space: Space, key: &[u8]) {
        match space {
            Space::Apps => {
                if let Some(app) = std::str::from_utf8(key).ok().and_then(|id| id.parse().ok()) {
                    self.apps.forget(&app);
                }
            }
            Space::Devices => {
                if let Some(device) = DeviceId::from_slice(key) {
                    self.devices.forget(&device);
                }
            }
            Space::Registrations => {
                if let Some(regid) = RegId::from_slice(key) {
                    self.registrations.forget(&regid);
                }
            }
            _ => {}
        }
    }
}

impl Service {
    /// The tenant of this name, unless it was revoked.
    pub(super) fn app_record(&self, id: &AppId) -> Result<Option<Arc<App>>, Error> {
        let app: Option<Arc<App>> = self.caches.apps.get_or_read(id, || {
            match self.router.get(Space::Apps, id.as_str().as_bytes())? {
                Some(bytes) => Ok::<_, Error>(Some(Arc::new(decode(&bytes)?))),
                None => Ok(None),
            }
        })?;
        Ok(app.filter(|app| !app.is_revoked))
    }

    pub(super) fn device(&self, device: &DeviceId) -> Result<Option<Arc<Device>>, Error> {
        self.caches.devices.get_or_read(device, || {
            match self.router.get(Space::Devices, device.as_bytes())? {
                Some(bytes) => Ok(Some(Arc::new(decode(&bytes)?))),
                None => Ok(None),
            }
        })
    }

    /// Whether memory has a regID as the app's.
    pub(super) fn is_known_of(&self, app: &AppId, regid: &RegId) -> bool {
        self.caches.registrations.peek(regid).is_some_and(|one| one.app == *app)
    }

    /// Whose a regID is, if it is registered.
    pub(super) fn registered(&self, regid: &RegId) -> Result<Option<Registered>, Error> {
        self.caches.registrations.get_or_read(regid, || {
            let Some(stored) = self.router.get(Space::Registrations, regid.as_bytes())? else {
                return Ok(None);
            };
            let Some(device) = device_of(&stored) else { return Ok(None) };
            // Read from the store: what another cache has is as old as that one.
            let Some(record) = self.router.get(Space::Devices, device.as_bytes())? else {
                return Ok(None);
            };
            let record: Device = decode(&record)?;
            let registration = record.registrations.into_iter().find(|one| one.regid == *regid);
            Ok(registration.map(|one| Registered { device, app: one.app }))
        })
    }
}
