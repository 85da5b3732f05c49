//! Sealed payloads as a device opens them: a key for each device, agreed when it is there for the first time.

use anyhow::Context;
use carillon_wire::digest::kind_byte;
use carillon_wire::idl::{Delta, Entry, Register, SealOffer, Up};
use carillon_wire::seal::{BodyHash, Item, PrivateKey, Queue, RegistrationKey, WRAPPED_KEY_BYTES};
use carillon_wire::{frame, idl};

use crate::order::Seal;

/// What a device has for it.
pub struct Keys {
    private: PrivateKey,
    agreed: Option<(String, RegistrationKey)>,
}

impl Keys {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { private: PrivateKey::random()?, agreed: None })
    }

    pub fn is_agreed(&self) -> bool {
        self.agreed.is_some()
    }

    /// The frame that registers with the key.
    pub fn register(&self, by: &Seal) -> anyhow::Result<Vec<u8>> {
        let public_key = self.private.public()?.0.to_vec();
        let seal = Some(SealOffer { app_key: i32::try_from(by.key()?.id)?, public_key });
        let (app_id, app_key) = (by.app.clone(), by.app_key.clone());
        let register = Some(Register { app_id, app_key, seal, attributes: None });
        let up = Up { request: Some(1), register_app: register, ..frame::empty_up() };
        let mut out = Vec::new();
        frame::encode_up(&up, &mut out).context("a frame that cannot be written")?;
        Ok(out)
    }

    /// The gateway has answered.
    pub fn agree(&mut self, by: &Seal, regid: String) -> anyhow::Result<()> {
        let key = RegistrationKey::of_device(&self.private, &by.key()?.public, &regid)?;
        self.agreed = Some((regid, key));
        Ok(())
    }

    /// The payloads of the sealed entries of a delta.
    pub fn open(&self, delta: &Delta, on_message: &mut impl FnMut(&[u8])) -> anyhow::Result<()> {
        let Some((regid, key)) = &self.agreed else { return Ok(()) };
        let kind = kind_byte(delta.queue.kind).context("a kind of queue that we do not know")?;
        let name = delta.queue.name.as_deref().unwrap_or_default();
        let queue = Queue { kind, name, epoch: frame::epoch_from_idl(delta.epoch)? };
        let wrapped = delta.wrapped_keys.as_deref().unwrap_or_default();
        let mut wrapped = wrapped.chunks_exact(WRAPPED_KEY_BYTES);
        for entry in &delta.entries {
            let Some(sealed) = &entry.sealed else { continue };
            let item = item(entry)?;
            let content = match delta.queue.kind {
                idl::QueueKind::OWN => {
                    key.own(&queue)?.open(regid, &queue, &item, sealed.clone())?
                }
                _ => {
                    let bytes = wrapped.next().context("a wrapped key is missing")?.try_into()?;
                    let (by, hash) = (key.wrapping(&queue)?, BodyHash::of(sealed));
                    let entry_key = by.unwrap(regid, &queue, &item, &hash, bytes)?;
                    entry_key.open(&queue, &item, sealed.clone())?
                }
            };
            let content = frame::decode_content(&content)?;
            content.payload.as_deref().into_iter().for_each(&mut *on_message);
        }
        Ok(())
    }
}

fn item(entry: &Entry) -> anyhow::Result<Item<'_>> {
    let id = entry.id.as_deref().context("a message without an id")?;
    let seq = frame::seq_from_idl(entry.seq)?;
    Ok(Item { seq, id, time_ms: entry.time_ms.unwrap_or_default() })
}
