//! That a device is here: what names it to the rest of the node until it leaves.

use std::sync::Arc;

use super::{Edge, advisor::AddressKey};
use crate::{base::ids::DeviceId, route::Nudge};

/// A device's presence on this node, until it is dropped.
pub(super) struct Arrival {
    pub(super) edge: Arc<Edge>,
    device: DeviceId,
    /// The network that the device is on, as its address shows it.
    pub(super) network: AddressKey,
    pub(super) nudge: Arc<Nudge>,
}

impl Arrival {
    /// The device is here; an older connection of it is told so. `None` if it has
    /// opened a newer one, which is here already.
    pub(super) fn new(
        edge: &Arc<Edge>,
        device: DeviceId,
        network: AddressKey,
        serial: u64,
    ) -> Option<Self> {
        let nudge = Arc::new(Nudge::of(serial));
        let is_newest = edge.service.arrive(device, &nudge);
        is_newest.then(|| Self { edge: edge.clone(), device, network, nudge })
    }

    /// The device is here for a moment, and its connection, if it has one, stays.
    pub(super) fn passing(
        edge: &Arc<Edge>,
        device: DeviceId,
        network: AddressKey,
        serial: u64,
    ) -> Self {
        Self { edge: edge.clone(), device, network, nudge: Arc::new(Nudge::of(serial)) }
    }

    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    pub(super) fn serial(&self) -> u64 {
        self.nudge.opened()
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.edge.alarms.remove(&self.nudge);
        self.edge.service.leave(&self.device, &self.nudge);
    }
}
