//! Sealed payloads: the keys of apps and registrations, and what a connection needs to seal for a registration.
//!
//! What is stored here can read every message of the app, as the queues themselves can: the store is the gateway's own
//! and is protected as a whole. It must never know frames.

use std::{fmt, sync::Arc};

use carillon_wire::{
    idl,
    seal::{
        AppKey, EntrySecret, KEY_BYTES, PROOF_BYTES, PrivateKey, PublicKey, Refused,
        RegistrationKey, is_proof,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    Error, Service,
    apps::APPS_SHARD,
    records::{App, Registration},
    register::{NO_REGISTRATION, load},
};
use crate::{
    base::{
        ids::{AppId, DeviceId, RegId},
        metrics::SealRefusal,
    },
    crash_point,
    queue::store::{Space, decode, encode},
};

/// Live key pairs of one app.
const KEYS_MAX: usize = 8;

/// Why a registration without a key of an app that demands sealing is refused.
pub(super) const UNSEALED: Error =
    Error::Sealed("this app seals its payloads: register with a key");

/// Why a registration that has a key is not given to who offers none.
pub(super) const KEPT: &str = "the registration is sealed";
const APP_KEY: &str = "live key of the app";
const PUBLIC_KEY: &str = "this public key cannot be used";
const PROOF: &str = "the proof is not made with the registration's key";
const REPLAY: &str = "this key was changed since";

/// 256 secret bits, as stored.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden([u8; KEY_BYTES]);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(…)")
    }
}

/// What an app has for sealing; nothing until it is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSeal {
    /// Registrations without a key, and plain use, are refused.
    is_demanded: bool,
    /// Live pairs, newest last.
    pairs: Vec<Pair>,
    /// Of the keys of shared entries; made with the first pair, and never changed.
    entries: Option<Hidden>,
}

/// One of an app's key pairs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pair {
    id: u32,
    private: Hidden,
    public: [u8; KEY_BYTES],
}

/// The key of a registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationSeal {
    /// 1 at first, and one more with each change.
    number: u32,
    app_key: u32,
    device: [u8; KEY_BYTES],
    /// The public half that it took the place of, so that its offer is known if it comes again.
    before: Option<[u8; KEY_BYTES]>,
    key: Hidden,
}

/// What a device offers: its pair's public half, and which of the app's keys it goes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealOffer {
    app_key: u32,
    device: PublicKey,
}

/// What the device is told of its registration's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealAnswer {
    /// The key's number.
    pub number: u32,
    /// Proof that we have it.
    pub confirmation: [u8; PROOF_BYTES],
}

/// A registration, as the device is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its name.
    pub regid: RegId,
    /// Set if it is sealed.
    pub seal: Option<SealAnswer>,
}

/// With what a connection seals for one registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealer {
    /// The key's number.
    pub number: u32,
    /// The registration's.
    pub key: RegistrationKey,
    /// The app's.
    pub entries: EntrySecret,
}

/// How messages go to a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// As sent.
    Open,
    /// Sealed, in frames only.
    Sealed(Arc<Sealer>),
    /// Not at all: the app demands a key, and the registration has none.
    Refused,
}

/// What an operator sees of an app's sealing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SealState {
    /// Registrations without a key, and plain use, are refused.
    pub demanded: bool,
    /// Live public keys as they ship inside the app, newest last.
    pub keys: Vec<String>,
}

/// What an operator wants changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SealChange {
    /// Whether sealing is demanded from now on; `None` leaves it.
    pub demanded: Option<bool>,
    /// One more pair; the first one is made in any case.
    pub new_key: bool,
    /// The older pairs take no new registrations from now on; registrations keep their keys.
    pub revoke_older: bool,
}

impl Sealing {
    /// With what it is sealed, if it is.
    pub fn into_sealer(self) -> Option<Arc<Sealer>> {
        match self {
            Self::Sealed(sealer) => Some(sealer),
            Self::Open | Self::Refused => None,
        }
    }
}

