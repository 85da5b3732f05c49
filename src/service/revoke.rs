//! Ending what somebody was given: a device account, an app's key, a whole app.
//!
//! A revocation is durable when its call returns. A revoked app's name is never given
//! again; its registrations are ended page by page, also after a restart.

use futures_util::future::try_join_all;

use super::{
    Error, Service,
    apps::{APPS_SHARD, load_app},
    feedback::Why,
    records::Device,
    register::{erase, forget_uploads, load},
    seen::day_key,
};
use crate::{
    base::{
        ids::{AppId, DeviceId, QueueName, RegId},
        keys::Secret,
    },
    queue::{
        store::{Range, Space, encode},
        txn::Txn,
    },
};

/// Registrations that one step of a revocation ends.
const PAGE: usize = 1_000;

impl Service {
    /// Ends a device account with all its registrations, and its connection. Gives how many
    /// registrations it had.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn revoke_device(&self, device: &str) -> Result<usize, Error> {
        let device: DeviceId = device.parse().map_err(|_| Error::NotFound { what: "device" })?;
        let known = self.device(&device)?.map(|record| record.registrations.clone());
        let known = known.unwrap_or_default();
        let (listed, held) = self.ending(&known, Why::Unregistered)?;
        // Those of registrations that ended before, too.
        let uploads = Range::prefix(device.as_bytes());
        let uploads = self.router.scan(Space::Uploads, &uploads, usize::MAX)?;
        let ended = self
            .router
            .run(device.shard(), move |txn| {
                let Device { registrations, seen_day, .. } = load(txn, &device)?;
                for (key, _) in uploads {
                    txn.remove(Space::Uploads, key.as_ref());
                }
                txn.remove(Space::Feedback, day_key(seen_day, &device));
                registrations.iter().for_each(|one| erase(txn, one));
                txn.remove(Space::Devices, device.as_bytes());
                txn.put_all(listed);
                Ok::<_, Error>(registrations)
            })
            .await?;
        self.cut(&device);
        ended.iter().for_each(|one| self.erased(one));
        self.told_of(held).await?;
        let mut late = ended.clone();
        late.retain(|one| known.iter().all(|known| known.regid != one.regid));
        if !late.is_empty() {
            let (listed, held) = self.ending(&late, Why::Unregistered)?;
            self.commit_events(listed, Vec::new()).await?;
            self.told_of(held).await?;
        }
        Ok(ended.len())
    }

    /// Gives an app another key: devices that show the old one can no longer register.
    /// Registrations stay.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn rotate_key(&self, app: &str) -> Result<Secret, Error> {
        let id = self.app(app)?;
        let key = Secret::random();
        let stored = self.keys.hash(key.reveal().as_bytes());
        let change = move |txn: &mut Txn<'_>| {
            let mut app = load_app(txn, &id)?;
            app.key = stored;
            txn.put(Space::Apps, id.as_str().as_bytes(), encode(&app));
            Ok::<_, Error>(())
        };
        self.router.run(APPS_SHARD, change).await?;
        Ok(key)
    }

    /// Ends an app: its key and secrets at once, then its registrations. Gives how many
    /// registrations there were. What was sent and not delivered is delivered to nobody.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`]: then the next start goes on.
    pub async fn revoke_app(&self, app: &str) -> Result<usize, Error> {
        let id = self.app(app)?;
        let name = id.clone();
        let change = move |txn: &mut Txn<'_>| {
            let mut app = load_app(txn, &name)?;
            app.is_revoked = true;
            app.secrets.clear();
            txn.put(Space::Apps, name.as_str().as_bytes(), encode(&app));
            Ok::<_, Error>(())
        };
        self.router.run(APPS_SHARD, change).await?;
        self.end_registrations(&id).await
    }

    /// Ends the registrations of revoked apps that a stop of the node left. Before the
    /// doors open.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn complete_revocations(&self) -> Result<usize, Error> {
        let mut ended = 0;
        for app in self.app_records()?.into_iter().filter(|app| app.is_revoked) {
            ended += self.end_registrations(&app.id).await?;
        }
        Ok(ended)
    }

    async fn end_registrations(&self, app: &AppId) -> Result<usize, Error> {
        let all = QueueName::All(app.clone()).id();
        let (mut ended, mut after) = (0, None);
        loop {
            let page = self.members_after(&all, after, PAGE)?;
            let Some(last) = page.last().copied() else { return Ok(ended) };
            after = Some(last);
            ended += self.end_page(page).await?;
        }
    }

    async fn end_page(&self, regids: Vec<RegId>) -> Result<usize, Error> {
        let mut devices = Vec::with_capacity(regids.len());
        for regid in regids {
            devices.extend(self.device_of(&regid)?.map(|device| (device, regid)));
        }
        let groups = self.router.by_owner(devices, |(device, _)| device.shard());
        let changes = groups.into_iter().map(|(shard, group)| {
            self.router.run(shard, move |txn| {
                let ended = group.into_iter().map(|(device, regid)| {
                    let mut record = load(txn, &device)?;
                    let at = record.registrations.iter().position(|one| one.regid == regid);
                    let Some(at) = at else { return Ok(None) };
                    let ended = record.registrations.remove(at);
                    erase(txn, &ended);
                    forget_uploads(txn, &device, &ended);
                    txn.put(Space::Devices, device.as_bytes(), encode(&record));
                    Ok(Some((device, ended)))
                });
                ended.filter_map(Result::transpose).collect::<Result<Vec<_>, Error>>()
            })
        });
        let ended = try_join_all(changes).await?.concat();
        for (device, registration) in &ended {
            self.erased(registration);
            self.refresh(device);
        }
        Ok(ended.len())
    }
}
