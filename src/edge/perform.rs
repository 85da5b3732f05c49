//! What a session asks of the business calls, one call at a time.
//!
//! It decides nothing that the session could: it reads, compares and reports.

use std::sync::Arc;

use carillon_wire::{
    digest::{Digest, kind_byte, position_hash},
    frame, idl,
    mqtt::reason,
};

use super::{
    arrival::Arrival,
    session::{
        Answer, Call, Effect,
        feeds::Standing,
        filter::{self, Subscription, Wanted},
        frames::{Request, Unknown},
        snapshots::{Asked, Given},
    },
};
use crate::{
    base::{
        ids::{DeviceId, RegId},
        metrics::{Metrics, ResumeReason, SealRefusal},
    },
    queue::{
        filter::Attributes,
        position::{Epoch, Position, Seq},
    },
    service::{
        Error, Service,
        accept::{Accept, Hours},
        bind::By,
        deliver::{Claim, Following, Start, Stated},
        records::Registration,
        seals::{Registered, SealOffer, Sealing},
        snapshots::{Gather, Part},
    },
};

/// Whether the heads of the queues are read too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// They are.
    Read,
    /// They are not.
    Skip,
}

/// Does what needs no answer.
pub fn effect(arrival: &Arrival, effect: Effect) {
    let (edge, nudge) = (&arrival.edge, &arrival.nudge);
    let service = &edge.service;
    match effect {
        Effect::Acknowledge { regid, queue, position, delivered } => {
            service.acknowledge(&regid, queue, position, delivered)
        }
        Effect::Receipt(note) => service.receipt(note.message, note.regid, note.pushed_ms),
        Effect::Follow(queue) => service.follow(&queue, nudge),
        Effect::Unfollow(queue) => service.unfollow(queue, nudge),
        Effect::Idle(report) => edge.saw(arrival, report),
        Effect::Reported(result) => edge.metrics.edge.heartbeat_reports.of(result).increment(1),
        Effect::Gave(given) => gave(service.metrics(), given),
        Effect::GaveUp => service.metrics().collections.given_up.increment(1),
        Effect::Wake(unix_ms) => edge.wake_at(unix_ms, nudge),
        Effect::Stands(reason) => service.metrics().edge.resumes.of(reason).increment(1),
    }
}

fn gave(metrics: &Metrics, given: Given) {
    let metrics = &metrics.collections;
    if let Some(reason) = given.began {
        metrics.snapshots.of(reason.into()).increment(1);
    }
    metrics.chunks.increment(1);
    metrics.chunk_bytes.increment(given.bytes as u64);
}

/// Makes one call. What is durable stays done if this is dropped.
pub async fn call(arrival: &Arrival, call: Call, heads: Heads) -> Answer {
    let (service, device) = (&arrival.edge.service, &arrival.device());
    let answer = match call {
        Call::Resume(ticket, digest) => {
            resume(service, device, digest).map(|s| Answer::Resumed(ticket, s))
        }
        Call::Positions(ticket, stated) => positions(service, device, &stated)
            .map(|(s, unknown)| Answer::Positioned(ticket, s, unknown)),
        Call::Refresh => standings(service, device, Heads::Skip).map(Answer::Refreshed),
        Call::Subscribe(packet_id, wanted) => {
            let subscribed = subscribe(service, device, wanted, heads).await;
            subscribed.map(|(results, standings)| Answer::Subscribed(packet_id, results, standings))
        }
        Call::Unsubscribe(packet_id, taken) => {
            let unsubscribed = unsubscribe(service, device, taken).await;
            unsubscribed
                .map(|(results, standings)| Answer::Unsubscribed(packet_id, results, standings))
        }
        Call::Report(ticket, network, report) => {
            Ok(Answer::Advised(ticket, arrival.edge.heard(arrival, &network, report)))
        }
        Call::Repair(ticket, stated) => {
            let by = By::Device { device, token: None };
            Ok(Answer::Repaired(ticket, service.repair(by, stated).await))
        }
        Call::Upload(ticket, upload) => {
            Ok(Answer::Uploaded(ticket, service.upload(device, upload).await))
        }
        Call::Chunk(asked) => Ok(chunk(service, asked).await),
        Call::Request(ticket, request) => {
            Ok(Answer::Requested(ticket, perform(service, device, request).await))
        }
    };
    answer.unwrap_or_else(|error| {
        tracing::warn!(%error, "a connection ends because a call failed");
        Answer::Failed
    })
}

