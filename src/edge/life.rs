//! The task of one connection, from its handshake to its end.
//!
//! Most connections are idle, so this future is written by hand: while nothing happens it is
//! a pointer to the connection. What a handshake or a turn needs is allocated for its time.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;

use super::{
    Accepted, carrier::Carrier, connection::Connection, greeting, pool, session::Output, within,
};
use crate::base::metrics::Handshake;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A connection whose CONNECT was accepted: its first output is CONNACK, and these bytes came
/// behind CONNECT.
pub(super) type Established<S> = (Box<Connection<S>>, Box<Output>, BytesMut);

/// Greets a device and serves it until the connection ends.
pub(super) enum Life<S> {
    /// The handshake.
    Greeting(Boxed<Option<Established<S>>>),
    /// Something is being done.
    Busy(Boxed<Option<Box<Connection<S>>>>),
    /// Nothing is to be done.
    Idle(Box<Connection<S>>),
    /// It is over.
    Over,
}

impl<S: Carrier> Life<S> {
    /// Of a stream that speaks MQTT once it is prepared, all under one deadline.
    pub(super) fn new(
        accepted: Accepted,
        prepare: impl Future<Output = io::Result<S>> + Send + 'static,
    ) -> Self {
        let edge = accepted.handshaking.edge.clone();
        let (deadline, patience) = (accepted.deadline(), accepted.handshaking.place.patience());
        Self::Greeting(Box::pin(async move {
            let greet = async {
                match prepare.await {
                    Ok(stream) => greeting::greet(accepted, stream).await,
                    Err(error) => {
                        accepted.failed(match error.kind() {
                            io::ErrorKind::ConnectionAborted => Handshake::GaveUp,
                            io::ErrorKind::TimedOut => Handshake::Evicted,
                            _ => Handshake::Transport,
                        });
                        None
                    }
                }
            };
            within(deadline, patience, greet).await.unwrap_or_else(|result| {
                edge.metrics.edge.handshakes.of(result).increment(1);
                None
            })
        }))
    }
}

impl<S: Carrier> Future for Life<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let next = match &mut *self {
                Self::Over => return Poll::Ready(()),
                Self::Greeting(greeting) => match ready!(greeting.as_mut().poll(cx)) {
                    Some((connection, out, unread)) => {
                        Self::Busy(Box::pin(connection.begin(out, unread)))
                    }
                    None => Self::Over,
                },
                Self::Busy(turn) => match ready!(turn.as_mut().poll(cx)) {
                    Some(connection) => Self::Idle(connection),
                    None => Self::Over,
                },
                Self::Idle(connection) => {
                    let event = ready!(connection.poll_event(cx));
                    let Self::Idle(connection) = std::mem::replace(&mut *self, Self::Over) else {
                        unreachable!("it was idle a moment ago")
                    };
                    Self::Busy(Box::pin(connection.turn(event, pool::output())))
                }
            };
            *self = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_a_pointer_to_its_task() {
        // With what tokio keeps beside it this fits a task of 128 bytes.
        assert!(size_of::<Life<tokio::net::TcpStream>>() <= 24);
    }
}
