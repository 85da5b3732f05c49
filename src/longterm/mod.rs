//! Long-term storage: folded collections and history, for longer than the queues' retention.
//!
//! A queue with collections is folded into its live items; all of its entries stay as history.
//! How far the folding has come, per shard and per queue, is written together with what it
//! covers. Two stores keep the promises of [`LongTerm`]: [`embedded`] and [`postgres`]. It knows
//! no app, no device and no rule of conflicts: what arrives was decided.

pub mod embedded;
mod fold;
pub mod postgres;
pub mod writer;

use futures_util::future::BoxFuture;

pub use self::fold::{Advance, Fold, Item, Keys, Name, Past, Step};
pub use crate::queue::unfolded::Commit;
use crate::{
    base::ids::{QueueId, Shard},
    queue::{
        position::{Position, Seq},
        reader::Take,
        store,
    },
};

/// An answer that takes its time.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// Where folded collections and history live. One writer folds; many read.
pub trait LongTerm: Send + Sync + 'static {
    /// Folds commits, of each shard once; each shard's together with its pointer, whole or not
    /// at all, and durable when it is answered. After an error some may be folded: ask for the
    /// pointers.
    ///
    /// [`Error::Moved`] if a pointer is not where its fold begins.
    fn fold(&self, folds: Vec<Fold>) -> Answer<'_, ()>;

    /// Up to which commit a shard is folded.
    fn pointer(&self, shard: Shard) -> Answer<'_, Commit>;

    /// Up to where a queue is folded: all reads that begin later see that, or what is newer.
    fn position(&self, queue: QueueId) -> Answer<'_, Option<Position>>;

    /// One item; `None` if it is not live.
    fn item(&self, queue: QueueId, name: Name) -> Answer<'_, Option<Item>>;

    /// Live items in the order of their keys' bytes.
    fn by_key(&self, queue: QueueId, keys: Keys, take: Take) -> Answer<'_, Vec<Item>>;

    /// Live items of a queue, those that changed last first, and of these only such that changed
    /// before `before`. The last one's number is where the next page begins: an item that moves
    /// meanwhile is missing, never another one.
    fn newest(&self, queue: QueueId, before: Option<Seq>, take: Take) -> Answer<'_, Vec<Item>>;

    /// Entries after `after`, in order, as far as history is kept.
    fn history(&self, queue: QueueId, after: Seq, take: Take) -> Answer<'_, Vec<Past>>;

    /// Takes a queue back to `to`, because its later entries were lost: forgets those, and puts
    /// the items that they changed as the entries in `restored` made them.
    fn rewind(&self, queue: QueueId, to: Position, restored: Vec<Step>) -> Answer<'_, ()>;

    /// Drops history of days before `oldest`.
    fn trim_history(&self, oldest: u32) -> Answer<'_, ()>;
}

/// The long-term store cannot do what it must.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The embedded store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The database cannot be reached, or did not answer in time: try again.
    #[error("the long-term store does not {step}: {cause}")]
    Unreachable {
        /// What it should have done.
        step: &'static str,
        /// Why not.
        cause: String,
    },
    /// The database answered with an error.
    #[error("the long-term store refused to {step}: {cause}")]
    Refused {
        /// What it should have done.
        step: &'static str,
        /// What it said.
        cause: String,
    },
    /// Somebody else has folded: the pointer is elsewhere.
    #[error("shard {} is folded up to another commit than was thought", .0.0)]
    Moved(Shard),
    /// It holds what cannot be understood.
    #[error("the long-term store is damaged or of another version: {0}")]
    Damaged(String),
}
