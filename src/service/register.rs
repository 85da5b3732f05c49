//! Device accounts and registrations.

use futures_util::future::try_join_all;

use super::{
    Error, Service,
    bind::By,
    feedback::Why,
    records::{App, Device, Follow, Registration, member_key},
    seals::{KEPT, Registered, SealOffer, UNSEALED},
    seen::day_key,
    uploads,
};
use crate::{
    base::{
        clock::day_of,
        ids::{AppId, DeviceId, QueueName, RegId},
        keys::{Secret, SecretHash},
    },
    queue::{
        filter::Attributes,
        position::{Position, Seq},
        store::{Space, decode, encode},
        txn::Txn,
    },
};

/// Devices that one change of an owner creates.
const DEVICES_PER_CHANGE: usize = 200;

/// Only the device itself can agree a key.
const UNREGISTERABLE: Error =
    Error::Sealed("this app seals its payloads: devices register over their connection");

pub(super) const NO_REGISTRATION: Error = Error::NotFound { what: "registration" };

/// A device account as its maker sees it, once.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// MQTT client id and user name.
    pub device_id: DeviceId,
    /// MQTT password.
    pub secret: Secret,
    /// The first registration, if it was asked for.
    pub regid: Option<RegId>,
}

/// Whether a new account comes with a registration of its app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstRegistration {
    /// It does.
    Yes,
    /// The device registers later, over its connection.
    No,
}

impl Service {
    /// Creates a device account for somebody who knows the app's key.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a wrong app or key; [`Error::Unavailable`].
    pub async fn create_device(
        &self,
        app_id: &str,
        app_key: &str,
        first: FirstRegistration,
    ) -> Result<NewDevice, Error> {
        let app = self.app_by_key(app_id, app_key)?;
        if first == FirstRegistration::Yes && app.seal.is_demanded() {
            return self.unregisterable();
        }
        let created = self.create(&app.id, 1, first).await?;
        created.into_iter().next().ok_or(Error::NotFound { what: "new device" })
    }

