//! Downlink frames as values: our words in the IDL's.

use carillon_wire::{
    frame::{bare_result, epoch_to_idl, seq_to_idl},
    idl,
    ranges::KeyRange,
};

use crate::{
    base::{
        ids::{QueueName, RegId},
        metrics::UpResult,
    },
    queue::{
        collection::{
            change::{Format, Kind, Origin},
            rule::Outcome,
        },
        entry::{Body, Change, Entry, Message},
        plan::Jump,
    },
    service::{
        self,
        items::ItemView,
        repair::{Held, Repaired},
        seals::Registered,
        uploads::{Fate, Uploaded, Verdict},
    },
};

fn empty() -> idl::Down {
    idl::Down::default()
}

/// The answer to an uplink frame.
pub fn result(request: i64, result: &Result<Option<Registered>, service::Error>) -> idl::Down {
    let (code, message, granted) = match result {
        Ok(granted) => (idl::ResultCode::OK, None, *granted),
        Err(error) => (code_of(error), Some(error.to_string()), None),
    };
    let regid = granted.map(|granted| granted.regid.to_string());
    let seal = granted.and_then(|granted| granted.seal).map(|seal| idl::SealAnswer {
        number: epoch_to_idl(seal.number),
        confirmation: seal.confirmation.to_vec(),
    });
    answer(idl::Result { message, regid, seal, ..bare_result(request, code) })
}

fn answer(result: idl::Result) -> idl::Down {
    idl::Down { result: Some(result), ..empty() }
}

/// The answer to edits. One without any tells the number that is expected next.
pub fn uploaded(request: i64, result: &Result<Uploaded, service::Error>) -> idl::Down {
    let uploaded = match result {
        Ok(uploaded) => uploaded,
        Err(error) => return refused(request, code_of(error), &error.to_string()),
    };
    let (code, message) = match uploaded.verdict {
        Verdict::Taken => (idl::ResultCode::OK, None),
        Verdict::TooFast => (idl::ResultCode::LIMIT, Some("too many edits, come back later")),
        Verdict::Behind => {
            (idl::ResultCode::UNAVAILABLE, Some("storage is behind, come back later"))
        }
        Verdict::OutOfStep => {
            (idl::ResultCode::RENUMBER, Some("number the edits from next_cseq on"))
        }
    };
    let is_told = match uploaded.verdict {
        Verdict::OutOfStep => true,
        Verdict::Taken => uploaded.fates.is_empty(),
        Verdict::TooFast | Verdict::Behind => false,
    };
    let edits = uploaded.fates.iter().map(|(cseq, fate)| edit(*cseq, fate)).collect();
    answer(idl::Result {
        message: message.map(str::to_owned),
        edits: Some(edits),
        next_cseq: is_told.then(|| seq_to_idl(uploaded.next)),
        ..bare_result(request, code)
    })
}

fn edit(cseq: u64, fate: &Fate) -> idl::EditResult {
    let (outcome, message) = match &fate.outcome {
        Ok(Outcome::Applied) => (idl::EditOutcome::APPLIED, None),
        Ok(Outcome::Merged) => (idl::EditOutcome::MERGED, None),
        Ok(Outcome::Copied) => (idl::EditOutcome::COPIED, None),
        Ok(Outcome::Lost) => (idl::EditOutcome::LOST, None),
        Err(why) => (idl::EditOutcome::INVALID, Some(why.to_string())),
    };
    let seq = fate.seq.map(|seq| seq_to_idl(seq.0));
    idl::EditResult { cseq: seq_to_idl(cseq), outcome, seq, message }
}

/// The answer to what is no frame, or of no known kind.
pub fn refused(request: i64, code: idl::ResultCode, message: &str) -> idl::Down {
    answer(idl::Result { message: Some(message.to_owned()), ..bare_result(request, code) })
}

/// The ranges that differ.
pub fn repaired(request: i64, result: Result<Vec<Repaired>, service::Error>) -> idl::Down {
    let (code, message, ranges) = match result {
        Ok(ranges) => (idl::ResultCode::OK, None, ranges),
        Err(error) => (code_of(&error), Some(error.to_string()), Vec::new()),
    };
    let ranges = ranges.into_iter().map(repaired_range).collect::<Vec<_>>();
    let ranges = (!ranges.is_empty()).then_some(ranges);
    answer(idl::Result { message, ranges, ..bare_result(request, code) })
}

