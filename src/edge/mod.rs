//! Stand-in until the edge lands.

use std::sync::Arc;

use tokio::{net::TcpListener, sync::watch};

use crate::{
    base::metrics::{Metrics, Transport},
    config,
    service::Service,
};

/// The MQTT front.
pub struct Edge;

impl Edge {
    /// A front over the service.
    pub fn new(_: Arc<Service>, _: config::Edge, _: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self)
    }

    /// Accepts.
    pub async fn serve(
        self: Arc<Self>,
        _: TcpListener,
        _: Transport,
        _: Option<Arc<rustls::ServerConfig>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Ends all.
    pub fn drain(&self) {}

    /// Until none is left.
    pub async fn drained(&self) {}
}
