//! The slowest sends of the last minutes.

use axum::{Json, extract::State};
use serde::Serialize;

use super::{Operator, Shared};
use crate::service::slow::Slow;

#[derive(Serialize)]
pub(super) struct Slowest {
    slowest: Vec<Slow>,
}

pub(super) async fn list(_: Operator, State(admin): State<Shared>) -> Json<Slowest> {
    Json(Slowest { slowest: admin.service.slow_sends() })
}