fn repaired_range(Repaired { range, held }: Repaired) -> idl::RepairedRange {
    let range = range.to_idl();
    match held {
        Held::Items(items) => {
            let items = Some(items.into_iter().map(item).map(Box::new).collect());
            idl::RepairedRange { range, items, parts: None }
        }
        Held::Parts(parts) => {
            let parts = Some(parts.iter().map(KeyRange::to_idl).collect());
            idl::RepairedRange { range, items: None, parts }
        }
    }
}

/// An item as devices read it.
pub fn item(item: ItemView) -> idl::Item {
    let ItemView { collection, key, seq, value, clock } = item;
    idl::Item {
        collection: collection.to_string(),
        key: key.into(),
        seq: seq_to_idl(seq.0),
        format: format(value.format),
        value: value.bytes.to_vec(),
        clock: Some(clock.0.cast_signed()),
    }
}

/// Pushing starts now. Where the digests agree, the device knows its registrations.
pub fn resumed(regids: Option<Vec<String>>) -> idl::Down {
    idl::Down { resumed: Some(idl::Resumed { regids }), ..empty() }
}

/// The digest differs.
pub fn ask_positions() -> idl::Down {
    idl::Down { ask_positions: Some(idl::AskPositions {}), ..empty() }
}

/// Come back later, there if a server is named.
pub fn advice(reconnect_after_ms: i64, server: Option<String>) -> idl::Down {
    let reconnect_after_ms = Some(reconnect_after_ms);
    let advice = idl::Advice { reconnect_after_ms, server, heartbeat_s: None };
    idl::Down { advice: Some(advice), ..empty() }
}

/// An interval for heartbeats, in seconds.
pub fn heartbeat_advice(heartbeat_s: u16) -> idl::Down {
    let heartbeat_s = Some(i32::from(heartbeat_s));
    let advice = idl::Advice { reconnect_after_ms: None, server: None, heartbeat_s };
    idl::Down { advice: Some(advice), ..empty() }
}

/// A registration is no more, and why, where that is known.
pub fn ended(regid: String, reason: Option<idl::EndReason>) -> idl::Down {
    idl::Down { ended: Some(idl::Ended { regid, reason }), ..empty() }
}

/// Whose fault a failed call is.
pub fn up_result<T>(result: &Result<T, service::Error>) -> UpResult {
    match result {
        Ok(_) => UpResult::Ok,
        Err(service::Error::Unavailable(_) | service::Error::StorageBehind) => UpResult::Failed,
        Err(
            service::Error::Invalid { .. }
            | service::Error::NotFound { .. }
            | service::Error::Forbidden(_)
            | service::Error::Sealed(_)
            | service::Error::NeedsPolicy
            | service::Error::Gone
            | service::Error::Limit { .. }
            | service::Error::Conflict(_)
            | service::Error::Allowance { .. }
            | service::Error::KeyInUse
            | service::Error::KeyReused,
        ) => UpResult::Refused,
    }
}

/// Whose fault it is that edits were not taken.
pub fn upload_result(result: &Result<Uploaded, service::Error>) -> UpResult {
    match result {
        Ok(Uploaded { verdict: Verdict::TooFast | Verdict::OutOfStep, .. }) => UpResult::Refused,
        Ok(Uploaded { verdict: Verdict::Behind, .. }) => UpResult::Failed,
        Ok(Uploaded { verdict: Verdict::Taken, .. }) | Err(_) => up_result(result),
    }
}

/// The IDL's kind of a queue.
pub fn queue_kind(queue: &QueueName) -> idl::QueueKind {
    match queue {
        QueueName::Own(_) => idl::QueueKind::OWN,
        QueueName::Alias(..) => idl::QueueKind::ALIAS,
        QueueName::Topic(..) => idl::QueueKind::TOPIC,
        QueueName::All(_) => idl::QueueKind::ALL,
    }
}

/// The IDL's name of a queue, which only some have.
pub fn queue_name(queue: &QueueName) -> Option<&str> {
    match queue {
        QueueName::Alias(..) | QueueName::Topic(..) => Some(queue.wire_name()),
        QueueName::Own(_) | QueueName::All(_) => None,
    }
}

