//! The app's handle of a device, and how one is built.

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carillon_wire::idl;
use carillon_wire::seal::AppKey;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::accept::Accept;
use crate::applier::{Applier, Positions, Work};
use crate::calls::{Call, CallError, Request};
use crate::close::StopReason;
use crate::connection::{Command, IN_HAND_MAX};
use crate::driver::{Driver, Status};
use crate::heartbeat::{AppState, Heartbeat, Learner, NetworkLabel, Parameters};
use crate::items::Steps;
use crate::names::{Attributes, MessageId, Received, RegId};
use crate::random::Random;
use crate::replica::Replica;
use crate::restore::Restorer;
use crate::session::Terms;
use crate::state::{State, StateError};
use crate::store::{FileStore, PositionStore};
use crate::transport::Connector;

/// Who the device is: what `POST /v1/devices` answered, kept for the life of the installation.
#[derive(Clone)]
pub struct Credentials {
    /// MQTT client id and user name.
    pub device_id: String,
    /// MQTT password.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.device_id)
    }
}

/// Why a device cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The stored state cannot be read.
    #[error("cannot read the stored state")]
    Store(#[source] std::io::Error),
    /// The stored state is not one of this device. Nothing is overwritten; the app decides.
    #[error("cannot use the stored state")]
    State(#[source] StateError),
}

/// Everything that a device needs to start.
#[derive(Debug)]
pub struct DeviceBuilder<C, S> {
    connector: C,
    credentials: Credentials,
    store: S,
    keep_alive: Duration,
    random: Random,
    heartbeat: Parameters,
    forced: Option<Duration>,
    network: Option<NetworkLabel>,
    app: AppState,
    sealed_only: bool,
}

/// A device that runs in the background. Clones are handles of the same one; it stops when none is left.
#[derive(Clone, Debug)]
pub struct Device {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) applier: mpsc::WeakSender<Work>,
    pub(crate) status: watch::Receiver<Status>,
}

impl Device {
    /// Begins to build a device; it keeps its positions in the file `state`.
    pub fn builder<C: Connector>(
        connector: C,
        credentials: Credentials,
        state: impl Into<PathBuf>,
    ) -> DeviceBuilder<C, FileStore> {
        Self::builder_with_store(connector, credentials, FileStore::new(state))
    }

    /// The same with any store.
    pub fn builder_with_store<C: Connector, S: PositionStore>(
        connector: C,
        credentials: Credentials,
        store: S,
    ) -> DeviceBuilder<C, S> {
        DeviceBuilder {
            connector,
            credentials,
            store,
            keep_alive: KEEP_ALIVE,
            random: Random::from_system(),
            heartbeat: Parameters::default(),
            forced: None,
            network: None,
            app: AppState::default(),
            sealed_only: false,
        }
    }

