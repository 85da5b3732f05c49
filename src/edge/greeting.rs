//! The handshake of one connection: from a stream of bytes to a session.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use carillon_wire::mqtt::{self, ConnAck, Connect, Decoder, Disconnect, Packet, Version, reason};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    Accepted, Edge,
    arrival::Arrival,
    connection::{Connection, Device},
    gate::Refusal as Refused,
    life::Established,
    perform::{self, Heads},
    pool,
    session::{
        Parked, Session,
        handshake::{self, Granted, Refusal},
    },
    sessions::{Claim, Token},
};
use crate::{
    base::{ids::DeviceId, metrics::Handshake},
    service::Error,
};

/// Takes CONNECT in. Gives the connection with CONNACK as its first output, or `None`
/// after a refusal. Dropping it ends the handshake at any point.
pub(super) async fn greet<S>(accepted: Accepted, mut stream: S) -> Option<Established<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let edge = accepted.handshaking.edge.clone();
    let mut decoder = Decoder::server(edge.config().connect_bytes_max);
    let mut unread = BytesMut::new();
    let (connect, bytes_in) = match read_connect(&mut stream, &mut decoder, &mut unread).await {
        Ok(read) => read,
        Err(failure) => {
            accepted.failed(failure.result);
            refuse(&mut stream, failure.version, failure.reason).await;
            return None;
        }
    };
    let version = connect.version;
    match welcome(&edge, &connect, &accepted).await {
        Ok(Some(mut welcomed)) => {
            if !speaks_frames(&unread) {
                edge.cap(&mut welcomed.granted, &welcomed.arrival);
            }
            decoder.set_max_packet_bytes(edge.config().packet_bytes_max);
            Some(establish(accepted, stream, decoder, (unread, bytes_in), welcomed))
        }
        Ok(None) => {
            accepted.failed(Handshake::Refused);
            say_taken_over(&mut stream, version).await;
            None
        }
        Err(Refusal { reason, result }) => {
            accepted.failed(result);
            if result == Handshake::BadCredentials {
                edge.gate.note_auth_failure(accepted.admission.address);
            }
            refuse(&mut stream, Some(version), reason).await;
            None
        }
    }
}

/// Tells one that is turned away why, and when to come back. The caller's deadline bounds it.
pub(super) async fn turn_away<S>(edge: &Edge, mut stream: S, refused: Refused)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut decoder = Decoder::server(edge.config().connect_bytes_max);
    let Ok((connect, _)) = read_connect(&mut stream, &mut decoder, &mut BytesMut::new()).await
    else {
        return;
    };
    let mut connack = ConnAck { reason: refused.code(), ..ConnAck::default() };
    // 3.1.1 has no words for when.
    if connect.version == Version::V5 {
        let after_ms = edge.gate.advice(refused).as_millis();
        connack.reason_string = Some(format!("come back in {after_ms} ms"));
        connack.user = vec![(RETRY_AFTER_MS.to_owned(), after_ms.to_string())];
    }
    say_no(&mut stream, connect.version, connack).await;
}

/// Whether a PUBLISH came right behind CONNECT: a device that speaks frames, to which advice
/// can come later.
fn speaks_frames(unread: &[u8]) -> bool {
    const PUBLISH: u8 = 3;
    unread.first().is_some_and(|byte| byte >> 4 == PUBLISH)
}

struct Failure {
    version: Option<Version>,
    reason: u8,
    result: Handshake,
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self { version: None, reason: reason::UNSPECIFIED, result: Handshake::Transport }
    }
}

async fn read_connect<S: AsyncRead + Unpin>(
    stream: &mut S,
    decoder: &mut Decoder,
    unread: &mut BytesMut,
) -> Result<(Connect, u64), Failure> {
    let mut bytes_in = 0;
    unread.reserve(CONNECT_BYTES);
    loop {
        let count = stream.read_buf(unread).await?;
        bytes_in += count as u64;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let claimed = handshake::claimed_version(unread);
        match decoder.decode(unread) {
            Ok(None) => {}
            Ok(Some(Packet::Connect(connect))) => return Ok((*connect, bytes_in)),
            Ok(Some(_)) => {
                return Err(Failure {
                    version: None,
                    reason: reason::PROTOCOL_ERROR,
                    result: Handshake::Malformed,
                });
            }
            Err(error) => return Err(malformed(&error, claimed)),
        }
    }
}

/// 3.1.1 has codes for an unknown version and a wrong client id only.
fn malformed(error: &mqtt::Error, claimed: Option<Version>) -> Failure {
    let has_code = matches!(error, mqtt::Error::UnsupportedVersion | mqtt::Error::ClientId);
    let version = match claimed {
        Some(Version::V5) => Some(Version::V5),
        Some(Version::V311) if has_code => Some(Version::V311),
        Some(Version::V311) => None,
        None if *error == mqtt::Error::UnsupportedVersion => Some(Version::V311),
        None => None,
    };
    Failure { version, reason: error.reason(), result: Handshake::Malformed }
}

/// Everything that a connection begins with.
struct Welcomed {
    granted: Granted,
    arrival: Arrival,
    parked: Option<Box<Parked>>,
}

