//! The operator's door, for loopback: metrics, health, tenants, devices in bulk, and
//! orders to the node.
//!
//! It speaks plain HTTP; calls under `/admin/v1` need the operator's token, which the
//! node makes anew at each start and leaves in `<data>/admin.json`. The composition
//! root adds the app server's calls for operators to the same listener.

mod apps;
mod devices;
mod file;
mod orders;
mod slow;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{FromRequestParts, State},
    http::{header::CONTENT_TYPE, request::Parts},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::mpsc;

pub use file::{AdminFile, Error};
pub use orders::Order;

use crate::{
    base::{
        http::{Problem, Ready, Token, envelope::Envelope},
        tasks,
    },
    config,
    service::Service,
};

/// What the door is made of.
pub struct Admin {
    /// The business calls.
    pub service: Arc<Service>,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// The operator's credential.
    pub token: Token,
    /// Whether the node takes work.
    pub ready: Ready,
    /// Whom the orders to the node go to.
    pub orders: mpsc::Sender<Order>,
}

type Shared = Arc<Admin>;

/// The operator's calls. Bulk calls may take ten times as long as an app server's.
pub fn router(admin: Admin, config: &config::Api) -> Router {
    let request_timeout = Duration::from_millis(config.request_timeout_ms.saturating_mul(10));
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/admin/v1/apps", post(apps::create).get(apps::list))
        .route("/admin/v1/apps/{app}", delete(apps::revoke))
        .route("/admin/v1/apps/{app}/key", post(apps::rotate_key))
        .route("/admin/v1/apps/{app}/secrets", post(apps::rotate))
        .route("/admin/v1/apps/{app}/seal", post(apps::seal))
        .route("/admin/v1/apps/{app}/devices", post(devices::create))
        .route("/admin/v1/devices/{device}", delete(devices::revoke))
        .route("/admin/v1/slow", get(slow::list))
        .route("/admin/v1/drain", post(orders::drain))
        .route("/admin/v1/reload", post(orders::reload))
        .with_state(Arc::new(admin));
    let body_bytes_max = config.body_bytes_max;
    Envelope { request_timeout, body_bytes_max, metrics: None }.around(router)
}

async fn metrics(State(admin): State<Shared>) -> Response {
    // Thousands of samples are folded first: no task shall wait behind that.
    let text = tasks::blocking(move || admin.metrics.render()).await;
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn readyz(State(admin): State<Shared>) -> Result<&'static str, Problem> {
    admin.ready.answer()
}

/// Somebody who bears the operator's token.
struct Operator;

impl FromRequestParts<Shared> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, admin: &Shared) -> Result<Self, Problem> {
        match admin.token.is_shown_by(&parts.headers) {
            true => Ok(Self),
            false => Err(Problem::unauthorized()),
        }
    }
}