    /// Creates many accounts with a registration each: for operators.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn create_devices(&self, app: &AppId, count: usize) -> Result<Vec<NewDevice>, Error> {
        self.app(app.as_str())?;
        if self.demands_seal(app)? {
            return self.unregisterable();
        }
        let mut created = Vec::with_capacity(count.min(1 << 16));
        while created.len() < count {
            let chunk = (count - created.len()).min(DEVICES_PER_CHANGE);
            created.extend(self.create(app, chunk, FirstRegistration::Yes).await?);
        }
        Ok(created)
    }

    fn unregisterable<T>(&self) -> Result<T, Error> {
        let refused = Err(UNREGISTERABLE);
        self.note_refusal(&refused);
        refused
    }

    async fn create(
        &self,
        app: &AppId,
        count: usize,
        first: FirstRegistration,
    ) -> Result<Vec<NewDevice>, Error> {
        let all = QueueName::All(app.clone());
        let since = self.router.head(&all.id())?;
        let new = |_| {
            let device_id = DeviceId::random();
            let regid = (first == FirstRegistration::Yes).then(|| RegId::random(&device_id));
            NewDevice { device_id, secret: Secret::random(), regid }
        };
        let created: Vec<NewDevice> = (0..count).map(new).collect();
        let stored = created
            .iter()
            .map(|one| (one.device_id, self.keys.hash(one.secret.reveal().as_bytes()), one.regid));
        let groups = self.router.by_owner(stored, |(device, ..)| device.shard());
        let changes = groups.into_iter().map(|(shard, group)| {
            let app = app.clone();
            self.router.run(shard, move |txn| {
                group.into_iter().try_for_each(|one| create_one(txn, &app, since, one))
            })
        });
        try_join_all(changes).await?;
        if first == FirstRegistration::Yes {
            (0..count).for_each(|_| self.member_added(&all.id()));
        }
        Ok(created)
    }

    /// Registers an app on a device; the same app again gives the same regID. A sealed registration is given only to who
    /// offers its own pair again; with another one the device gets a new registration, and the old one ends.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a wrong app or key, [`Error::Sealed`] and [`Error::Forbidden`] where a key is missing or
    /// cannot be used, [`Error::Limit`], [`Error::Unavailable`].
    pub async fn register(
        &self,
        device: &DeviceId,
        app_id: &str,
        app_key: &str,
        offer: Option<SealOffer>,
    ) -> Result<Registered, Error> {
        let app = self.app_by_key(app_id, app_key)?;
        let queue = QueueName::All(app.id.clone()).id();
        let since = self.router.head(&queue)?;
        let (device, max) = (*device, self.limits.load().registrations_per_device);
        let replaced = self.replaced(&device, &app.id, offer.as_ref())?;
        let (replaced_regid, ending) = match replaced {
            Some(one) => (Some(one.regid), Some(self.ending(&[one], Why::Unregistered)?)),
            None => (None, None),
        };
        let (listed, held) = ending.unzip();
        let done = self
            .router
            .run(device.shard(), move |txn| {
                let mut record = load(txn, &device)?;
                let mut ended = None;
                if let Some(at) = record.registrations.iter().position(|one| one.app == app.id) {
                    let known = &mut record.registrations[at];
                    let had_seal = known.seal.is_some();
                    if let Some(kept) = keep(&app, known, offer.as_ref())? {
                        if known.seal.is_some() != had_seal {
                            txn.put(Space::Devices, device.as_bytes(), encode(&record));
                        }
                        return Ok((kept, false, None));
                    }
                    let gone = record.registrations.remove(at);
                    if replaced_regid != Some(gone.regid) {
                        return Err(Error::Conflict("another registration of this app"));
                    }
                    erase(txn, &gone);
                    forget_uploads(txn, &device, &gone);
                    txn.put_all(listed.unwrap_or_default());
                    ended = Some(gone);
                }
                if record.registrations.len() >= max {
                    return Err(Error::Limit { what: "registrations on a device", max });
                }
                let regid = RegId::random(&device);
                let mut new = new_registration(txn, &device, &app.id, since, regid)?;
                let registered = agree(&app, &mut new, offer.as_ref())?;
                record.registrations.push(new);
                txn.put(Space::Devices, device.as_bytes(), encode(&record));
                Ok((registered, true, ended))
            })
            .await;
        self.note_refusal(&done);
        let (registered, is_new, ended) = done?;
        if is_new {
            self.member_added(&queue);
        }
        if let Some(ended) = ended {
            self.erased(&ended);
            self.refresh(&device);
            if let Some(held) = held {
                self.told_of(held).await?;
            }
        }
        Ok(registered)
    }

    /// The registration that ends if the device registers this app with this offer.
    fn replaced(
        &self,
        device: &DeviceId,
        app: &AppId,
        offer: Option<&SealOffer>,
    ) -> Result<Option<Registration>, Error> {
        let Some(offer) = offer else { return Ok(None) };
        let Some(record) = self.device(device)? else { return Ok(None) };
        let is_replaced = |one: &&Registration| {
            one.app == *app && one.seal.as_ref().is_some_and(|seal| !seal.is_of(offer))
        };
        Ok(record.registrations.iter().find(is_replaced).cloned())
    }

    /// Ends a registration. Other apps on the device stay.
    ///
    /// # Errors
    /// [`Error::NotFound`] if `by` has no such registration, [`Error::Unavailable`].
    pub async fn unregister(&self, regid: &str, by: By<'_>) -> Result<(), Error> {
        let (device, registration) = self.registration_of(regid, by)?;
        let regid = registration.regid;
        let (listed, held) = self.ending(&[registration], Why::Unregistered)?;
        let ended = self
            .router
            .run(device.shard(), move |txn| {
                let mut record = load(txn, &device)?;
                let at = record.registrations.iter().position(|one| one.regid == regid);
                let ended = record.registrations.remove(at.ok_or(NO_REGISTRATION)?);
                erase(txn, &ended);
                forget_uploads(txn, &device, &ended);
                txn.put(Space::Devices, device.as_bytes(), encode(&record));
                txn.put_all(listed);
                Ok::<_, Error>(ended)
            })
            .await?;
        self.erased(&ended);
        self.refresh(&device);
        self.told_of(held).await
    }

    /// What is kept in memory of a registration that was erased goes, too.
    pub(super) fn erased(&self, ended: &Registration) {
        ended.follows.iter().for_each(|follow| self.member_removed(&follow.queue.id()));
        self.forget_positions(&ended.regid);
    }

    /// The registration of this name, if it is the asker's.
    pub(super) fn registration_of(
        &self,
        regid: &str,
        by: By<'_>,
    ) -> Result<(DeviceId, Registration), Error> {
        let regid: RegId = regid.parse().map_err(|_| NO_REGISTRATION)?;
        let device = match by {
            By::Device { device, .. } => *device,
            By::App(_) => self.device_of(&regid)?.ok_or(NO_REGISTRATION)?,
        };
        let record = self.device(&device)?.ok_or(NO_REGISTRATION)?;
        let is_asked_for = |one: &Registration| {
            one.regid == regid
                && match by {
                    By::Device { .. } => true,
                    By::App(app) => one.app == *app,
                }
        };
        let registration = record.registrations.iter().find(|one| is_asked_for(one));
        registration.map(|one| (device, one.clone())).ok_or(NO_REGISTRATION)
    }

    pub(super) fn device_of(&self, regid: &RegId) -> Result<Option<DeviceId>, Error> {
        Ok(self.registered(regid)?.map(|one| one.device))
    }
}

