//! Edits that devices make to the items of their aliases: each once, whatever is sent again.
//!
//! What became of a device's newest edits is kept beside the queue, and written in the batch of
//! the entries that they led to. So no crash parts the two, and what is sent again is answered
//! and not done again.

mod rates;
mod taken;

use std::sync::Arc;

use carillon_wire::{frame, idl};

pub use self::taken::{Fate, KEPT_MAX};
use self::{
    rates::Rates,
    taken::{Placed, Taken},
};
use super::{
    Error, Service,
    bind::By,
    collections::{Change, Changed, Collections, Failed},
};
use crate::{
    base::ids::{Alias, DeviceId, QueueId, QueueName, RegId},
    crash_point,
    queue::{
        collection::{
            append::{Ask, Changing},
            change::{Format, Hlc, Origin, Stamp, Value},
        },
        position::{Epoch, Position, Seq},
        store::{Key, Space, decode, encode},
    },
};

/// What uploads need besides the store.
#[derive(Default)]
pub struct Uploads {
    rates: Rates,
}

impl Uploads {
    /// Forgets who owes nothing.
    pub(super) fn sweep(&self) {
        self.rates.sweep();
    }
}

/// One change of one item, as a device states it.
#[derive(Clone, Debug)]
struct Edit {
    cseq: u64,
    collection: String,
    key: String,
    value: Option<Value>,
    /// Where its maker stood, or why that is no position.
    base: Result<Position, Box<str>>,
    clock: Hlc,
}

/// What became of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// As a whole.
    pub verdict: Verdict,
    /// Edits with their numbers: all of them if they were taken, else those before the first
    /// that was not, taken before.
    pub fates: Vec<(u64, Fate)>,
    /// The number that is expected next.
    pub next: u64,
}

/// How an upload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All edits are taken, now or before.
    Taken,
    /// The registration uploads too much; later.
    TooFast,
    /// Long-term storage is far behind; later.
    Behind,
    /// The numbers do not go on where we are; nothing is taken.
    OutOfStep,
}

impl Edit {
    fn from_idl(epoch: i32, idl: idl::Edit) -> Result<Self, Error> {
        let cseq = u64::try_from(idl.cseq).ok().filter(|cseq| *cseq > 0).ok_or_else(hole)?;
        let base = frame::epoch_from_idl(epoch).and_then(|epoch| {
            let seq = frame::seq_from_idl(idl.base_seq)?;
            Ok(Position { epoch: Epoch(epoch), seq: Seq(seq) })
        });
        let format = match idl.format {
            None | Some(idl::ValueFormat::JSON) => Ok(Format::Json),
            Some(idl::ValueFormat::THRIFT) => Ok(Format::Thrift),
            Some(_) => Err("format: JSON or THRIFT".into()),
        };
        let base = base.map_err(|error| error.to_string().into());
        let value = idl
            .value
            .map(|bytes| Value { format: format.clone().unwrap_or_default(), bytes: bytes.into() });
        let base = base.and_then(|base| format.map(|_| base));
        let (collection, key) = (idl.collection, idl.key);
        Ok(Self { cseq, collection, key, value, base, clock: Hlc(idl.clock.cast_unsigned()) })
    }

    /// What it asks for; or why it cannot be read.
    fn ask(&self, collections: &Collections, regid: RegId) -> Result<Ask, Box<str>> {
        let origin = Origin::Device { regid, cseq: self.cseq };
        let change = Change {
            collection: &self.collection,
            key: &self.key,
            value: self.value.clone(),
            base: Some(self.base.clone()?),
            stamp: Stamp { clock: self.clock, origin },
        };
        collections.ask(change).map_err(|error| error.to_string().into())
    }
}

/// Edits that go on one from the other, each with what it asks for.
struct Batch {
    stored_key: Key,
    edits: Vec<Edit>,
    asks: Vec<Result<Ask, Box<str>>>,
}

impl Service {
    /// Takes a device's edits, all of them durable together with their fates. One that cannot be
    /// read is a fate too.
    ///
    /// # Errors
    /// [`Error::NotFound`] (no such registration on the device), [`Error::Forbidden`] (it does
    /// not follow the alias), [`Error::NeedsPolicy`], [`Error::Sealed`], [`Error::Invalid`],
    /// [`Error::Unavailable`]: nothing is taken.
    pub async fn upload(&self, device: &DeviceId, upload: idl::Upload) -> Result<Uploaded, Error> {
        let idl::Upload { regid, alias_name, epoch, edits } = upload;
        let (_, registration) = self.registration_of(&regid, By::Device { device, token: None })?;
        let alias: Alias = alias_name.parse()?;
        let queue = QueueName::Alias(registration.app.clone(), alias);
        if registration.follows.iter().all(|follow| follow.queue != queue) {
            return Err(NOT_FOLLOWED);
        }
        let collections = self.collections(&registration.app)?;
        let (queue, regid) = (queue.id(), registration.regid);
        let mut edits = consecutive(epoch, edits)?;
        let stored_key = stored_key(device, &queue);
        let known = self.known_edits(&stored_key, &edits)?;
        let refused = self.refusal(regid, edits.len() - known);
        if refused.is_some() {
            edits.truncate(known);
        }
        let asks = edits.iter().map(|edit| edit.ask(&collections, regid)).collect();
        let batch = Arc::new(Batch { stored_key, edits, asks });
        let mut uploaded = self.take(queue, batch, known).await?;
        if let (Some(refused), Verdict::Taken) = (refused, uploaded.verdict) {
            uploaded.verdict = refused;
        }
        crash_point!("uploads::before_answer");
        Ok(uploaded)
    }

