//! Load for a push gateway or an MQTT broker on this machine, measured.
//!
//! A coordinator gives orders to worker processes, each of which holds its share of the devices on one thread.
//!
//! - `cli`: the command line.
//! - `connect`, `idle`, `storm`, `fanout`, `unicast`: one file for each measurement, told by `report`.
//! - `sync`: collections of a gateway and documents of PouchDB server, filled, read, and changed.
//! - `compare`, `floor`: the same on several servers, which `peers` starts.
//! - `target`, `credentials`, `api`, `publisher`: the server under load, its devices, and who sends to them.
//! - `crew`, `order`, `worker`: the coordinator's side of the workers, what is said between them, and theirs.
//! - `fleet`, `mqtt`: the devices, which cost the generator as little as possible.
//! - `nat`: a box on the way to a server which forgets idle flows, as mobile networks do. Tests use it too.
//! - `disk`, `echo`: what the machine itself takes, beside a run.
//! - `histogram`, `process`, `clock`: leaves.

#![forbid(unsafe_code)]

pub mod cli;
pub mod nat;

mod api;
mod clock;
mod compare;
mod connect;
mod credentials;
mod crew;
mod disk;
mod echo;
mod fanout;
mod fleet;
mod floor;
mod histogram;
mod idle;
mod lanes;
mod mqtt;
mod order;
mod peers;
mod process;
mod publisher;
mod report;
mod storm;
mod sync;
mod target;
mod unicast;
mod worker;