fn create_one(
    txn: &mut Txn<'_>,
    app: &AppId,
    since: Position,
    (device, secret, regid): (DeviceId, SecretHash, Option<RegId>),
) -> Result<(), Error> {
    let mut registrations = Vec::new();
    if let Some(regid) = regid {
        registrations.push(new_registration(txn, &device, app, since, regid)?);
    }
    let seen_day = day_of(txn.now_ms());
    let record = Device { secret, registrations, seen_day, expired: Vec::new() };
    txn.put(Space::Feedback, day_key(seen_day, &device), Vec::new());
    txn.put(Space::Devices, device.as_bytes(), encode(&record));
    Ok(())
}

/// What a device is told that registers an app again; `None` if its registration is not for who asks.
fn keep(
    app: &App,
    known: &mut Registration,
    offer: Option<&SealOffer>,
) -> Result<Option<Registered>, Error> {
    match (&known.seal, offer) {
        (None, _) => agree(app, known, offer).map(Some),
        (Some(seal), Some(offer)) if seal.is_of(offer) => {
            Ok(Some(Registered { regid: known.regid, seal: Some(seal.answer()?) }))
        }
        (Some(_), Some(_)) => Ok(None),
        (Some(_), None) => Err(Error::Forbidden(KEPT)),
    }
}

/// Gives a registration that has none the key that the device offers.
fn agree(
    app: &App,
    registration: &mut Registration,
    offer: Option<&SealOffer>,
) -> Result<Registered, Error> {
    let regid = registration.regid;
    let Some(offer) = offer else {
        return match app.seal.is_demanded() {
            true => Err(UNSEALED),
            false => Ok(Registered { regid, seal: None }),
        };
    };
    let seal = app.seal.agree(&regid, offer, 1)?;
    let answer = seal.answer()?;
    registration.seal = Some(seal);
    Ok(Registered { regid, seal: Some(answer) })
}

/// A new registration follows its own queue and `all`, from their heads on.
fn new_registration(
    txn: &mut Txn<'_>,
    device: &DeviceId,
    app: &AppId,
    since: Position,
    regid: RegId,
) -> Result<Registration, Error> {
    let own = txn.head(&QueueName::Own(regid).id())?;
    let all = QueueName::All(app.clone());
    txn.put(Space::Registrations, regid.as_bytes(), device.as_bytes().to_vec());
    txn.put(Space::Members, member_key(&all.id(), &regid), Vec::new());
    Ok(Registration {
        regid,
        app: app.clone(),
        since: own,
        control: Seq(0),
        follows: vec![Follow { queue: all, since, control: Seq(0) }],
        accept: None,
        seal: None,
        attributes: Attributes::default(),
    })
}

/// Removes all records of a registration but its place in the device's, and what its device
/// uploaded.
pub(super) fn erase(txn: &mut Txn<'_>, ended: &Registration) {
    for follow in &ended.follows {
        txn.remove(Space::Members, member_key(&follow.queue.id(), &ended.regid));
    }
    txn.remove(Space::Registrations, ended.regid.as_bytes());
    txn.remove(Space::Pointers, ended.regid.as_bytes());
}

/// A registration ended for good: another one of the device begins its uploads anew.
pub(super) fn forget_uploads(txn: &mut Txn<'_>, device: &DeviceId, ended: &Registration) {
    for follow in &ended.follows {
        if let QueueName::Alias(..) = follow.queue {
            txn.remove(Space::Uploads, uploads::stored_key(device, &follow.queue.id()));
        }
    }
}

/// The record of a device as a change sees it.
pub(super) fn load(txn: &Txn<'_>, device: &DeviceId) -> Result<Device, Error> {
    let bytes = txn.get(Space::Devices, device.as_bytes())?;
    Ok(decode(&bytes.ok_or(Error::NotFound { what: "device" })?)?)
}
