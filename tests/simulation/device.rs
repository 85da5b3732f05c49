//! Two strict devices: one speaks frames and keeps its positions, one is a plain
//! MQTT client. Both report whatever reaches their app code.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::{Bytes, BytesMut};
use carillon::base::ids::RegId;
use carillon_wire::{
    digest::{Digest, kind_byte, position_hash},
    frame, idl,
    mqtt::{self, Ack, Connect, Decoder, Packet, Publish, Qos, Subscribe, Version},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::{
    dice::Dice,
    world::{Delivery, World},
};

/// A queue of a registration, as the wire names it.
type Place = (String, i32, String);
/// Epoch, seq and tag.
type At = (i32, i64, Option<Vec<u8>>);

/// What a device keeps between connections.
pub struct Device {
    pub id: String,
    pub secret: String,
    /// Its one registration.
    pub regid: RegId,
    pub habit: Habit,
    /// Frames only: where it stands.
    positions: HashMap<Place, At>,
    /// The same as its disk has it.
    durable: HashMap<Place, At>,
}

/// How it connects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    Frames,
    /// A stock client with a persistent session that follows everything.
    Plain(Version),
}

/// Why a dialogue ended.
pub type End = String;

impl Device {
    pub fn new(id: String, secret: String, regid: RegId, habit: Habit) -> Self {
        Self { id, secret, regid, habit, positions: HashMap::new(), durable: HashMap::new() }
    }

    /// It lost power: what was not written is gone.
    pub fn crash(&mut self) {
        self.positions = self.durable.clone();
    }
}

/// One connection's life on the device's side; ends at the first error or cut.
pub struct Dialogue<'a> {
    pub device: &'a mut Device,
    pub stream: DuplexStream,
    pub world: &'a Mutex<World>,
    pub random: &'a Arc<Mutex<Dice>>,
    /// Of 100 acknowledgements so many are sent.
    pub diligence: u64,
}

