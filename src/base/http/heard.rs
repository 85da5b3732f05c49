//! A request's body is read to its end, also where its call did not want it.
//!
//! hyper ends an HTTP/1.1 connection behind an answer that comes before the body, and a client
//! that is about to send that body finds it closed before it looks for the answer.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// A body that was handed out.
#[derive(Clone)]
pub(super) struct Heard(Arc<Mutex<Incoming>>);

impl Heard {
    /// Hands a body out.
    pub(super) fn of(body: Incoming) -> (Body, Self) {
        let heard = Self(Arc::new(Mutex::new(body)));
        (Body::new(heard.clone()), heard)
    }

    /// Reads what is left of it, within bounds: who sends more, or more slowly, finds the
    /// connection closed.
    pub(super) async fn finish(mut self) {
        let mut left = LEFT_BYTES_MAX;
        let reading = async {
            while !self.is_end_stream() && left > 0 {
                let Some(Ok(frame)) = self.frame().await else { return };
                left = left.saturating_sub(frame.data_ref().map_or(1, Bytes::len));
            }
        };
        let _ = timeout(LEFT_WITHIN, reading).await;
    }

    fn with<T>(&self, look: impl FnOnce(&mut Incoming) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl hyper::body::Body for Heard {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.with(|body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.with(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.size_hint())
    }
}

/// Of a body that nobody wants.
const LEFT_BYTES_MAX: usize = 64 * 1024;
const LEFT_WITHIN: Duration = Duration::from_secs(1);
