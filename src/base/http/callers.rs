//! Whose connections a door has, and whom it did not let in.

use std::{net::IpAddr, sync::Arc};

use crate::{
    base::{
        metrics::CounterBy,
        sketch::{Cells, Counts, Hash2},
    },
    labels,
};

labels! {
    /// Why a connection was not served.
    Refused {
        /// Too few open files are left.
        Files = "files",
        /// `api.connections_per_address_max`.
        AddressConnections = "address_connections",
        /// A balancer's header is missing or broken.
        Balancer = "balancer",
        /// The TLS handshake failed.
        Tls = "tls",
        /// The balancer's header or the TLS handshake took too long.
        Timeout = "timeout",
    }
}

/// The connections of each address.
pub(super) struct Callers {
    hash: Hash2,
    connections: Counts,
    refused: CounterBy<Refused>,
}

/// One connection of an address, until it is dropped.
pub(super) struct Share {
    callers: Arc<Callers>,
    cells: Option<Cells>,
}

impl Callers {
    /// Nobody is there.
    pub(super) fn new() -> Self {
        let refused = CounterBy::new("carillon_api_refused_connections_total", "reason");
        Self { hash: Hash2::new(), connections: Counts::new(), refused }
    }

    pub(super) fn note_refused(&self, why: Refused) {
        self.refused.of(why).increment(1);
    }

    /// A share of what an address may have; 0 is no bound.
    pub(super) fn share(self: &Arc<Self>, address: IpAddr, max: u32) -> Option<Share> {
        let cells = self.hash.cells(address);
        let max = if max == 0 { u32::MAX } else { max };
        let is_free = self.connections.add(cells, max);
        is_free.then(|| Share { callers: self.clone(), cells: Some(cells) })
    }

    /// The share of an address without bounds.
    pub(super) fn unbounded(self: &Arc<Self>) -> Share {
        Share { callers: self.clone(), cells: None }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(cells) = self.cells {
            self.callers.connections.remove(cells);
        }
    }
}
