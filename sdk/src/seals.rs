//! What the device keeps for sealed payloads: pairs that are offered, keys of registrations, and what was opened.
//!
//! Pure. An entry that does not open is never given to the app in any form; whoever calls it decides what becomes of
//! the frame.

use std::collections::BTreeMap;

use carillon_wire::seal::{
    AppKey, BodyHash, Item, KEY_BYTES, PROOF_BYTES, PrivateKey, PublicKey, Queue, Refused,
    RegistrationKey, WRAPPED_KEY_BYTES, is_proof,
};
use carillon_wire::{frame, idl};
use serde::{Deserialize, Serialize};

use crate::names::{QueueName, RegId};

/// A pair that was offered for an app and has no answer yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The app's key that it is for.
    pub app: AppKey,
    /// Ours.
    pub private: PrivateKey,
}

/// What a call offers, and how its answer is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    pub app_id: String,
    pub app: AppKey,
    pub public: PublicKey,
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Pair(PrivateKey),
    /// The registration is there and has this key.
    Key(RegistrationKey),
}

/// What a confirmed answer gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub app_id: String,
    pub app: AppKey,
    pub public: PublicKey,
    pub key: Numbered,
}

/// A registration's key and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    pub number: u32,
    pub key: RegistrationKey,
}

/// The next key, asked for and not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub app: AppKey,
    pub public: PublicKey,
    pub proof: [u8; PROOF_BYTES],
    pub key: Numbered,
}

/// A registration's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    app_id: String,
    app: AppKey,
    public: PublicKey,
    key: Numbered,
    /// The key before, for what is still on its way.
    previous: Option<Numbered>,
    pending: Option<Pending>,
    /// The last that was opened of each queue: nothing at or below it is opened again.
    opened: BTreeMap<QueueName, (u32, u64)>,
}

/// A sealed message as it came.
#[derive(Clone, Debug)]
pub struct SealedBody {
    pub sealed: Vec<u8>,
    /// In shared queues.
    pub wrapped: Option<[u8; WRAPPED_KEY_BYTES]>,
}

/// Why a message was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// We do not have its key.
    NoKey,
    /// It is not what the gateway sealed.
    Bad,
}

/// What is asked for when a key is changed, and what confirms it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rekeying {
    pub rekey: idl::Rekey,
    pub confirmation: [u8; PROOF_BYTES],
}

impl Offered {
    /// With a pair that was made for the app.
    pub fn of_pair(app_id: &str, pair: &Pair) -> Result<Self, Refused> {
        let public = pair.private.public()?;
        let source = Source::Pair(pair.private.clone());
        Ok(Self { app_id: app_id.to_owned(), app: pair.app, public, source })
    }

    /// For the wire.
    pub fn to_idl(&self) -> idl::SealOffer {
        offer(&self.app, &self.public)
    }

    /// The key of the registration, if whoever answered has it too.
    pub fn agree(self, regid: &RegId, answer: Option<&idl::SealAnswer>) -> Option<Agreed> {
        let answer = answer?;
        let number = u32::try_from(answer.number).ok()?;
        let Self { app_id, app, public, source } = self;
        let key = match source {
            Source::Pair(private) => {
                RegistrationKey::of_device(&private, &app.public, regid.as_str()).ok()?
            }
            Source::Key(key) => key,
        };
        let expected = key.confirmation(number).ok()?;
        let is_same = is_proof(&expected, &answer.confirmation);
        is_same.then_some(Agreed { app_id, app, public, key: Numbered { number, key } })
    }
}

impl Seal {
    /// A registration's first key.
    pub fn new(agreed: Agreed) -> Self {
        let Agreed { app_id, app, public, key } = agreed;
        let opened = BTreeMap::new();
        Self { app_id, app, public, key, previous: None, pending: None, opened }
    }

    /// What is offered when the app registers again.
    pub fn offered(&self, app_id: &str) -> Option<Offered> {
        let source = Source::Key(self.key.key.clone());
        let (app, public) = (self.app, self.public);
        (self.app_id == app_id).then(|| Offered { app_id: app_id.to_owned(), app, public, source })
    }

    /// The change of the key that is under way, or a new one.
    pub fn rekey(&mut self, regid: &RegId, app: &AppKey) -> Result<Rekeying, Refused> {
        let pending = match self.pending.take() {
            Some(pending) => pending,
            None => {
                let private = PrivateKey::random()?;
                let (public, number) = (private.public()?, self.key.number + 1);
                let key = RegistrationKey::of_device(&private, &app.public, regid.as_str())?;
                let proof = self.key.key.rekey_proof(number, app.id, &public)?;
                Pending { app: *app, public, proof, key: Numbered { number, key } }
            }
        };
        let confirmation = pending.key.key.confirmation(pending.key.number)?;
        let seal = offer(&pending.app, &pending.public);
        let proof = pending.proof.to_vec();
        self.pending = Some(pending);
        let rekey = idl::Rekey { regid: regid.to_string(), seal, proof };
        Ok(Rekeying { rekey, confirmation })
    }

    /// The gateway has the next key.
    pub fn rekeyed(&mut self) {
        if let Some(pending) = self.pending.take() {
            (self.app, self.public) = (pending.app, pending.public);
            self.previous = Some(std::mem::replace(&mut self.key, pending.key));
        }
    }

    /// The gateway does not want the next key.
    pub fn not_rekeyed(&mut self) {
        self.pending = None;
    }

