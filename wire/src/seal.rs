//! Sealed payloads: keys of registrations, bodies of entries, and the keys of shared entries wrapped for each follower.
//!
//! Pure and deterministic: the same entry for the same registration is the same bytes, so that a redelivery repeats
//! them, and every (key, nonce) stands for one plaintext. Whoever calls it keeps the keys; it knows no queues and no
//! wire formats. The algorithm and its test vectors are in docs/PROTOCOL.md.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::{constant_time, digest, hkdf, rand};

/// A half of an X25519 pair, a registration's key, an app's entry secret.
pub const KEY_BYTES: usize = 32;
/// What sealing adds to a plaintext.
pub const SEAL_BYTES: usize = 16;
/// The key of a shared entry, wrapped for one registration.
pub const WRAPPED_KEY_BYTES: usize = ENTRY_KEY_BYTES + SEAL_BYTES;
/// Proof that both ends have the same key.
pub const PROOF_BYTES: usize = 16;

/// Sealed bytes, a key or a proof that is not what it should be. Nothing tells which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be sealed or opened")]
pub struct Refused;

/// The private half of an X25519 pair.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; KEY_BYTES]);

/// The public half of an X25519 pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(pub [u8; KEY_BYTES]);

/// One of an app's live public keys, as it ships inside the app: `<id>-<64 hex digits>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppKey {
    /// Names it on the wire.
    pub id: u32,
    /// The key.
    pub public: PublicKey,
}

/// What a device and the gateway agreed for one registration.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistrationKey([u8; KEY_BYTES]);

/// From which the gateway derives the keys of an app's shared entries.
#[derive(Clone, PartialEq, Eq)]
pub struct EntrySecret([u8; KEY_BYTES]);

/// The key of one shared entry.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryKey([u8; ENTRY_KEY_BYTES]);

/// A queue as one registration names it, in one epoch.
#[derive(Clone, Copy, Debug)]
pub struct Queue<'a> {
    /// 1 own, 2 alias, 3 topic, 4 all.
    pub kind: u8,
    /// Empty for own and all.
    pub name: &'a str,
    /// Of the entries' append.
    pub epoch: u32,
}

/// What of an entry stays readable, and is bound to what is sealed.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Its place in the queue.
    pub seq: u64,
    /// The message's.
    pub id: &'a [u8],
    /// When it was accepted, in milliseconds since 1970.
    pub time_ms: i64,
}

/// Seals and opens bodies of a registration's own queue, of one epoch.
pub struct OwnKey(LessSafeKey);

/// Wraps and unwraps entry keys for one registration, of one shared queue and epoch.
pub struct WrappingKey(LessSafeKey);

/// A sealed body of a shared entry, as its wrapped keys bind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyHash([u8; 32]);

impl PrivateKey {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn random() -> Result<Self, Refused> {
        let key = agreement::PrivateKey::generate(&X25519).map_err(|_| Refused)?;
        let seed: Curve25519SeedBin<'_> = key.as_be_bytes().map_err(|_| Refused)?;
        seed.as_ref().try_into().map(Self).map_err(|_| Refused)
    }

    /// One that was kept.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// To be kept: secret.
    pub fn to_bytes(&self) -> [u8; KEY_BYTES] {
        self.0
    }

    /// The other half.
    ///
    /// # Errors
    /// The bytes are no key.
    pub fn public(&self) -> Result<PublicKey, Refused> {
        let public = self.key()?.compute_public_key().map_err(|_| Refused)?;
        public.as_ref().try_into().map(PublicKey).map_err(|_| Refused)
    }

    fn key(&self) -> Result<agreement::PrivateKey, Refused> {
        agreement::PrivateKey::from_private_key(&X25519, &self.0).map_err(|_| Refused)
    }

    fn agree(&self, theirs: &PublicKey) -> Result<hkdf::Prk, Refused> {
        let theirs = UnparsedPublicKey::new(&X25519, theirs.0);
        let extract = |shared: &[u8]| {
            Ok(hkdf::Salt::new(hkdf::HKDF_SHA256, LABEL_REGISTRATION).extract(shared))
        };
        agreement::agree(&self.key()?, theirs, Refused, extract)
    }
}

impl AppKey {
    fn parse(text: &str) -> Option<Self> {
        let (id, hex) = text.split_once('-')?;
        let id = id.parse().ok().filter(|id| i32::try_from(*id).is_ok())?;
        let mut public = [0; KEY_BYTES];
        if hex.len() != 2 * KEY_BYTES || !hex.is_ascii() {
            return None;
        }
        for (i, byte) in public.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(Self { id, public: PublicKey(public) })
    }
}

impl fmt::Display for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-", self.id)?;
        self.public.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for AppKey {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        Self::parse(text).ok_or(Refused)
    }
}

impl RegistrationKey {
    /// What the device agrees with the app's public key.
    ///
    /// # Errors
    /// A public key of low order, or bytes that are no key.
    pub fn of_device(device: &PrivateKey, app: &PublicKey, regid: &str) -> Result<Self, Refused> {
        Self::agreed(&device.agree(app)?, app, &device.public()?, regid)
    }