    /// How many of some edits were taken before, perhaps not durably yet.
    fn known_edits(&self, stored_key: &[u8], edits: &[Edit]) -> Result<usize, Error> {
        let stored = self.router.get(Space::Uploads, stored_key)?;
        let taken: Taken = stored.map_or(Ok(Taken::default()), |bytes| decode(&bytes))?;
        Ok(taken.place(edits).fates.len())
    }

    /// Why so many edits more cannot be taken now. Those that can are paid for.
    fn refusal(&self, regid: RegId, fresh: usize) -> Option<Verdict> {
        if fresh == 0 {
            return None;
        }
        if self.may_change().is_err() {
            return Some(Verdict::Behind);
        }
        let limits = self.limits.load();
        let fresh = u32::try_from(fresh).unwrap_or(u32::MAX);
        let may = self.uploads.rates.take(regid, fresh, limits.edits_per_s, limits.edits_burst);
        (!may).then_some(Verdict::TooFast)
    }

    /// `known`: edits from the first one on that were taken before.
    async fn take(
        &self,
        queue: QueueId,
        batch: Arc<Batch>,
        known: usize,
    ) -> Result<Uploaded, Error> {
        let asks = batch.asks.iter().skip(known).flatten();
        let asks: Vec<Ask> = asks.cloned().collect();
        let act = move |changing: &mut Changing<'_, '_>| take(changing, &batch);
        let (uploaded, fresh) = self.changing(queue, &asks, act).await?;
        let (asks, done): (Vec<Ask>, Vec<Changed>) = fresh.into_iter().unzip();
        self.count_changes(&asks, &done);
        Ok(uploaded)
    }
}

/// Takes those edits of a batch that were not taken before. Gives these with what they led to.
fn take(
    changing: &mut Changing<'_, '_>,
    Batch { stored_key, edits, asks }: &Batch,
) -> Result<(Uploaded, Vec<(Ask, Changed)>), Failed> {
    let stored = changing.txn.get(Space::Uploads, stored_key)?;
    let mut taken: Taken = stored.map_or(Ok(Taken::default()), |bytes| decode(&bytes))?;
    let mut fresh = Vec::new();
    let Placed { mut fates, goes_on } = taken.place(edits);
    if !goes_on {
        return Ok((Uploaded::of(Verdict::OutOfStep, edits, fates, taken.next()), fresh));
    }
    let known = fates.len();
    for (edit, ask) in edits.iter().zip(asks).skip(known) {
        let changed = match ask {
            Ok(ask) => {
                let changed = changing.change(ask)?;
                fresh.push((ask.clone(), changed));
                changed.map_err(|error| error.to_string().into())
            }
            Err(why) => Err(why.clone()),
        };
        let fate = match changed {
            Ok(done) => Fate { outcome: Ok(done.outcome), seq: done.seq },
            Err(why) => Fate { outcome: Err(why), seq: None },
        };
        taken.note(edit, fate.clone());
        fates.push(fate);
    }
    if fates.len() > known {
        changing.txn.put(Space::Uploads, stored_key.clone(), encode(&taken));
    }
    Ok((Uploaded::of(Verdict::Taken, edits, fates, taken.next()), fresh))
}

impl Uploaded {
    fn of(verdict: Verdict, edits: &[Edit], fates: Vec<Fate>, next: u64) -> Self {
        let fates = edits.iter().map(|edit| edit.cseq).zip(fates).collect();
        Self { verdict, fates, next }
    }
}

fn consecutive(epoch: i32, edits: Vec<idl::Edit>) -> Result<Vec<Edit>, Error> {
    if edits.len() > KEPT_MAX {
        return Err(Error::Invalid { field: "edits", rule: format!("at most {KEPT_MAX}") });
    }
    let edits = edits.into_iter().map(|edit| Edit::from_idl(epoch, edit));
    let edits = edits.collect::<Result<Vec<Edit>, Error>>()?;
    let has_hole = edits.windows(2).any(|two| two[0].cseq.checked_add(1) != Some(two[1].cseq));
    if has_hole { Err(hole()) } else { Ok(edits) }
}

fn hole() -> Error {
    Error::Invalid { field: "cseq", rule: "1, 2, 3… with no hole".to_owned() }
}

/// The key of what one device uploaded to one queue. A registration that is made again because
/// its device had stayed away goes on with it: a device has one of an app.
pub(super) fn stored_key(device: &DeviceId, queue: &QueueId) -> Key {
    let mut key = Key::from_slice(device.as_bytes());
    key.extend_from_slice(queue.as_bytes());
    key
}

const NOT_FOLLOWED: Error = Error::Forbidden("the registration does not follow this alias");