    /// Whether what has this place was opened before, so that it is a replay or an overlap.
    pub fn is_opened(&self, queue: &QueueName, epoch: u32, seq: u64) -> bool {
        self.opened.get(queue).is_some_and(|last| (epoch, seq) <= *last)
    }

    /// What has this place was handled.
    pub fn opened(&mut self, queue: &QueueName, epoch: u32, seq: u64) {
        let last = self.opened.entry(queue.clone()).or_default();
        *last = (epoch, seq).max(*last);
    }

    /// Opens a message. The gateway's use of the next key shows that it has it.
    pub fn open(
        &mut self,
        regid: &RegId,
        queue: &QueueName,
        epoch: u32,
        item: &Item<'_>,
        number: Option<u32>,
        body: &SealedBody,
    ) -> Result<idl::Content, Trouble> {
        let pending = self.pending.as_ref().map(|pending| pending.key.number);
        if number.is_some() && number == pending {
            self.rekeyed();
        }
        let keys = [Some(&self.key), self.previous.as_ref()];
        let key = keys.into_iter().flatten().find(|key| Some(key.number) == number);
        let key = &key.ok_or(Trouble::NoKey)?.key;
        let (kind, name) = queue.for_digest();
        let queue = Queue { kind, name, epoch };
        let opened = match &body.wrapped {
            None if kind == OWN => {
                let own = key.own(&queue).map_err(|_| Trouble::Bad)?;
                own.open(regid.as_str(), &queue, item, body.sealed.clone())
            }
            Some(wrapped) if kind != OWN => {
                let wrapping = key.wrapping(&queue).map_err(|_| Trouble::Bad)?;
                let hash = BodyHash::of(&body.sealed);
                let entry = wrapping.unwrap(regid.as_str(), &queue, item, &hash, wrapped);
                entry.and_then(|entry| entry.open(&queue, item, body.sealed.clone()))
            }
            None | Some(_) => Err(Refused),
        };
        let content = opened.map_err(|_| Trouble::Bad)?;
        frame::decode_content(&content).map_err(|_| Trouble::Bad)
    }
}

fn offer(app: &AppKey, public: &PublicKey) -> idl::SealOffer {
    let app_key = i32::try_from(app.id).unwrap_or(i32::MAX);
    idl::SealOffer { app_key, public_key: public.0.to_vec() }
}

/// The file's form of [`Pair`].
#[derive(Serialize, Deserialize)]
pub struct FilePair {
    app: String,
    private: [u8; KEY_BYTES],
}

/// The file's form of [`Seal`].
#[derive(Serialize, Deserialize)]
pub struct FileSeal {
    app_id: String,
    app: String,
    public: [u8; KEY_BYTES],
    key: FileKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<FileKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<FilePending>,
    opened: Vec<(String, u32, u64)>,
}

#[derive(Serialize, Deserialize)]
struct FileKey(u32, [u8; KEY_BYTES]);

#[derive(Serialize, Deserialize)]
struct FilePending {
    app: String,
    public: [u8; KEY_BYTES],
    proof: [u8; PROOF_BYTES],
    key: FileKey,
}

impl Pair {
    pub fn to_file(&self) -> FilePair {
        FilePair { app: self.app.to_string(), private: self.private.to_bytes() }
    }

    pub fn from_file(stored: FilePair) -> Option<Self> {
        let private = PrivateKey::from_bytes(stored.private);
        Some(Self { app: stored.app.parse().ok()?, private })
    }
}

impl Numbered {
    fn to_file(&self) -> FileKey {
        FileKey(self.number, self.key.to_bytes())
    }

    fn from_file(FileKey(number, key): FileKey) -> Self {
        Self { number, key: RegistrationKey::from_bytes(key) }
    }
}

impl Seal {
    pub fn to_file(&self) -> FileSeal {
        let opened = self.opened.iter();
        FileSeal {
            app_id: self.app_id.clone(),
            app: self.app.to_string(),
            public: self.public.0,
            key: self.key.to_file(),
            previous: self.previous.as_ref().map(Numbered::to_file),
            pending: self.pending.as_ref().map(|pending| FilePending {
                app: pending.app.to_string(),
                public: pending.public.0,
                proof: pending.proof,
                key: pending.key.to_file(),
            }),
            opened: opened.map(|(queue, at)| (queue.to_string(), at.0, at.1)).collect(),
        }
    }

    pub fn from_file(stored: FileSeal) -> Option<Self> {
        let pending = |stored: FilePending| {
            let (public, proof) = (PublicKey(stored.public), stored.proof);
            let key = Numbered::from_file(stored.key);
            Some(Pending { app: stored.app.parse().ok()?, public, proof, key })
        };
        let opened =
            |(queue, epoch, seq): (String, u32, u64)| Some((queue.parse().ok()?, (epoch, seq)));
        Some(Self {
            app_id: stored.app_id,
            app: stored.app.parse().ok()?,
            public: PublicKey(stored.public),
            key: Numbered::from_file(stored.key),
            previous: stored.previous.map(Numbered::from_file),
            pending: match stored.pending {
                Some(stored) => Some(pending(stored)?),
                None => None,
            },
            opened: stored.opened.into_iter().map(opened).collect::<Option<_>>()?,
        })
    }
}

/// The kind of a registration's own queue.
const OWN: u8 = 1;
