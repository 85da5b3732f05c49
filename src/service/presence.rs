//! Which devices are connected to this node.

use std::sync::Arc;

use dashmap::{DashMap, Entry};

use super::Service;
use crate::{
    base::{ids::DeviceId, maps},
    route::{Nudge, Reasons},
};

/// One connection a device.
pub type Presence = DashMap<DeviceId, Arc<Nudge>>;

impl Service {
    /// A device's connection is established; an older one is told that it was
    /// taken over, before the new one reads anything. False if the device has opened
    /// another one since: then this one, which it has given up, is not let in.
    pub fn arrive(&self, device: DeviceId, nudge: &Arc<Nudge>) -> bool {
        match self.presence.entry(device) {
            Entry::Occupied(present) if present.get().opened() > nudge.opened() => false,
            Entry::Occupied(mut present) => {
                let older = present.insert(nudge.clone());
                older.nudge(Reasons::TAKEN_OVER);
                true
            }
            Entry::Vacant(vacant) => {
                vacant.insert(nudge.clone());
                true
            }
        }
    }

    /// A connection is over. A newer one of the same device stays.
    pub fn leave(&self, device: &DeviceId, nudge: &Arc<Nudge>) {
        self.flush_soon();
        self.presence.remove_if(device, |_, current| Arc::ptr_eq(current, nudge));
    }

    /// A connection takes these reasons up, or ends with them.
    pub fn served(&self, reasons: Reasons) {
        self.router.followers().served(reasons);
    }

    /// For once a second: nobody waits for a wake-up because others do not take up theirs.
    pub fn look_at_lanes(&self) {
        self.router.followers().look();
    }

    /// Gives back the memory of maps in which a crowd was. For once in half a minute or so.
    pub fn shrink(&self) {
        maps::shrink(&self.presence);
        self.router.followers().shrink();
        self.pointers.sweep();
        self.slow.sweep(self.now_ms());
        self.uploads.sweep();
        self.recalls.sweep(self.router.oldest_day());
        self.sweep_endpoints();
    }

    /// Whether the device is connected to this node.
    pub fn is_online(&self, device: &DeviceId) -> bool {
        self.presence.contains_key(device)
    }

    /// Ends the device's connection, if there is one: the device is no more.
    pub(super) fn cut(&self, device: &DeviceId) {
        if let Some(present) = self.presence.get(device) {
            present.nudge(Reasons::REVOKED);
        }
    }

    /// Tells every connection to read its registrations again.
    pub(super) fn refresh_all(&self) {
        self.presence.iter().for_each(|present| present.nudge(Reasons::REFRESH));
    }

    /// Tells the device's connection, if there is one, to read its registrations again.
    pub(super) fn refresh(&self, device: &DeviceId) {
        if let Some(present) = self.presence.get(device) {
            present.nudge(Reasons::REFRESH);
        }
    }
}
