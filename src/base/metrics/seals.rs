//! Sealed payloads.

use super::CounterBy;

crate::labels! {
    /// Whose queue a sealed entry is of.
    SealedIn {
        /// One registration's.
        Own = "own",
        /// An alias's.
        Alias = "alias",
        /// A topic's.
        Topic = "topic",
        /// Everybody's.
        All = "all",
    }
}

crate::labels! {
    /// Why something was refused for the sake of sealing.
    SealRefusal {
        /// A plain connection, for messages that are sealed.
        PlainUse = "plain_use",
        /// A registration without a key, of an app that demands one.
        NoKey = "no_key",
        /// Made for a key of the app that is not live.
        AppKey = "app_key",
        /// A public key that cannot be used, or none at all where a registration has one.
        PublicKey = "public_key",
        /// A change of a key whose proof is not made with the present one.
        Proof = "proof",
        /// A change of a key that was made before.
        Replay = "replay",
        /// An entry that could not be sealed: its connection ended without it.
        Cipher = "cipher",
    }
}

/// Sealed payloads.
pub struct SealMetrics {
    /// Entries that were sealed for a registration, redeliveries included.
    pub entries: CounterBy<SealedIn>,
    /// What was refused, by reason.
    pub refusals: CounterBy<SealRefusal>,
}

impl SealMetrics {
    /// On the recorder that is installed now.
    pub(super) fn new() -> Self {
        Self {
            entries: CounterBy::new("carillon_sealed_entries_total", "queue"),
            refusals: CounterBy::new("carillon_seal_refusals_total", "reason"),
        }
    }
}