/// Long-term storage that fails is asked again: the device has other queues.
async fn chunk(service: &Arc<Service>, asked: Box<Asked>) -> Answer {
    let Asked { followings, at, after, gather, room, .. } = &*asked;
    let part = service.chunk(followings, *at, *after, *gather, *room).await;
    let part = part.unwrap_or_else(|error| {
        tracing::warn!(%error, "a snapshot cannot be read");
        Part::Later
    });
    Answer::Chunk(asked, part)
}

/// All registrations of a device, each where its stored pointers are.
///
/// # Errors
/// [`Error::Unavailable`].
pub fn standings(
    service: &Arc<Service>,
    device: &DeviceId,
    heads: Heads,
) -> Result<Vec<Standing>, Error> {
    let registrations = service.registrations(device)?;
    registrations.iter().map(|registration| standing(service, registration, heads)).collect()
}

fn standing(
    service: &Arc<Service>,
    registration: &Registration,
    heads: Heads,
) -> Result<Standing, Error> {
    let followings = service.followings(registration);
    let starts = service.stands(&registration.regid, &followings, |_, _| Claim::Stored.into())?;
    let heads = match heads {
        Heads::Read => {
            let at = |(at, start): (usize, &Start)| service.end_of(&followings, at, start.after);
            starts.iter().enumerate().map(at).collect::<Result<_, _>>()?
        }
        Heads::Skip => Vec::new(),
    };
    let sealing = service.sealing(registration)?;
    Ok(with_starts(registration, followings, starts, heads, sealing))
}

fn with_starts(
    registration: &Registration,
    followings: Vec<Following>,
    starts: Vec<Start>,
    heads: Vec<Position>,
    sealing: Sealing,
) -> Standing {
    Standing {
        regid: registration.regid,
        control: registration.control,
        followings,
        starts,
        heads,
        is_named: false,
        is_gated: registration.accept.is_some(),
        sealing,
    }
}

/// Compares the device's digest with the stored pointers of the queues that the device knows
/// it follows: a control entry that it has not acknowledged, it has not applied. `None`: they
/// differ.
fn resume(
    service: &Arc<Service>,
    device: &DeviceId,
    digest: i64,
) -> Result<Option<Vec<Standing>>, Error> {
    let registrations = service.registrations(device)?;
    let mut ours = Digest::new();
    let mut followed = Vec::with_capacity(registrations.len());
    for registration in &registrations {
        let followings = service.followings(registration);
        let positions = service.stored_positions(&registration.regid, &followings)?;
        let regid = registration.regid.to_string();
        let own = positions[0].seq;
        for (following, at) in followings.iter().zip(&positions) {
            if following.control <= own {
                let queue = following.queue.name();
                let (kind, name) = (queue.kind(), queue.wire_name());
                ours.add(position_hash(&regid, kind, name, at.epoch.0, at.seq.0));
            }
        }
        followed.push(followings);
    }
    if ours != Digest::from_idl(digest) {
        return Ok(None);
    }
    let standing = |(registration, followings): (&Registration, Vec<Following>)| {
        let mut starts =
            service.stands(&registration.regid, &followings, |_, _| Claim::Stored.into())?;
        for start in starts.iter_mut().filter(|start| start.jump.is_none()) {
            start.reason = ResumeReason::Digest;
        }
        let sealing = service.sealing(registration)?;
        Ok(with_starts(registration, followings, starts, Vec::new(), sealing))
    };
    registrations.iter().zip(followed).map(standing).collect::<Result<_, _>>().map(Some)
}

/// Takes the device's positions for each queue that it follows. Also returns the regIDs
/// that it states and does not have.
fn positions(
    service: &Arc<Service>,
    device: &DeviceId,
    stated: &[idl::RegistrationPositions],
) -> Result<(Vec<Standing>, Vec<Unknown>), Error> {
    let registrations = service.registrations(device)?;
    let mut standings = Vec::with_capacity(registrations.len());
    for registration in &registrations {
        let regid = registration.regid.to_string();
        let of = || stated.iter().filter(|s| s.regid == regid);
        let positions: Vec<&idl::Position> = of().flat_map(|s| &s.positions).collect();
        let gathered = of().flat_map(|s| s.gathered.iter().flatten()).collect::<Vec<_>>();
        let standing = stated_standing(service, registration, &positions, &gathered)?;
        standings.push(Standing { is_named: stated.iter().any(|s| s.regid == regid), ..standing });
    }
    let is_known = |text: &str| registrations.iter().any(|r| r.regid.to_string() == text);
    let unknown = stated.iter().map(|s| &s.regid).filter(|regid| !is_known(regid));
    let unknown = unknown.take(UNKNOWN_MAX).map(|regid| {
        let has_expired = service.has_expired(device, regid)?;
        Ok(Unknown { regid: regid.clone(), has_expired })
    });
    let unknown = unknown.collect::<Result<_, Error>>()?;
    Ok((standings, unknown))
}