    /// The same from the gateway's end.
    ///
    /// # Errors
    /// As [`RegistrationKey::of_device`].
    pub fn of_app(app: &PrivateKey, device: &PublicKey, regid: &str) -> Result<Self, Refused> {
        Self::agreed(&app.agree(device)?, &app.public()?, device, regid)
    }

    /// One that was kept.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// To be kept: secret.
    pub fn to_bytes(&self) -> [u8; KEY_BYTES] {
        self.0
    }

    /// What proves to the device that the gateway has the registration's key of this number.
    ///
    /// # Errors
    /// None that can happen: see [`Refused`].
    pub fn confirmation(&self, number: u32) -> Result<[u8; PROOF_BYTES], Refused> {
        expand(&self.prk(), &[LABEL_CONFIRM, &number.to_le_bytes()])
    }

    /// What proves to the gateway that the holder of this key wants it changed for the key of this number.
    ///
    /// # Errors
    /// As [`RegistrationKey::confirmation`].
    pub fn rekey_proof(
        &self,
        number: u32,
        app_key: u32,
        device: &PublicKey,
    ) -> Result<[u8; PROOF_BYTES], Refused> {
        let text = [&number.to_le_bytes()[..], &app_key.to_le_bytes(), &device.0].concat();
        expand(&self.prk(), &[LABEL_REKEY, &text])
    }

    /// For the registration's own queue.
    ///
    /// # Errors
    /// As [`RegistrationKey::confirmation`].
    pub fn own(&self, queue: &Queue<'_>) -> Result<OwnKey, Refused> {
        let key = expand(&self.prk(), &[LABEL_OWN, &queue.text()])?;
        aes(&key).map(OwnKey)
    }

    /// For a shared queue.
    ///
    /// # Errors
    /// As [`RegistrationKey::confirmation`].
    pub fn wrapping(&self, queue: &Queue<'_>) -> Result<WrappingKey, Refused> {
        let key = expand(&self.prk(), &[LABEL_WRAP, &queue.text()])?;
        aes(&key).map(WrappingKey)
    }

    fn agreed(
        shared: &hkdf::Prk,
        app: &PublicKey,
        device: &PublicKey,
        regid: &str,
    ) -> Result<Self, Refused> {
        expand(shared, &[&app.0, &device.0, regid.as_bytes()]).map(Self)
    }

    fn prk(&self) -> hkdf::Prk {
        hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &self.0)
    }
}

impl EntrySecret {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn random() -> Result<Self, Refused> {
        let mut bytes = [0; KEY_BYTES];
        rand::fill(&mut bytes).map_err(|_| Refused)?;
        Ok(Self(bytes))
    }

    /// One that was kept.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// To be kept: secret.
    pub fn to_bytes(&self) -> [u8; KEY_BYTES] {
        self.0
    }

    /// The key of one shared entry: no other entry has it.
    ///
    /// # Errors
    /// As [`RegistrationKey::confirmation`].
    pub fn entry_key(&self, queue: &Queue<'_>, item: &Item<'_>) -> Result<EntryKey, Refused> {
        let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &self.0);
        let text = [&queue.text()[..], &item.text()].concat();
        expand(&prk, &[LABEL_ENTRY, &text]).map(EntryKey)
    }
}

impl EntryKey {
    /// Seals the body of the one entry that has this key.
    ///
    /// # Errors
    /// The plaintext is too long for the cipher: many GiB.
    pub fn seal(
        &self,
        queue: &Queue<'_>,
        item: &Item<'_>,
        plaintext: Vec<u8>,
    ) -> Result<Vec<u8>, Refused> {
        seal(&aes(&self.0)?, item, associated("", queue, item), plaintext)
    }

    /// Opens it.
    ///
    /// # Errors
    /// Any bit of the body, its place or its item differs.
    pub fn open(
        &self,
        queue: &Queue<'_>,
        item: &Item<'_>,
        sealed: Vec<u8>,
    ) -> Result<Vec<u8>, Refused> {
        open(&aes(&self.0)?, item, associated("", queue, item), sealed)
    }
}

impl BodyHash {
    /// Of a sealed body.
    pub fn of(sealed: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, sealed).as_ref());
        Self(hash)
    }
}

impl OwnKey {
    /// Seals the body of one entry.
    ///
    /// # Errors
    /// As [`EntryKey::seal`].
    pub fn seal(
        &self,
        regid: &str,
        queue: &Queue<'_>,
        item: &Item<'_>,
        plaintext: Vec<u8>,
    ) -> Result<Vec<u8>, Refused> {
        seal(&self.0, item, associated(regid, queue, item), plaintext)
    }

    /// Opens it.
    ///
    /// # Errors
    /// As [`EntryKey::open`], or it is another registration's.
    pub fn open(
        &self,
        regid: &str,
        queue: &Queue<'_>,
        item: &Item<'_>,
        sealed: Vec<u8>,
    ) -> Result<Vec<u8>, Refused> {
        open(&self.0, item, associated(regid, queue, item), sealed)
    }
}

