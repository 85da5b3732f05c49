//! What a session asks of the business calls, and what they answer.

use carillon_wire::idl;

use super::{
    feeds::Standing,
    filter::{Subscription, Wanted},
    frames::{Request, Ticket, Unknown},
    snapshots::Asked,
};
use crate::{
    edge::advisor::Report,
    service::{self, repair::Repaired, seals::Registered, snapshots::Part, uploads::Uploaded},
};

/// A business call. Nothing else of the connection is read until it is answered.
#[derive(Debug)]
pub enum Call {
    /// Compare the device's digest.
    Resume(Ticket, i64),
    /// Take the device's positions.
    Positions(Ticket, Vec<idl::RegistrationPositions>),
    /// Read the device's registrations again.
    Refresh,
    /// Plain SUBSCRIBE: resolve the filters, and follow the topics.
    Subscribe(u16, Vec<Result<Wanted, u8>>),
    /// Plain UNSUBSCRIBE: unfollow the topics.
    Unsubscribe(u16, Vec<Result<Subscription, u8>>),
    /// How gaps fared on a network, as the device names it.
    Report(Ticket, String, Report),
    /// Compare ranges of a collection.
    Repair(Ticket, idl::Repair),
    /// Edits of the items of an alias.
    Upload(Ticket, idl::Upload),
    /// The next chunk of a snapshot.
    Chunk(Box<Asked>),
    /// What an uplink frame asks for.
    Request(Ticket, Request),
}

/// The answer to a [`Call`].
#[derive(Debug)]
pub enum Answer {
    /// `None`: the digests differ.
    Resumed(Ticket, Option<Vec<Standing>>),
    /// Where the device stands now, and the regIDs that it does not have.
    Positioned(Ticket, Vec<Standing>, Vec<Unknown>),
    /// The registrations now.
    Refreshed(Vec<Standing>),
    /// What became of each filter, and the registrations now.
    Subscribed(u16, Vec<Result<Subscription, u8>>, Vec<Standing>),
    /// The same for UNSUBSCRIBE.
    Unsubscribed(u16, Vec<Result<Subscription, u8>>, Vec<Standing>),
    /// The ranges that differ.
    Repaired(Ticket, Result<Vec<Repaired>, service::Error>),
    /// The answer to an uplink frame.
    Requested(Ticket, Result<Option<Registered>, service::Error>),
    /// What became of the edits.
    Uploaded(Ticket, Result<Uploaded, service::Error>),
    /// What comes next of a snapshot.
    Chunk(Box<Asked>, Part),
    /// The interval that is advised, in seconds, if any is.
    Advised(Ticket, Option<u16>),
    /// The node cannot do it now.
    Failed,
}
