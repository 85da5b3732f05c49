//! What the device says about where it stands: `Resume` and `Positions`, in frames that are not too long.

use carillon_wire::frame::{DICTIONARY, empty_up, epoch_to_idl, seq_to_idl};
use carillon_wire::idl;
use carillon_wire::limits::{CONTAINER_ITEMS_MAX, TAG_BYTES};

use super::gathering::Missing;
use crate::names::{Position, QueueName, RegId};
use crate::state::{Registration, State};

/// `Resume`.
pub fn up_resume(digest: i64) -> idl::Up {
    let dictionary = Some(DICTIONARY);
    idl::Up { resume: Some(idl::Resume { digest, dictionary }), ..empty_up() }
}

/// `Positions` of these registrations, with more frames of it to follow or not. One that we do not hold has none.
pub fn up_positions(state: &State, regids: &[RegId], more: bool) -> idl::Up {
    let registrations = regids.iter().map(|regid| idl::RegistrationPositions {
        regid: regid.to_string(),
        positions: state.registrations.get(regid).map_or_else(Vec::new, positions),
        gathered: state.registrations.get(regid).and_then(gathered),
    });
    let registrations = registrations.collect();
    idl::Up {
        positions: Some(idl::Positions { registrations, more: more.then_some(true) }),
        ..empty_up()
    }
}

/// All registrations, divided among frames; one frame with nothing if there is none.
pub fn everything(state: &State) -> Vec<Vec<RegId>> {
    let mut frames = vec![Vec::new()];
    let mut bytes = 0;
    for (regid, registration) in &state.registrations {
        let more = registration_bytes(regid, registration);
        let is_full = frames.last().is_some_and(|frame: &Vec<RegId>| {
            !frame.is_empty()
                && (bytes + more > POSITIONS_BYTES_MAX || frame.len() >= CONTAINER_ITEMS_MAX)
        });
        if is_full {
            frames.push(Vec::new());
            bytes = 0;
        }
        bytes += more;
        if let Some(frame) = frames.last_mut() {
            frame.push(regid.clone());
        }
    }
    frames
}

/// As many positions as fit one frame. What does not fit is answered by a jump, and message ids tell what is old.
fn positions(registration: &Registration) -> Vec<idl::Position> {
    let mut bytes = 0;
    let fits = |(queue, _): &(&QueueName, &Position)| {
        bytes += position_bytes(queue);
        bytes <= POSITIONS_BYTES_MAX
    };
    let positions = registration.positions.iter();
    positions
        .take(CONTAINER_ITEMS_MAX)
        .take_while(fits)
        .map(|(queue, at)| idl::Position {
            queue: queue.to_idl(),
            epoch: epoch_to_idl(at.epoch),
            seq: seq_to_idl(at.seq),
            tag: at.tag.map(|tag| tag.to_vec()),
        })
        .collect()
}

/// What is not stated begins again.
fn gathered(registration: &Registration) -> Option<Vec<idl::Gathered>> {
    let gathering = registration.gathering.iter().take(GATHERED_MAX);
    let gathered: Vec<_> = gathering.map(|(queue, one)| one.to_idl(queue)).collect();
    (!gathered.is_empty()).then_some(gathered)
}

fn registration_bytes(regid: &RegId, registration: &Registration) -> usize {
    let queues = registration.positions.keys();
    let gathered = registration.gathering.iter().take(GATHERED_MAX).map(|(queue, one)| {
        position_bytes(queue)
            + if let Missing::Chunks(cursor) = &one.missing { cursor.len() } else { 0 }
    });
    regid.as_str().len() + 16 + queues.map(position_bytes).chain(gathered).sum::<usize>()
}

/// At least what a position takes in compact Thrift.
fn position_bytes(queue: &QueueName) -> usize {
    let headers_and_stops = 8;
    let varints = 5 + 5 + 5 + 10;
    queue.name_bytes() + headers_and_stops + varints + TAG_BYTES
}

/// Snapshots that one registration continues.
const GATHERED_MAX: usize = 64;
/// A frame of positions ends before this.
const POSITIONS_BYTES_MAX: usize = 96 << 10;
