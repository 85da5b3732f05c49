//! The gateway's own frames, as far as a device needs them that keeps 16 bytes a queue.
//!
//! It trusts the gateway's order of deltas: it holds hashes of its positions, which give the digest and show no gap.

use anyhow::{Context, ensure};
use carillon_wire::digest::{Digest, kind_byte, position_hash};
use carillon_wire::frame;
use carillon_wire::idl::{Delta, Deltas, Down, Positions, Queue, Result, ResultCode, Resume};

use super::seals::Keys;

/// What a frame asks of the fleet.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    Nothing,
    /// Pushing has begun.
    Resumed,
    /// It has this registration.
    Registered(String),
    /// The gateway wants positions; ours are none.
    Positions,
    /// Come back not before so many milliseconds.
    ComeBack(u64),
}

/// Where a device stands: for each queue that it follows the queue's own hash and that of the position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places(Vec<(u64, u64)>);

impl Places {
    fn set(&mut self, regid: &str, queue: &Queue, epoch: i32, seq: i64) -> anyhow::Result<()> {
        let (key, place) = (hash(regid, queue, 0, 0)?, hash(regid, queue, epoch, seq)?);
        match self.0.iter_mut().find(|(held, _)| *held == key) {
            Some((_, held)) => *held = place,
            None => {
                self.0.reserve_exact(1);
                self.0.push((key, place));
            }
        }
        Ok(())
    }
}

/// The payload of the first PUBLISH.
pub fn resume(places: &Places) -> anyhow::Result<Vec<u8>> {
    let digest: Digest = places.0.iter().map(|(_, place)| *place).collect();
    let digest = digest.to_idl();
    up(carillon_wire::idl::Up {
        resume: Some(Resume { digest, dictionary: None }),
        ..frame::empty_up()
    })
}

/// "I have nothing": the answer to `AskPositions` of a device that keeps only hashes.
pub fn no_positions() -> anyhow::Result<Vec<u8>> {
    let positions = Positions { registrations: Vec::new(), more: None };
    up(carillon_wire::idl::Up { positions: Some(positions), ..frame::empty_up() })
}

fn up(up: carillon_wire::idl::Up) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    frame::encode_up(&up, &mut out).context("a frame that cannot be written")?;
    Ok(out)
}

/// Reads a frame, moves the places and hands each message's payload on.
pub fn take(
    payload: &[u8],
    places: &mut Places,
    keys: Option<&Keys>,
    on_message: &mut impl FnMut(&[u8]),
) -> anyhow::Result<Asked> {
    let down: Down = frame::decode_down(payload).context("a frame that cannot be read")?;
    if let Some(deltas) = &down.deltas {
        apply(deltas, places)?;
        let entries = deltas.deltas.iter().flat_map(|delta| &delta.entries);
        entries.filter_map(|entry| entry.payload.as_deref()).for_each(&mut *on_message);
        if let Some(keys) = keys {
            deltas.deltas.iter().try_for_each(|delta| keys.open(delta, on_message))?;
        }
    }
    if down.ask_positions.is_some() {
        *places = Places::default();
        return Ok(Asked::Positions);
    }
    if let Some(advice) = &down.advice
        && let Some(after_ms) = advice.reconnect_after_ms
    {
        return Ok(Asked::ComeBack(u64::try_from(after_ms).unwrap_or(0)));
    }
    if let Some(Result { code, message, regid, .. }) = down.result {
        ensure!(code == ResultCode::OK, "a frame was refused: {}", message.unwrap_or_default());
        return Ok(regid.map_or(Asked::Nothing, Asked::Registered));
    }
    Ok(if down.resumed.is_some() { Asked::Resumed } else { Asked::Nothing })
}

fn apply(deltas: &Deltas, places: &mut Places) -> anyhow::Result<()> {
    for delta in &deltas.deltas {
        let Delta { queue, epoch, to_seq, entries, .. } = delta;
        places.set(&deltas.regid, queue, *epoch, *to_seq)?;
        for entry in entries {
            if let Some(follow) = &entry.follow {
                places.set(&deltas.regid, &follow.queue, follow.epoch, follow.since)?;
            }
            if let Some(unfollow) = &entry.unfollow {
                let key = hash(&deltas.regid, &unfollow.queue, 0, 0)?;
                places.0.retain(|(held, _)| *held != key);
            }
        }
    }
    Ok(())
}

fn hash(regid: &str, queue: &Queue, epoch: i32, seq: i64) -> anyhow::Result<u64> {
    let kind = kind_byte(queue.kind).context("a kind of queue that we do not know")?;
    ensure!(seq >= 0, "a negative seq");
    let (epoch, seq) = (frame::epoch_from_idl(epoch)?, frame::seq_from_idl(seq)?);
    Ok(position_hash(regid, kind, queue.name.as_deref().unwrap_or_default(), epoch, seq))
}

#[cfg(test)]
mod tests {
    use carillon_wire::idl::QueueKind;

    use super::*;

    /// Frames of `docs/PROTOCOL.md`.
    const DELTAS: &str = "2c18027231191c1c150618046e65777300150e1652165418080102030405060708191c165418024d311680a0abfef96218077b2261223a317d00000000";

    fn bytes(hex: &str) -> Vec<u8> {
        let pair = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(pair).collect()
    }

    #[test]
    fn a_delta_moves_one_place() {
        let mut places = Places::default();
        let topic = Queue { kind: QueueKind::TOPIC, name: Some("news".to_owned()) };
        places.set("r1", &topic, 7, 40).unwrap();
        let mut payloads = Vec::new();
        let asked =
            take(&bytes(DELTAS), &mut places, None, &mut |bytes| payloads.push(bytes.to_vec()));
        assert_eq!(asked.unwrap(), Asked::Nothing);
        assert_eq!(payloads, [br#"{"a":1}"#]);
        let place = (position_hash("r1", 3, "news", 0, 0), position_hash("r1", 3, "news", 7, 42));
        assert_eq!(places, Places(vec![place]));
    }

    #[test]
    fn asked_for_positions_it_has_none() {
        let mut places = Places(vec![(1, 1)]);
        assert_eq!(
            take(&bytes("4c0000"), &mut places, None, &mut |_| ()).unwrap(),
            Asked::Positions
        );
        assert_eq!(places, Places::default());
        let resumed = take(&bytes("3c19180272310000"), &mut places, None, &mut |_| ());
        assert_eq!(resumed.unwrap(), Asked::Resumed);
        assert_eq!(resume(&places).unwrap(), bytes("2c16000000"));
    }
}
