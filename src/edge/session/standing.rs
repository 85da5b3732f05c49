//! Where a registration stands, and how its queues begin on a connection.

use crate::{
    base::ids::RegId,
    queue::position::{Position, Seq},
    service::{
        deliver::{Following, Start},
        seals::Sealing,
    },
};

/// A registration as it was read, and where it stands: plain data for the session.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// Its name.
    pub regid: RegId,
    /// The own queue's newest control entry that `followings` contains.
    pub control: Seq,
    /// What it follows, its own queue first.
    pub followings: Vec<Following>,
    /// Where deltas begin, one for each following.
    pub starts: Vec<Start>,
    /// The heads of the queues, where they were asked for.
    pub heads: Vec<Position>,
    /// The device named it in what this answers.
    pub is_named: bool,
    /// It has pauses or hours.
    pub is_gated: bool,
    /// How its messages go out.
    pub sealing: Sealing,
}

impl Standing {
    /// Whether plain use may deliver its messages.
    pub fn is_open(&self) -> bool {
        self.sealing == Sealing::Open
    }
}

/// What is done with a queue on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nothing.
    Off,
    /// Its control entries are applied; nothing is delivered or acknowledged.
    Watch,
    /// It is delivered.
    Deliver,
}

/// Where lanes begin that were not delivered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Where the stored pointers are; what is delivered already stays.
    Stored,
    /// The same, and the device knows nothing yet of a registration that is new.
    Announced,
    /// At the heads.
    Head,
    /// Everything anew, where the stored pointers are.
    Reset,
    /// Everything anew, where the device says that it is: what is stored follows.
    Stated,
    /// The same for the registrations that the device names; the others stay.
    Restated,
}