    /// Registers an app on this device; the same app gets the same regID.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn register(&self, app_id: &str, app_key: &str) -> Result<RegId, CallError> {
        let register = idl::Register {
            app_id: app_id.to_owned(),
            app_key: app_key.to_owned(),
            seal: None,
            attributes: None,
        };
        let answer = self.call(Request::Register(register, None)).await?;
        answer.ok_or(CallError::Incomplete)
    }

    /// The same for an app that seals its payloads, with the public key that ships inside the app. Nothing that is not
    /// sealed is taken for this registration from then on. A device that has lost its state gets another regID.
    ///
    /// # Errors
    /// See [`CallError`]; [`CallError::NotConfirmed`] if somebody else than the gateway answers.
    pub async fn register_sealed(
        &self,
        app_id: &str,
        app_key: &str,
        app: &AppKey,
    ) -> Result<RegId, CallError> {
        let (app_name, app) = (app_id.to_owned(), *app);
        let offered = self.prepare(|reply| Work::Offer { app_id: app_name, app, reply }).await?;
        let register = idl::Register {
            app_id: app_id.to_owned(),
            app_key: app_key.to_owned(),
            seal: Some(offered.to_idl()),
            attributes: None,
        };
        let answer = self.call(Request::Register(register, Some(Box::new(offered)))).await?;
        answer.ok_or(CallError::Incomplete)
    }

    /// Gives a sealed registration a new key, agreed with this key of the app: one that came with an update, or the
    /// same. If it fails with anything but [`CallError::Refused`], repeat it: until then both keys are kept.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn rekey(&self, regid: &RegId, app: &AppKey) -> Result<(), CallError> {
        let (regid, app) = (regid.clone(), *app);
        let rekeying = self.prepare(|reply| Work::Rekey { regid, app, reply }).await?;
        self.call(Request::Rekey(rekeying)).await.map(drop)
    }

    /// Gives a registration back; the handler is not told.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn unregister(&self, regid: &RegId) -> Result<(), CallError> {
        self.call(Request::Unregister(regid.clone())).await.map(drop)
    }

    /// Puts an alias on a registration. `token` is needed where the app's policy is `signed`.
    ///
    /// Binding an alias again begins anew: what was sent to it and has not been received yet is passed over. So bind
    /// when the user signs in, not at every start.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn bind(
        &self,
        regid: &RegId,
        alias: &str,
        token: Option<&str>,
    ) -> Result<(), CallError> {
        let bind = idl::Bind {
            regid: regid.to_string(),
            alias_name: alias.to_owned(),
            token: token.map(str::to_owned),
        };
        self.call(Request::Bind(bind)).await.map(drop)
    }

    /// Takes an alias off a registration.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn unbind(&self, regid: &RegId, alias: &str) -> Result<(), CallError> {
        let unbind = idl::Unbind { regid: regid.to_string(), alias_name: alias.to_owned() };
        self.call(Request::Unbind(unbind)).await.map(drop)
    }

    /// Says what filters of messages look at, in place of what was said before.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn describe(&self, regid: &RegId, attributes: Attributes) -> Result<(), CallError> {
        let Attributes { app_version, locale, model, network } = attributes;
        let attributes = idl::Attributes { app_version, locale, model, network };
        let describe = idl::Describe { regid: regid.to_string(), attributes };
        self.call(Request::Describe(describe)).await.map(drop)
    }

    /// Subscribes a registration to topics.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn subscribe(&self, regid: &RegId, topics: &[&str]) -> Result<(), CallError> {
        let subscribe = idl::Subscribe {
            regid: regid.to_string(),
            topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
        };
        self.call(Request::Subscribe(subscribe)).await.map(drop)
    }

    /// Says when a registration takes messages, instead of what was said before.
    /// `Accept::default()` is always.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn accept(&self, regid: &RegId, accept: Accept) -> Result<(), CallError> {
        let Accept { paused, hours } = accept;
        let accept = idl::Accept {
            regid: regid.to_string(),
            paused: Some(paused),
            start_minute: hours.as_ref().map(|hours| hours.start_minute.into()),
            end_minute: hours.as_ref().map(|hours| hours.end_minute.into()),
            zone: hours.map(|hours| hours.zone),
        };
        self.call(Request::Accept(accept)).await.map(drop)
    }

    /// Ends subscriptions of a registration.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn unsubscribe(&self, regid: &RegId, topics: &[&str]) -> Result<(), CallError> {
        let unsubscribe = idl::Unsubscribe {
            regid: regid.to_string(),
            topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
        };
        self.call(Request::Unsubscribe(unsubscribe)).await.map(drop)
    }

    /// Tells the gateway that somebody opened a message. Of one that does not ask for receipts it is ignored there.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn clicked(&self, regid: &RegId, message: &MessageId) -> Result<(), CallError> {
        let event = idl::Event {
            regid: regid.to_string(),
            message: message.as_bytes().to_vec(),
            kind: idl::EventKind::CLICKED,
        };
        self.call(Request::Event(event)).await.map(drop)
    }

    /// Tells the device that its app came to the front, or went to the back. While it is active, heartbeats keep to the
    /// minimum.
    pub async fn app_became(&self, app: AppState) {
        // A device that has stopped needs to know nothing more.
        let _ = self.commands.send(Command::App(app)).await;
    }

    /// Tells the device that it is on another network now, if its name is known. The connection over the old one is
    /// given up, and a new one is opened at once, unless the gateway asked to wait.
    pub async fn network_changed(&self, label: Option<NetworkLabel>) {
        let _ = self.commands.send(Command::Network(label)).await;
    }

    /// Where the device stands in every queue of every registration, as soon as the handler is not busy. `None` if
    /// the device has stopped.
    pub async fn positions(&self) -> Option<Positions> {
        let (reply, positions) = oneshot::channel();
        let applier = self.applier.upgrade()?;
        applier.send(Work::Positions(reply)).await.ok()?;
        drop(applier);
        positions.await.ok()
    }

    /// What the device is doing now.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Waits until the gateway pushes.
    ///
    /// # Errors
    /// The device has stopped.
    pub async fn online(&self) -> Result<(), StopReason> {
        let mut status = self.status.clone();
        let settled = |status: &Status| matches!(status, Status::Online | Status::Stopped(_));
        match status.wait_for(settled).await.as_deref() {
            Ok(Status::Stopped(reason)) => Err(*reason),
            Ok(Status::Online | Status::Connecting | Status::Waiting(_)) => Ok(()),
            Err(_) => Err(StopReason::HandlerPanicked),
        }
    }

    /// Waits until the device has stopped for good, its handler has returned, and its positions are saved.
    pub async fn stopped(&self) -> StopReason {
        let mut status = self.status.clone();
        // The sender is dropped when all is done; the last status stays.
        while status.changed().await.is_ok() {}
        match *status.borrow() {
            Status::Stopped(reason) => reason,
            Status::Online | Status::Connecting | Status::Waiting(_) => StopReason::HandlerPanicked,
        }
    }

    /// Finishes what has been received, says goodbye, and waits until all is done.
    pub async fn shutdown(&self) -> StopReason {
        // If the task is gone already, that is what was wanted.
        let _ = self.commands.send(Command::Shutdown).await;
        self.stopped().await
    }

    /// What is durable before it is asked for.
    async fn prepare<T>(
        &self,
        work: impl FnOnce(oneshot::Sender<Option<T>>) -> Work,
    ) -> Result<T, CallError> {
        let (reply, prepared) = oneshot::channel();
        let applier = self.applier.upgrade().ok_or(CallError::Offline)?;
        applier.send(work(reply)).await.map_err(|_| CallError::Offline)?;
        drop(applier);
        prepared.await.map_err(|_| CallError::Offline)?.ok_or(CallError::NotSealed)
    }

    async fn call(&self, request: Request) -> Result<Option<RegId>, CallError> {
        if self.status() != Status::Online {
            return Err(CallError::Offline);
        }
        let (reply, answer) = oneshot::channel();
        let call = Command::Call(Call { request, reply });
        let asked = async {
            let sent = self.commands.send(call).await;
            sent.map_err(|_| CallError::Offline)?;
            // A connection that ends drops its calls.
            answer.await.map_err(|_| CallError::Offline)?
        };
        let answer = timeout(CALL_WITHIN, asked).await.unwrap_or(Err(CallError::Timeout));
        answer.map(|result| result.regid.map(RegId::from))
    }
}