/// `None` if the device has opened another connection since, which is here already.
async fn welcome(
    edge: &Arc<Edge>,
    connect: &Connect,
    accepted: &Accepted,
) -> Result<Option<Welcomed>, Refusal> {
    let granted = handshake::judge(connect, &edge.config())?;
    let secret = connect.password.as_deref().unwrap_or_default();
    let id = identify(edge, &connect.client_id, secret)?;
    let Some(arrival) = Arrival::new(edge, id, accepted.network, accepted.serial) else {
        return Ok(None);
    };
    let parked = if granted.terms.is_clean { None } else { claim(edge, id).await };
    match granted.terms.expiry_s {
        0 => edge.sessions.discard(&id),
        1.. => edge.sessions.begin(id, Token(arrival.serial())),
    }
    Ok(Some(Welcomed { granted, arrival, parked }))
}

/// The device that shows these credentials.
pub(super) fn identify(edge: &Edge, device_id: &str, secret: &[u8]) -> Result<DeviceId, Refusal> {
    let unavailable = Refusal { reason: reason::SERVER_UNAVAILABLE, result: Handshake::Refused };
    edge.service.identify(device_id, secret).map_err(|error| match error {
        Error::StorageBehind | Error::Unavailable(_) => unavailable,
        Error::Forbidden(_)
        | Error::Invalid { .. }
        | Error::NotFound { .. }
        | Error::Limit { .. }
        | Error::Sealed(_)
        | Error::NeedsPolicy
        | Error::Gone
        | Error::Conflict(_)
        | Error::Allowance { .. }
        | Error::KeyInUse
        | Error::KeyReused => {
            Refusal { reason: reason::BAD_CREDENTIALS, result: Handshake::BadCredentials }
        }
    })
}

/// What an older connection left. One that is still ending gets a moment to park.
async fn claim(edge: &Edge, id: DeviceId) -> Option<Box<Parked>> {
    match edge.sessions.claim(id, edge.now_s()) {
        Claim::Nothing => None,
        Claim::Found(parked) => Some(parked),
        Claim::Ending(answer) => timeout(TAKEOVER_WAIT, answer).await.ok()?.ok(),
    }
}

fn establish<S>(
    accepted: Accepted,
    stream: S,
    decoder: Decoder,
    (unread, bytes_in): (BytesMut, u64),
    welcomed: Welcomed,
) -> Established<S> {
    let Accepted { transport, at, admission, handshaking, .. } = accepted;
    let edge = handshaking.edge.clone();
    let Welcomed { granted: Granted { terms, mut connack }, arrival, parked } = welcomed;
    let mut out = pool::output();
    let id = arrival.device();
    let restored = parked.and_then(|parked| {
        let standings = perform::standings(&edge.service, &id, Heads::Skip).ok()?;
        if standings.is_empty() {
            return None;
        }
        Some(Session::restored(terms, edge.now_s(), *parked, standings, &mut out))
    });
    connack.session_present = restored.is_some();
    let session = restored.unwrap_or_else(|| Session::new(terms, edge.now_s()));
    write_connack(terms.version, connack, &mut out.bytes);
    edge.metrics.edge.handshakes.of(Handshake::Accepted).increment(1);
    edge.metrics.edge.handshake_seconds.record(at.elapsed());
    let at_ms = edge.elapsed_ms().saturating_sub(at.elapsed().as_millis() as u64);
    let device = Device { arrival, transport, at_ms, _admission: admission };
    (Box::new(Connection::new(device, stream, session, decoder, bytes_in)), out, unread)
}

fn write_connack(version: Version, connack: ConnAck, out: &mut BytesMut) {
    let encoded = mqtt::encode(version, &Packet::ConnAck(Box::new(connack)), out);
    assert!(encoded.is_ok(), "our own CONNACK can be encoded");
}

/// What a connection hears that comes after the one that took it over.
async fn say_taken_over<S: AsyncWrite + Unpin>(stream: &mut S, version: Version) {
    let mut out = BytesMut::new();
    write_connack(version, ConnAck::default(), &mut out);
    if version == Version::V5 {
        let end = Disconnect { reason: reason::SESSION_TAKEN_OVER, ..Disconnect::default() };
        let encoded = mqtt::encode(version, &Packet::Disconnect(end), &mut out);
        assert!(encoded.is_ok(), "our own DISCONNECT can be encoded");
    }
    drop(stream.write_all(&out).await);
    drop(stream.shutdown().await);
}

/// Says no where the version can, and leaves. The caller's deadline bounds it.
async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, version: Option<Version>, reason: u8) {
    match version {
        Some(version) => say_no(stream, version, ConnAck { reason, ..ConnAck::default() }).await,
        None => drop(stream.shutdown().await),
    }
}

async fn say_no<S: AsyncWrite + Unpin>(stream: &mut S, version: Version, connack: ConnAck) {
    let mut out = BytesMut::new();
    write_connack(version, connack, &mut out);
    // Whether it arrives is the device's affair: the connection ends either way.
    drop(stream.write_all(&out).await);
    drop(stream.shutdown().await);
}

/// The user property of CONNACK that says when to come back.
const RETRY_AFTER_MS: &str = "retry-after-ms";
/// Read at first: a CONNECT and the frame that comes with it, which are rarely longer.
const CONNECT_BYTES: usize = 256;
/// How long a new connection waits for the older one of its device to park.
const TAKEOVER_WAIT: Duration = Duration::from_secs(1);
