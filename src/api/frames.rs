//! Frames of devices that hold no connection: carried there and back, never opened here.

use std::{net::IpAddr, pin::Pin, sync::Arc};

use axum::{
    Extension,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use carillon_wire::frame::{FRAMES_TYPE, put_frame, split_frames};

use super::Shared;
use crate::base::http::{Code, Peer, Problem, basic, body};

/// Lets a device in by its address, id and secret, before its body is read. It is put here by
/// the composition root, because the doors do not know each other.
pub type Desk = Arc<dyn Fn(Option<IpAddr>, &str, &[u8]) -> Result<Visit, Problem> + Send + Sync>;

/// A device that was let in: its frames become the gateway's.
pub type Visit = Box<dyn FnOnce(Vec<Bytes>) -> Exchange + Send>;

/// The gateway's frames, once it has them.
pub type Exchange = Pin<Box<dyn Future<Output = Result<Vec<Bytes>, Problem>> + Send>>;

pub(super) async fn exchange(
    State(api): State<Shared>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let (device_id, secret) = basic(&headers).ok_or_else(Problem::bad_credentials)?;
    let peer = peer.map(|Extension(Peer(address))| address);
    let visit = (api.desk)(peer, &device_id, secret.as_bytes())?;
    let body = body::of_type(FRAMES_TYPE, request, &api).await?;
    let ups = split_frames(body)
        .map_err(|error| Problem::new(Code::InvalidRequest, error.to_string()))?;
    let _room = api.busy.take()?;
    let downs = visit(ups).await?;
    let mut answer = Vec::with_capacity(downs.iter().map(|down| 4 + down.len()).sum());
    downs.iter().for_each(|down| put_frame(down, &mut answer));
    Ok(([(CONTENT_TYPE, FRAMES_TYPE)], answer).into_response())
}