fn stated_standing(
    service: &Arc<Service>,
    registration: &Registration,
    positions: &[&idl::Position],
    gathered: &[&idl::Gathered],
) -> Result<Standing, Error> {
    let followings = service.followings(registration);
    let claim = |following: &Following, own: Option<Seq>| -> Stated {
        // What is gathered is ahead of the position, which waits for it.
        let one = gathered.iter().find(|g| names(&g.queue, following));
        if let Some(stated) = one.and_then(|one| read_gathered(service, following, one)) {
            return stated;
        }
        let stated = positions
            .iter()
            .find(|p| names(&p.queue, following))
            .and_then(|p| read(service, following, p));
        match (stated, own) {
            (Some(stated), _) => stated.into(),
            // Its own queue will tell it of this one, from where the stored pointer is.
            // The control entry that is still to come will put the device there.
            (None, Some(own)) if own < following.control => {
                Claim::At { position: following.since, is_genuine: false }.into()
            }
            (None, _) => Claim::Nothing.into(),
        }
    };
    let starts = service.stands(&registration.regid, &followings, claim)?;
    let sealing = service.sealing(registration)?;
    Ok(with_starts(registration, followings, starts, Vec::new(), sealing))
}

fn names(queue: &idl::Queue, following: &Following) -> bool {
    let name = queue.name.as_deref().unwrap_or("");
    let ours = following.queue.name();
    kind_byte(queue.kind) == Some(ours.kind()) && name == ours.wire_name()
}

/// What a device states of one queue; `None` where it is no position at all.
fn read(service: &Arc<Service>, following: &Following, position: &idl::Position) -> Option<Claim> {
    let epoch = Epoch(frame::epoch_from_idl(position.epoch).ok()?);
    let seq = Seq(frame::seq_from_idl(position.seq).ok()?);
    let at = Position { epoch, seq };
    let tag = position.tag.as_deref().and_then(|tag| frame::tag_from_idl(tag).ok());
    let is_genuine = tag.is_some_and(|tag| tag == service.tag(&following.queue.id(), at));
    Some(Claim::At { position: at, is_genuine })
}

/// What a device has of a snapshot; `None` where it is none of ours.
fn read_gathered(
    service: &Arc<Service>,
    following: &Following,
    gathered: &idl::Gathered,
) -> Option<Stated> {
    let at = Position {
        epoch: Epoch(frame::epoch_from_idl(gathered.epoch).ok()?),
        seq: Seq(frame::seq_from_idl(gathered.at_seq).ok()?),
    };
    let tag = frame::tag_from_idl(&gathered.tag).ok()?;
    if tag != service.tag(&following.queue.id(), at) {
        return None;
    }
    let begun = Claim::At { position: at, is_genuine: true };
    match (&gathered.cursor, gathered.reached_seq) {
        (Some(cursor), _) => {
            let gather = Some(Gather::from_cursor(at, cursor)?);
            Some(Stated { claim: begun, gather })
        }
        (None, Some(reached)) => {
            let seq = Seq(frame::seq_from_idl(reached).ok()?);
            let (position, is_genuine) = (Position { seq, ..at }, seq == at.seq);
            (seq >= at.seq).then(|| Claim::At { position, is_genuine }.into())
        }
        (None, None) => None,
    }
}

async fn subscribe(
    service: &Arc<Service>,
    device: &DeviceId,
    wanted: Vec<Result<Wanted, u8>>,
    heads: Heads,
) -> Result<(Vec<Result<Subscription, u8>>, Vec<Standing>), Error> {
    let registrations = service.registrations(device)?;
    let mut results = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        let mut result = wanted.and_then(|wanted| filter::resolve(wanted, &registrations));
        if let Ok(Subscription { regid, .. }) = &result
            && !is_open(service, &registrations, regid)?
        {
            result = Err(reason::NOT_AUTHORIZED);
        }
        if let Ok(Subscription { regid, topic: Some(topic), .. }) = &result {
            let topics = [topic.as_str().to_owned()];
            let by = By::Device { device, token: None };
            if let Err(error) = service.subscribe(&regid.to_string(), &topics, by).await {
                result = Err(filter::refusal(&error));
            }
        }
        results.push(result);
    }
    Ok((results, standings(service, device, heads)?))
}