impl SealOffer {
    /// Reads a device's offer.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn from_idl(offer: &idl::SealOffer) -> Result<Self, Error> {
        let invalid = |rule: &str| Error::Invalid { field: "seal", rule: rule.to_owned() };
        let app_key =
            offer.app_key.try_into().map_err(|_| invalid("a key's id is not negative"))?;
        let device = offer.public_key[..].try_into();
        let device = device.map_err(|_| invalid("a public key has 32 bytes"))?;
        Ok(Self { app_key, device: PublicKey(device) })
    }
}

impl AppSeal {
    /// What an operator sees of it.
    pub fn state(&self) -> SealState {
        let shown =
            |pair: &Pair| AppKey { id: pair.id, public: PublicKey(pair.public) }.to_string();
        SealState { demanded: self.is_demanded, keys: self.pairs.iter().map(shown).collect() }
    }

    /// Whether registrations need a key.
    pub fn is_demanded(&self) -> bool {
        self.is_demanded
    }

    fn change(&mut self, change: SealChange) -> Result<(), Error> {
        if self.entries.is_none() {
            self.entries = Some(Hidden(EntrySecret::random().map_err(broken)?.to_bytes()));
        }
        if change.new_key || self.pairs.is_empty() {
            let id = self.pairs.last().map_or(1, |newest| newest.id + 1);
            let private = PrivateKey::random().map_err(broken)?;
            let public = private.public().map_err(broken)?.0;
            self.pairs.push(Pair { id, private: Hidden(private.to_bytes()), public });
        }
        if change.revoke_older {
            self.pairs.drain(..self.pairs.len() - 1);
        }
        if self.pairs.len() > KEYS_MAX {
            let what = "live keys of an app; revoke the older ones";
            return Err(Error::Limit { what, max: KEYS_MAX });
        }
        self.is_demanded = change.demanded.unwrap_or(self.is_demanded);
        Ok(())
    }

    /// The key that a registration gets by an offer.
    pub(super) fn agree(
        &self,
        regid: &RegId,
        offer: &SealOffer,
        number: u32,
    ) -> Result<RegistrationSeal, Error> {
        let pair = self.pairs.iter().find(|pair| pair.id == offer.app_key);
        let pair = pair.ok_or(Error::NotFound { what: APP_KEY })?;
        let private = PrivateKey::from_bytes(pair.private.0);
        let key = RegistrationKey::of_app(&private, &offer.device, &regid.to_string());
        let key = key.map_err(|_| Error::Forbidden(PUBLIC_KEY))?;
        let (app_key, device) = (offer.app_key, offer.device.0);
        Ok(RegistrationSeal { number, app_key, device, before: None, key: Hidden(key.to_bytes()) })
    }
}

impl RegistrationSeal {
    /// Whether it came of this offer.
    pub(super) fn is_of(&self, offer: &SealOffer) -> bool {
        self.app_key == offer.app_key && self.device == offer.device.0
    }

    pub(super) fn answer(&self) -> Result<SealAnswer, Error> {
        let confirmation = self.key().confirmation(self.number).map_err(broken)?;
        Ok(SealAnswer { number: self.number, confirmation })
    }

    fn key(&self) -> RegistrationKey {
        RegistrationKey::from_bytes(self.key.0)
    }

    /// What comes after it, for a holder of the key.
    fn changed(&self, next: RegistrationSeal, proof: &[u8]) -> Result<RegistrationSeal, Error> {
        let device = PublicKey(next.device);
        let expected = self.key().rekey_proof(next.number, next.app_key, &device);
        if is_proof(&expected.map_err(broken)?, proof) {
            return Ok(RegistrationSeal { before: Some(self.device), ..next });
        }
        let is_replay = self.before == Some(next.device);
        Err(Error::Forbidden(if is_replay { REPLAY } else { PROOF }))
    }
}

impl Service {
    /// Changes an app's sealing, and tells all connections where it is demanded from now on.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Limit`] (too many live keys), [`Error::Unavailable`].
    pub async fn seal_app(&self, app: &str, change: SealChange) -> Result<SealState, Error> {
        let id: AppId = app.parse().map_err(|_| Error::NotFound { what: "app" })?;
        let (before, after) = self
            .router
            .run(APPS_SHARD, move |txn| {
                let key = id.as_str().as_bytes().to_vec();
                let bytes = txn.get(Space::Apps, &key)?.ok_or(Error::NotFound { what: "app" })?;
                let mut app: App = decode(&bytes)?;
                let before = app.seal.is_demanded;
                app.seal.change(change)?;
                txn.put(Space::Apps, key, encode(&app));
                crash_point!("keys::before_change");
                Ok::<_, Error>((before, app.seal))
            })
            .await?;
        crash_point!("keys::after_change");
        if before != after.is_demanded {
            self.refresh_all();
        }
        Ok(after.state())
    }