impl<C: Connector, S: PositionStore> DeviceBuilder<C, S> {
    /// What CONNECT states as keep-alive: no heartbeat is ever later, and the gateway gives a silent device up after one
    /// and a half times as long. 600 s unless set; at least 1 s.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = interval.max(Duration::from_secs(1));
        self
    }

    /// Other numbers for the adaptive heartbeat.
    #[must_use]
    pub fn heartbeat(mut self, parameters: Parameters) -> Self {
        self.heartbeat = parameters;
        self
    }

    /// Turns adaptation off: heartbeats come after this much silence of ours, on every network.
    #[must_use]
    pub fn heartbeat_every(mut self, interval: Duration) -> Self {
        self.forced = Some(interval);
        self
    }

    /// The network that the device is on. Without a name for it nothing is learned, and heartbeats keep to the minimum.
    #[must_use]
    pub fn network(mut self, label: NetworkLabel) -> Self {
        self.network = Some(label);
        self
    }

    /// Whether somebody uses the app now; inactive unless set.
    #[must_use]
    pub fn app(mut self, app: AppState) -> Self {
        self.app = app;
        self
    }

    /// Takes nothing that is not sealed, for any registration: for a device all of whose apps seal. Without it, a
    /// registration is protected from the moment that [`Device::register_sealed`] has given it.
    #[must_use]
    pub fn sealed_only(mut self) -> Self {
        self.sealed_only = true;
        self
    }

    /// Makes the jitter repeatable, for simulations.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.random = Random::seeded(seed);
        self
    }

    /// Reads the stored state and starts the device in the background of the current runtime.
    ///
    /// `handler` is called with one message after the other. A message is acknowledged when the handler has returned
    /// and the position behind it is durable; if the process dies in between, the message comes again at the next
    /// start, and in no other case.
    ///
    /// # Errors
    /// The stored state cannot be used. That the gateway cannot be reached is not an error: the device keeps trying.
    pub async fn connect_with<H, F>(mut self, mut handler: H) -> Result<Device, StartError>
    where
        H: FnMut(Received) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let stored = self.store.load().await.map_err(StartError::Store)?;
        let Credentials { device_id, secret } = self.credentials;
        let state = match stored {
            Some(bytes) => State::from_bytes(&device_id, &bytes).map_err(StartError::State)?,
            None => State::default(),
        };
        let mut learner = Learner::new(self.heartbeat, &state.networks, unix_s());
        learner.force(self.forced);
        learner.set_app(self.app);
        learner.set_network(self.network);
        let (work, inbox) = mpsc::channel(usize::from(IN_HAND_MAX));
        let (commands, commands_from) = mpsc::channel(COMMANDS_MAX);
        let (status, status_of) = watch::channel(Status::Connecting);
        let (restores, to_restore) = mpsc::channel(RESTORES_MAX);
        let device = Device { commands, applier: work.downgrade(), status: status_of };
        let beside = self.store.beside(&device, self.random.clone().next());
        let applier = Applier {
            device_id: device_id.clone(),
            replica: match self.sealed_only {
                true => Replica::sealed_only(state),
                false => Replica::new(state),
            },
            store: self.store,
            handler: Box::new(move |received| Box::pin(handler(received))),
            inbox,
            restores,
            steps: Steps::default(),
        };
        let restorer = Restorer {
            restores: to_restore,
            commands: device.commands.downgrade(),
            applier: work.downgrade(),
            status: device.status.clone(),
            random: self.random.clone(),
        };
        let terms =
            Terms { device_id, secret, keep_alive: self.keep_alive, receive_max: RECEIVE_MAX };
        let driver = Driver {
            connector: self.connector,
            terms,
            commands: commands_from,
            applier: work,
            status,
            random: self.random,
            heartbeat: Heartbeat::new(learner, Instant::now(), unix_s()),
            server: None,
        };
        let applying = tokio::spawn(applier.run());
        tokio::spawn(restorer.run());
        if let Some(beside) = beside {
            tokio::spawn(beside);
        }
        tokio::spawn(supervise(driver, applying));
        Ok(device)
    }
}

/// The device's life: the driver ends first, and with it the applier's work; the status is closed when both are done.
async fn supervise<C: Connector>(driver: Driver<C>, applying: JoinHandle<()>) {
    let status = driver.status.clone();
    driver.run().await;
    if applying.await.is_err() {
        status.send_replace(Status::Stopped(StopReason::HandlerPanicked));
    }
}

/// Seconds since 1970, for the dates of records. A clock before that is a broken one.
fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// CONNECT's keep-alive unless the app sets one: the longest interval that is ever tried.
const KEEP_ALIVE: Duration = Duration::from_secs(600);
/// Frames that the gateway may have sent and we not acknowledged.
const RECEIVE_MAX: u16 = 32;
/// For the answer to a call.
const CALL_WITHIN: Duration = Duration::from_secs(15);
/// Registrations that wait to be made again; more wait for the next start.
const RESTORES_MAX: usize = 64;
/// Calls that wait to be sent.
const COMMANDS_MAX: usize = 64;