impl WrappingKey {
    /// Appends the wrapped key of one entry to `out`: [`WRAPPED_KEY_BYTES`]. It is bound to the sealed body too, so that no
    /// other follower, who has the same entry key, can put another body in its place.
    ///
    /// # Errors
    /// As [`EntryKey::seal`]; `out` is then as before.
    pub fn wrap(
        &self,
        regid: &str,
        queue: &Queue<'_>,
        item: &Item<'_>,
        body: &BodyHash,
        key: &EntryKey,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let associated = [&associated(regid, queue, item)[..], &body.0].concat();
        let mut wrapped = key.0;
        let tag =
            self.0.seal_in_place_separate_tag(nonce(item), Aad::from(associated), &mut wrapped);
        let tag = tag.map_err(|_| Refused)?;
        out.extend_from_slice(&wrapped);
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Gives the entry's key back.
    ///
    /// # Errors
    /// As [`OwnKey::open`].
    pub fn unwrap(
        &self,
        regid: &str,
        queue: &Queue<'_>,
        item: &Item<'_>,
        body: &BodyHash,
        wrapped: &[u8; WRAPPED_KEY_BYTES],
    ) -> Result<EntryKey, Refused> {
        let associated = [&associated(regid, queue, item)[..], &body.0].concat();
        let key = open(&self.0, item, associated, wrapped.to_vec())?;
        key.try_into().map(EntryKey).map_err(|_| Refused)
    }
}

impl Queue<'_> {
    /// Kind, name and epoch, as keys are derived from them.
    fn text(&self) -> Vec<u8> {
        [&[self.kind], self.name.as_bytes(), &[0], &self.epoch.to_le_bytes()].concat()
    }
}

impl Item<'_> {
    /// Seq, time and id, as they are bound.
    fn text(&self) -> Vec<u8> {
        [&self.seq.to_le_bytes()[..], &self.time_ms.to_le_bytes(), self.id].concat()
    }
}

/// Whether a stated proof is the one that was expected, in constant time.
pub fn is_proof(expected: &[u8; PROOF_BYTES], stated: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(expected, stated).is_ok()
}

macro_rules! secret {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            /// Without the key.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )*};
}
secret!(PrivateKey, RegistrationKey, EntrySecret, EntryKey, OwnKey, WrappingKey);

/// The number in the queue; above it the end of the message's id, so that also a store that was restored from a backup
/// and gives numbers out again does not repeat a nonce.
fn nonce(item: &Item<'_>) -> Nonce {
    let mut nonce = [0; 12];
    let (above, number) = nonce.split_at_mut(4);
    let end = &item.id[item.id.len().saturating_sub(4)..];
    above[..end.len()].copy_from_slice(end);
    number.copy_from_slice(&item.seq.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// What is bound to sealed bytes: whose they are (empty for a shared body), where they are, and what is readable of them.
fn associated(regid: &str, queue: &Queue<'_>, item: &Item<'_>) -> Vec<u8> {
    [regid.as_bytes(), &[0], &queue.text(), &item.text()].concat()
}

fn seal(
    key: &LessSafeKey,
    item: &Item<'_>,
    associated: Vec<u8>,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>, Refused> {
    bytes.reserve_exact(SEAL_BYTES);
    let sealed = key.seal_in_place_append_tag(nonce(item), Aad::from(associated), &mut bytes);
    sealed.map(|()| bytes).map_err(|_| Refused)
}

fn open(
    key: &LessSafeKey,
    item: &Item<'_>,
    associated: Vec<u8>,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>, Refused> {
    let opened = key.open_in_place(nonce(item), Aad::from(associated), &mut bytes);
    let length = opened.map_err(|_| Refused)?.len();
    bytes.truncate(length);
    Ok(bytes)
}

fn aes(key: &[u8; ENTRY_KEY_BYTES]) -> Result<LessSafeKey, Refused> {
    UnboundKey::new(&AES_128_GCM, key).map(LessSafeKey::new).map_err(|_| Refused)
}

fn expand<const N: usize>(prk: &hkdf::Prk, info: &[&[u8]]) -> Result<[u8; N], Refused> {
    struct Bytes(usize);
    impl hkdf::KeyType for Bytes {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut out = [0; N];
    let expanded = prk.expand(info, Bytes(N)).and_then(|okm| okm.fill(&mut out));
    expanded.map(|()| out).map_err(|_| Refused)
}

/// An AES-128 key.
const ENTRY_KEY_BYTES: usize = 16;
const LABEL_REGISTRATION: &[u8] = b"carillon seal 1 registration";
const LABEL_CONFIRM: &[u8] = b"carillon seal 1 confirm\0";
const LABEL_REKEY: &[u8] = b"carillon seal 1 rekey\0";
const LABEL_OWN: &[u8] = b"carillon seal 1 own\0";
const LABEL_WRAP: &[u8] = b"carillon seal 1 wrap\0";
const LABEL_ENTRY: &[u8] = b"carillon seal 1 entry\0";
