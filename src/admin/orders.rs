//! Orders to the node as a whole: drain, read the configuration again.

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{Operator, Shared};
use crate::base::http::{Code, Peer, Problem};

/// What the operator wants of the node.
pub enum Order {
    /// End in good order.
    Drain,
    /// Read the configuration again; answers with the keys that changed, or why none did.
    Reload(oneshot::Sender<Result<Vec<String>, String>>),
}

#[derive(Serialize)]
pub(super) struct Draining {
    draining: bool,
}

#[derive(Serialize)]
pub(super) struct Reloaded {
    changed: Vec<String>,
}

pub(super) async fn drain(
    _: Operator,
    State(admin): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
) -> Result<(StatusCode, Json<Draining>), Problem> {
    tracing::info!(%peer, "audit: the operator orders a drain");
    // A node that takes no more orders drains already.
    admin.ready.set(false);
    let _ = admin.orders.send(Order::Drain).await;
    Ok((StatusCode::ACCEPTED, Json(Draining { draining: true })))
}

pub(super) async fn reload(
    _: Operator,
    State(admin): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
) -> Result<Json<Reloaded>, Problem> {
    tracing::info!(%peer, "audit: the operator orders a reload");
    let (answer, answered) = oneshot::channel();
    let draining = |_| Problem::new(Code::Unavailable, "the node drains");
    admin.orders.send(Order::Reload(answer)).await.map_err(|_| draining(()))?;
    match answered.await.map_err(|_| draining(()))? {
        Ok(changed) => Ok(Json(Reloaded { changed })),
        Err(why) => Err(Problem::new(Code::OutOfBounds, why)),
    }
}