    /// Changes the key of a registration for somebody who proves that he has the present one.
    ///
    /// # Errors
    /// [`Error::NotFound`] (registration or key of the app), [`Error::Forbidden`] (proof, public key, not sealed),
    /// [`Error::Unavailable`].
    pub async fn rekey(
        &self,
        device: &DeviceId,
        regid: &str,
        offer: SealOffer,
        proof: Vec<u8>,
    ) -> Result<Registered, Error> {
        let regid: RegId = regid.parse().map_err(|_| NO_REGISTRATION)?;
        let registrations = self.registrations(device)?;
        let app = registrations.into_iter().find(|one| one.regid == regid);
        let app = self.app_record(&app.ok_or(NO_REGISTRATION)?.app)?.ok_or(NO_REGISTRATION)?;
        let device = *device;
        let changed = self
            .router
            .run(device.shard(), move |txn| {
                let mut record = load(txn, &device)?;
                let one = record.registrations.iter_mut().find(|one| one.regid == regid);
                let one = one.ok_or(NO_REGISTRATION)?;
                let present = one.seal.as_ref();
                let present = present.ok_or(Error::Forbidden("the registration is not sealed"))?;
                if !present.is_of(&offer) {
                    let next = app.seal.agree(&regid, &offer, present.number + 1)?;
                    one.seal = Some(present.changed(next, &proof)?);
                }
                let seal = one.seal.as_ref().map(RegistrationSeal::answer).transpose()?;
                txn.put(Space::Devices, device.as_bytes(), encode(&record));
                crash_point!("keys::before_rekey");
                Ok(Registered { regid, seal })
            })
            .await;
        self.note_refusal(&changed);
        crash_point!("keys::after_rekey");
        changed
    }

    /// Counts what was refused for the sake of sealing.
    pub(super) fn note_refusal<T>(&self, done: &Result<T, Error>) {
        if let Some(reason) = done.as_ref().err().and_then(refusal_of) {
            self.metrics.seals.refusals.of(reason).increment(1);
        }
    }

    /// How messages go to a registration.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn sealing(&self, registration: &Registration) -> Result<Sealing, Error> {
        let app = self.app_record(&registration.app)?;
        let app = app.as_deref().map(|app| &app.seal);
        let Some(seal) = &registration.seal else {
            let is_refused = app.is_some_and(|app| app.is_demanded);
            return Ok(if is_refused { Sealing::Refused } else { Sealing::Open });
        };
        // Without the app's secret nothing could be sealed: then nothing goes out.
        let Some(entries) = app.and_then(|app| app.entries) else { return Ok(Sealing::Refused) };
        let entries = EntrySecret::from_bytes(entries.0);
        Ok(Sealing::Sealed(Arc::new(Sealer { number: seal.number, key: seal.key(), entries })))
    }

    /// Whether an app refuses registrations without a key.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) fn demands_seal(&self, app: &AppId) -> Result<bool, Error> {
        Ok(self.app_record(app)?.is_some_and(|app| app.seal.is_demanded))
    }
}

/// Why a call was refused, if that was for the sake of sealing.
fn refusal_of(error: &Error) -> Option<SealRefusal> {
    match error {
        Error::Sealed(_) => Some(SealRefusal::NoKey),
        Error::NotFound { what: APP_KEY } => Some(SealRefusal::AppKey),
        Error::Forbidden(PUBLIC_KEY | KEPT) => Some(SealRefusal::PublicKey),
        Error::Forbidden(PROOF) => Some(SealRefusal::Proof),
        Error::Forbidden(REPLAY) => Some(SealRefusal::Replay),
        _ => None,
    }
}

/// What cannot happen with keys of ours, and is not answered with an open message.
fn broken(_: Refused) -> Error {
    Error::Forbidden("the keys of this registration cannot be used")
}