/// Whether plain use may deliver a registration's messages.
fn is_open(
    service: &Arc<Service>,
    registrations: &[Registration],
    regid: &RegId,
) -> Result<bool, Error> {
    let Some(registration) = registrations.iter().find(|one| one.regid == *regid) else {
        return Ok(false);
    };
    let is_open = service.sealing(registration)? == Sealing::Open;
    if !is_open {
        service.metrics().seals.refusals.of(SealRefusal::PlainUse).increment(1);
    }
    Ok(is_open)
}

async fn unsubscribe(
    service: &Arc<Service>,
    device: &DeviceId,
    taken: Vec<Result<Subscription, u8>>,
) -> Result<(Vec<Result<Subscription, u8>>, Vec<Standing>), Error> {
    let mut results = Vec::with_capacity(taken.len());
    for mut result in taken {
        if let Ok(Subscription { regid, topic: Some(topic), .. }) = &result {
            let topics = [topic.as_str().to_owned()];
            let by = By::Device { device, token: None };
            if let Err(error) = service.unsubscribe(&regid.to_string(), &topics, by).await {
                result = Err(filter::refusal(&error));
            }
        }
        results.push(result);
    }
    Ok((results, standings(service, device, Heads::Skip)?))
}

async fn perform(
    service: &Arc<Service>,
    device: &DeviceId,
    request: Request,
) -> Result<Option<Registered>, Error> {
    let by = |token| By::Device { device, token };
    match request {
        Request::Register(r) => {
            let offer = r.seal.as_ref().map(SealOffer::from_idl).transpose()?;
            let done = service.register(device, &r.app_id, &r.app_key, offer).await?;
            if let Some(stated) = r.attributes {
                let regid = done.regid.to_string();
                service.describe(&regid, attributes(stated), by(None)).await?;
            }
            Ok(Some(done))
        }
        Request::Rekey(r) => {
            let offer = SealOffer::from_idl(&r.seal)?;
            service.rekey(device, &r.regid, offer, r.proof).await.map(Some)
        }
        Request::Describe(r) => {
            let attributes = attributes(r.attributes);
            service.describe(&r.regid, attributes, by(None)).await.map(|()| None)
        }
        Request::Unregister(r) => service.unregister(&r.regid, by(None)).await.map(|()| None),
        Request::Bind(r) => {
            service.bind(&r.regid, &r.alias_name, by(r.token.as_deref())).await.map(|()| None)
        }
        Request::Unbind(r) => {
            service.unbind(&r.regid, &r.alias_name, by(None)).await.map(|()| None)
        }
        Request::Subscribe(r) => {
            service.subscribe(&r.regid, &r.topics, by(None)).await.map(|()| None)
        }
        Request::Accept(r) => {
            let accept = accept_of(&r)?;
            service.set_accept(&r.regid, accept, by(None)).await.map(|()| None)
        }
        Request::Unsubscribe(r) => {
            service.unsubscribe(&r.regid, &r.topics, by(None)).await.map(|()| None)
        }
        Request::Event(r) if r.kind == idl::EventKind::CLICKED => {
            service.clicked(&r.regid, &r.message, by(None)).await.map(|()| None)
        }
        // A kind that is yet to come: the device need not know how old we are.
        Request::Event(_) => Ok(None),
    }
}

fn attributes(idl: idl::Attributes) -> Attributes {
    let idl::Attributes { app_version, locale, model, network } = idl;
    Attributes { app_version, locale, model, network }
}

/// What a device says of when it wants messages.
fn accept_of(stated: &idl::Accept) -> Result<Accept, Error> {
    let hours = match (stated.start_minute, stated.end_minute, &stated.zone) {
        (None, None, None) => None,
        (Some(start), Some(end), Some(zone)) => Some(Hours::of(start.into(), end.into(), zone)?),
        _ => {
            let rule = "start_minute, end_minute and zone, or none of them".to_owned();
            return Err(Error::Invalid { field: "accept", rule });
        }
    };
    Ok(Accept { is_paused: stated.paused.unwrap_or(false), hours })
}

/// Stated regIDs of which the device is told that they are no more, in one answer.
const UNKNOWN_MAX: usize = 32;