impl Dialogue<'_> {
    pub async fn run(mut self) -> End {
        let version = match self.device.habit {
            Habit::Frames => Version::V5,
            Habit::Plain(version) => version,
        };
        if let Err(error) = self.greet(version).await {
            return error.to_string();
        }
        let mut decoder = Decoder::client(version, 1 << 20);
        let mut buffer = BytesMut::new();
        loop {
            match self.stream.read_buf(&mut buffer).await {
                Ok(0) => return "closed".into(),
                Ok(_) => {}
                Err(error) => return error.to_string(),
            }
            loop {
                let packet = match decoder.decode(&mut buffer) {
                    Ok(Some(packet)) => packet,
                    Ok(None) => break,
                    Err(error) => {
                        self.violate(format!("the gateway sent nonsense: {error}"));
                        return "nonsense".into();
                    }
                };
                if let Err(end) = self.handle(version, packet).await {
                    return end;
                }
            }
        }
    }

    fn violate(&self, what: String) {
        self.world.lock().unwrap().violate(format!("{}: {what}", self.device.id));
    }

    async fn greet(&mut self, version: Version) -> std::io::Result<()> {
        let is_frames = self.device.habit == Habit::Frames;
        let connect = Connect {
            version,
            clean_start: is_frames,
            keep_alive_s: 60,
            client_id: self.device.id.clone(),
            username: Some(self.device.id.clone()),
            password: Some(Bytes::from(self.device.secret.clone())),
            has_will: false,
            session_expiry_s: if is_frames { 0 } else { u32::MAX },
            receive_max: 20,
            max_packet_bytes: None,
            topic_alias_max: 0,
            auth_method: None,
        };
        self.write(version, &[Packet::Connect(Box::new(connect))]).await?;
        if is_frames {
            let digest: Digest = self.hashes().collect();
            let resume = Some(idl::Resume { digest: digest.to_idl(), dictionary: None });
            return self.up(idl::Up { resume, ..frame::empty_up() }).await;
        }
        let filters = vec![("push".to_owned(), Qos::AtLeastOnce)];
        let subscribe = Subscribe { packet_id: 1, filters, subscription_id: None };
        self.write(version, &[Packet::Subscribe(subscribe)]).await
    }

    fn hashes(&self) -> impl Iterator<Item = u64> + use<'_> {
        self.device.positions.iter().map(|((regid, kind, name), (epoch, seq, _))| {
            let kind = kind_byte(idl::QueueKind(*kind)).expect("a kind of the gateway's");
            position_hash(regid, kind, name, *epoch as u32, *seq as u64)
        })
    }

    async fn write(&mut self, version: Version, packets: &[Packet]) -> std::io::Result<()> {
        let mut out = BytesMut::new();
        for packet in packets {
            mqtt::encode(version, packet, &mut out).expect("our packets are valid");
        }
        self.stream.write_all(&out).await
    }

    async fn up(&mut self, up: idl::Up) -> std::io::Result<()> {
        let mut payload = Vec::new();
        frame::encode_up(&up, &mut payload).expect("our frames are valid");
        let publish = Publish {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic: "up".into(),
            packet_id: 7,
            payload: payload.into(),
            topic_alias: None,
            user: Vec::new(),
            message_expiry_s: None,
        };
        self.write(Version::V5, &[Packet::Publish(publish)]).await
    }

    async fn state_positions(&mut self) -> std::io::Result<()> {
        let mut registrations: HashMap<String, Vec<idl::Position>> = HashMap::new();
        for ((regid, kind, name), (epoch, seq, tag)) in &self.device.positions {
            let name = (!name.is_empty()).then(|| name.clone());
            let queue = idl::Queue { kind: idl::QueueKind(*kind), name };
            let one = idl::Position { queue, epoch: *epoch, seq: *seq, tag: tag.clone() };
            registrations.entry(regid.clone()).or_default().push(one);
        }
        let registrations = registrations
            .into_iter()
            .map(|(regid, positions)| idl::RegistrationPositions {
                gathered: None,
                regid,
                positions,
            })
            .collect();
        let positions = Some(idl::Positions { registrations, more: None });
        self.up(idl::Up { positions, ..frame::empty_up() }).await
    }

    async fn handle(&mut self, version: Version, packet: Packet) -> Result<(), End> {
        match packet {
            Packet::ConnAck(ack) if ack.reason != 0 => Err(format!("refused {:#x}", ack.reason)),
            Packet::Disconnect(end) => Err(format!("disconnected {:#x}", end.reason)),
            Packet::Publish(publish) => {
                let is_handled = match self.device.habit {
                    Habit::Frames => self.frame(&publish).await?,
                    Habit::Plain(_) => self.plain(&publish),
                };
                let is_diligent = self.random.lock().unwrap().below(100) < self.diligence;
                if is_handled && is_diligent && publish.packet_id != 0 {
                    let ack = Ack { packet_id: publish.packet_id, reason: 0 };
                    self.write(version, &[Packet::PubAck(ack)]).await.map_err(|e| e.to_string())?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// MQTT 3.1.1 carries no position: then the ledger knows only what came.
    fn plain(&mut self, publish: &Publish) -> bool {
        let property = |name: &str| {
            publish.user.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        };
        let Some(number) = read_payload(&publish.payload) else {
            self.violate(format!("a payload that nobody sent: {:?}", publish.payload));
            return true;
        };
        let regid = self.device.regid;
        let queue = property("queue");
        let position = property("position").and_then(|text| {
            let (epoch, seq) = text.split_once(':')?;
            Some((epoch.parse().ok()?, seq.parse().ok()?))
        });
        let mut world = self.world.lock().unwrap();
        match (queue, position) {
            (Some(queue), Some((epoch, seq))) => {
                world.delivered(&Delivery { regid, queue, epoch, seq, number });
            }
            _ => world.delivered_somewhere(regid, number),
        }
        true
    }

    /// Returns whether to acknowledge.
    async fn frame(&mut self, publish: &Publish) -> Result<bool, End> {
        let down = match frame::decode_down(&publish.payload) {
            Ok(down) => down,
            Err(error) => {
                self.violate(format!("a frame that cannot be read: {error}"));
                return Err("nonsense".into());
            }
        };
        if down.ask_positions.is_some() {
            self.state_positions().await.map_err(|e| e.to_string())?;
        }
        if let Some(idl::Deltas { regid, deltas, .. }) = down.deltas {
            for delta in deltas {
                if !self.apply(&regid, delta) {
                    self.state_positions().await.map_err(|e| e.to_string())?;
                    return Ok(false);
                }
            }
            if self.random.lock().unwrap().below(20) == 0 {
                // Power is lost after the app saw it, before the disk did.
                self.device.crash();
                return Err("the device crashed".into());
            }
            self.device.durable = self.device.positions.clone();
        }
        Ok(true)
    }

    /// Applies one delta by the rule; false asks for a resync.
    fn apply(&mut self, regid: &str, delta: idl::Delta) -> bool {
        let name = delta.queue.name.clone().unwrap_or_default();
        let place = (regid.to_owned(), delta.queue.kind.0, name);
        let known = self.device.positions.get(&place).map(|(epoch, seq, _)| (*epoch, *seq));
        let to = (delta.epoch, delta.to_seq, Some(delta.tag.clone()));
        let first = match (delta.jump, known) {
            (Some(_), _) => delta.from_seq,
            (None, Some((epoch, last))) if epoch == delta.epoch && delta.to_seq <= last => {
                return true;
            }
            (None, Some((epoch, last))) if epoch == delta.epoch && delta.from_seq <= last + 1 => {
                last + 1
            }
            (None, _) => {
                // TCP keeps the order, so a gap is the gateway's fault.
                self.violate(format!("{place:?}: a gap from {known:?} to {}", delta.from_seq));
                return false;
            }
        };
        self.device.positions.insert(place.clone(), to);
        for entry in delta.entries.into_iter().filter(|entry| entry.seq >= first) {
            self.entry(&place, delta.epoch, entry);
        }
        true
    }

    fn entry(&mut self, place: &Place, epoch: i32, entry: idl::Entry) {
        let of = |queue: &idl::Queue| {
            (place.0.clone(), queue.kind.0, queue.name.clone().unwrap_or_default())
        };
        if let Some(follow) = entry.follow {
            let at = (follow.epoch, follow.since, None);
            self.device.positions.insert(of(&follow.queue), at);
        } else if let Some(unfollow) = entry.unfollow {
            self.device.positions.remove(&of(&unfollow.queue));
        } else {
            let payload = entry.payload.unwrap_or_default();
            let Some(number) = read_payload(&payload) else {
                return self.violate(format!("a payload that nobody sent: {payload:?}"));
            };
            let queue = match place.1 {
                1 => "own".to_owned(),
                2 => format!("alias/{}", place.2),
                3 => format!("topic/{}", place.2),
                _ => "all".to_owned(),
            };
            let regid: RegId = place.0.parse().expect("the gateway's own regid");
            let (epoch, seq) = (epoch as u32, entry.seq as u64);
            let one = Delivery { regid, queue, epoch, seq, number };
            self.world.lock().unwrap().delivered(&one);
        }
    }
}

fn read_payload(payload: &[u8]) -> Option<u64> {
    std::str::from_utf8(payload).ok()?.parse().ok()
}
