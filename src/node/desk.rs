//! Where the HTTPS door meets the devices' front, which it must not know.

use std::{sync::Arc, time::Duration};

use crate::{
    api::frames::Desk,
    base::http::{Code, Problem},
    edge::{Edge, visit::Error},
};

/// Lets devices without a connection in.
pub(super) fn desk(edge: Arc<Edge>) -> Desk {
    Arc::new(move |peer, device_id, secret| {
        let visit = edge.visit(peer, device_id, secret).map_err(problem)?;
        Ok(Box::new(move |ups| Box::pin(async move { visit.exchange(ups).await.map_err(problem) })))
    })
}

fn problem(error: Error) -> Problem {
    let detail = error.to_string();
    let later = |code, after: Duration| Problem {
        retry_after_s: Some(after.as_secs().max(1)),
        ..Problem::new(code, detail.clone())
    };
    match error {
        Error::Credentials => Problem::bad_credentials(),
        Error::TooMuch { after } => later(Code::RateLimited, after),
        Error::Full { after } => later(Code::Overloaded, after),
        Error::Unavailable => Problem::new(Code::Unavailable, detail),
    }
}