/// The IDL's reason of a jump.
pub fn jump(jump: Jump) -> idl::JumpReason {
    match jump {
        Jump::New => idl::JumpReason::NEW,
        Jump::EpochChanged => idl::JumpReason::EPOCH_CHANGED,
        Jump::Overflow => idl::JumpReason::OVERFLOW,
        Jump::Ahead => idl::JumpReason::AHEAD,
        Jump::Smaller => idl::JumpReason::SMALLER,
    }
}

/// An entry as devices read it: all alike, or the one of this registration.
pub fn entry(entry: &Entry, to: Option<&RegId>) -> idl::Entry {
    let mut idl = idl::Entry {
        seq: seq_to_idl(entry.position.seq.0),
        id: None,
        time_ms: i64::try_from(entry.at_ms).ok(),
        payload: None,
        notification: None,
        follow: None,
        unfollow: None,
        sealed: None,
        recall: None,
        change: None,
    };
    match &entry.body {
        Body::Message(message) => {
            idl.id = Some(message.id.as_bytes().to_vec());
            let idl::Content { payload, notification } = content(message);
            (idl.payload, idl.notification) = (payload, notification);
        }
        Body::Follow { queue, since } => {
            let (epoch, since) = (epoch_to_idl(since.epoch.0), seq_to_idl(since.seq.0));
            idl.follow = Some(idl::Follow { queue: queue_of(queue), epoch, since });
        }
        Body::Unfollow { queue } => idl.unfollow = Some(idl::Unfollow { queue: queue_of(queue) }),
        Body::Recall(recall) => idl.recall = Some(recall.id.as_bytes().to_vec()),
        Body::Change(changed) => idl.change = Some(change(changed, to)),
    }
    idl
}

fn change(change: &Change, to: Option<&RegId>) -> idl::Change {
    let cseq = match change.stamp.origin {
        Origin::Device { regid, cseq } if to == Some(&regid) => i64::try_from(cseq).ok(),
        Origin::Device { .. } | Origin::Server => None,
    };
    let kind = match change.kind {
        Kind::New => idl::ChangeKind::NEW,
        Kind::Update => idl::ChangeKind::UPDATE,
        Kind::Delete => idl::ChangeKind::DELETE,
    };
    // Who made it has it.
    let is_told = change.kind != Kind::Delete && !(cseq.is_some() && change.is_as_made);
    idl::Change {
        collection: change.collection.to_string(),
        key: change.key.to_string(),
        kind,
        value: is_told.then(|| change.value.bytes.to_vec()),
        format: is_told.then_some(change.value.format).and_then(format),
        clock: Some(change.stamp.clock.0.cast_signed()),
        cseq,
    }
}

/// The IDL's format of a value; JSON is not said.
pub fn format(format: Format) -> Option<idl::ValueFormat> {
    match format {
        Format::Json => None,
        Format::Thrift => Some(idl::ValueFormat::THRIFT),
    }
}

/// What of a message is sealed where anything is.
pub fn content(message: &Message) -> idl::Content {
    let notification = message.notification.clone().map(|n| idl::Notification {
        title: n.title,
        body: n.body,
        extra: n.extra,
    });
    idl::Content { payload: Some(message.payload.to_vec()), notification }
}

fn queue_of(queue: &QueueName) -> idl::Queue {
    idl::Queue { kind: queue_kind(queue), name: queue_name(queue).map(str::to_owned) }
}

fn code_of(error: &service::Error) -> idl::ResultCode {
    match error {
        service::Error::Invalid { .. }
        | service::Error::Gone
        | service::Error::Conflict(_)
        | service::Error::KeyInUse
        | service::Error::KeyReused => idl::ResultCode::INVALID,
        service::Error::NotFound { .. } => idl::ResultCode::NOT_FOUND,
        service::Error::Forbidden(_) | service::Error::NeedsPolicy => idl::ResultCode::FORBIDDEN,
        service::Error::Sealed(_) => idl::ResultCode::SEALED,
        service::Error::Limit { .. } | service::Error::Allowance { .. } => idl::ResultCode::LIMIT,
        service::Error::StorageBehind | service::Error::Unavailable(_) => {
            idl::ResultCode::UNAVAILABLE
        }
    }
}
