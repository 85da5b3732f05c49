//! A device of Carillon: connect, register, follow, receive, resume.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use carillon_sdk::{Credentials, Device, Endpoint, Received};
//!
//! let endpoint: Endpoint = "tcp://127.0.0.1:1883".parse()?;
//! let credentials = Credentials { device_id: "…".into(), secret: "…".into() };
//! let device = Device::builder(endpoint, credentials, "device.state")
//!     .connect_with(|received| async move {
//!         if let Received::Message(message) = received {
//!             println!("{}: {:?}", message.queue, message.payload);
//!         }
//!     })
//!     .await?;
//! device.online().await?;
//! let regid = device.register("demo", "app key").await?;
//! device.subscribe(&regid, &["news"]).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The map, in reading order:
//!
//! - `items`: pure: items of collections, and what frames do to them.
//! - `replica`: pure: which entries are new, what is acknowledged, what must be asked.
//! - `seals`: pure: keys of sealed payloads, and what they open.
//! - `state`, `store`: what is durable, and where.
//! - `applier`: the task that owns the three and the app's handler.
//! - `collections`, with the feature of that name: items in SQLite, edits, and what they ask of the gateway.
//! - `restore`: the task that registers again what ended while the device was away.
//! - `session`: the pure protocol machine of one connection; `calls` with `accept`, and `close` belong to it.
//! - [`heartbeat`]: pure: when to ping, and what each network bears; it lives longer than connections.
//! - `connection`, `driver`: the task that owns the stream, and connects again with `backoff`.
//! - `device`: the app's handle; `transport`: TCP, TLS and what a simulation puts in their place.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "the bans are the gateway's")]
#![warn(missing_docs)]

#[cfg(feature = "collections")]
pub mod collections;
mod items;
mod replica;
mod seals;
mod state;
mod store;

mod applier;
mod restore;

mod accept;
mod calls;
mod close;
pub mod heartbeat;
mod session;

mod backoff;
mod connection;
mod driver;

mod device;
mod names;
mod random;
mod transport;

pub use carillon_wire::seal::AppKey;

pub use accept::{Accept, Hours};
pub use applier::Positions;
pub use calls::{CallError, Refusal};
pub use close::StopReason;
#[cfg(feature = "collections")]
pub use collections::Collections;
pub use device::{Credentials, Device, DeviceBuilder, StartError};
pub use driver::Status;
pub use heartbeat::{AppState, NetworkLabel};
pub use items::{Format, Steps, Value};
pub use names::{
    Attributes, Message, MessageId, NotAName, Notification, Position, QueueName, Received, RegId,
};
pub use state::{RECENT_IDS_MAX, StateError};
pub use store::{BoxFuture, FileStore, MemoryStore, PositionStore};
pub use transport::{BoxStream, Connector, Endpoint, EndpointError, Stream};
