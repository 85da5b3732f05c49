//! PROXY protocol v2: whom a connection of a balancer serves.
//!
//! The parser is pure and takes a whole header; [`client_address`] reads exactly one from a
//! stream and not a byte more. A header counts only from configured addresses: anybody
//! could write one. Knows nothing of what follows.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};

/// From which addresses a header must come, and from no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancers(Vec<IpNet>);

impl Balancers {
    /// Of these networks.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self(networks.into_iter().collect())
    }

    /// Whether a peer is one. An IPv4 address counts as such also over an IPv6 socket.
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(&peer))
    }
}

/// A header that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream ended or broke.
    #[error("cannot read the header")]
    Io(#[from] io::Error),
    /// These bytes are no version 2 header.
    #[error("no PROXY protocol v2 header")]
    Signature,
    /// Neither LOCAL nor PROXY.
    #[error("unknown command {0}")]
    Command(u8),
    /// It announces more than [`HEADER_BYTES_MAX`].
    #[error("{0} bytes are too long")]
    TooLong(usize),
    /// A family and transport that no stream of ours can have.
    #[error("unknown family {0:#04x}")]
    Family(u8),
    /// It is shorter than its family, or a field of it is longer than the rest.
    #[error("cut short")]
    CutShort,
    /// Its checksum is another one.
    #[error("wrong checksum")]
    Checksum,
}

/// Whom a connection serves: its peer, or who the header of a balancer says. Does not wait
/// for anything if the peer is no balancer. Dropping it may lose bytes of the stream.
///
/// # Errors
/// [`Error`]: the connection is of no use then.
pub async fn client_address<S: AsyncRead + Unpin>(
    stream: &mut S,
    peer: SocketAddr,
    balancers: &Balancers,
) -> Result<SocketAddr, Error> {
    if !balancers.contains(peer.ip()) {
        return Ok(peer);
    }
    let mut header = [0; HEADER_BYTES_MAX];
    stream.read_exact(&mut header[..HEAD_BYTES]).await?;
    let length = length_of(&header)?;
    let Some(header) = header.get_mut(..length) else { return Err(Error::TooLong(length)) };
    stream.read_exact(&mut header[HEAD_BYTES..]).await?;
    Ok(parse(header)?.unwrap_or(peer))
}

/// The length of a whole header, in bytes, by its first [`HEAD_BYTES`].
///
/// # Errors
/// [`Error`], if these bytes cannot begin one.
pub fn length_of(head: &[u8]) -> Result<usize, Error> {
    let Some((signature, [version_and_command, _, high, low, ..])) =
        head.split_first_chunk::<{ SIGNATURE.len() }>()
    else {
        return Err(Error::CutShort);
    };
    if signature != SIGNATURE || version_and_command >> 4 != 2 {
        return Err(Error::Signature);
    }
    let length = HEAD_BYTES + usize::from(u16::from_be_bytes([*high, *low]));
    if length > HEADER_BYTES_MAX {
        return Err(Error::TooLong(length));
    }
    Ok(length)
}

/// Reads a whole header. `None`: the balancer speaks for itself, or does not say for whom.
///
/// # Errors
/// [`Error`], for anything else.
pub fn parse(header: &[u8]) -> Result<Option<SocketAddr>, Error> {
    let length = length_of(header)?;
    let (head, body) = header.get(..length).ok_or(Error::CutShort)?.split_at(HEAD_BYTES);
    let (command, family) = (head[12] & 0x0F, head[13]);
    match command {
        // A balancer's own check: the rest means nothing.
        LOCAL => return Ok(None),
        PROXY => {}
        other => return Err(Error::Command(other)),
    }
    let (client, fields) = match family {
        TCP4 => {
            let ([a, b, c, d, _, _, _, _, high, low, _, _], fields) = taken(body)?;
            let port = u16::from_be_bytes([*high, *low]);
            (Some(SocketAddr::from((Ipv4Addr::new(*a, *b, *c, *d), port))), fields)
        }
        TCP6 => {
            let (address, rest) = taken::<16>(body)?;
            let (_, rest) = taken::<16>(rest)?;
            let ([high, low, _, _], fields) = taken(rest)?;
            let port = u16::from_be_bytes([*high, *low]);
            (Some(SocketAddr::from((Ipv6Addr::from(*address), port))), fields)
        }
        UNIX => (None, taken::<216>(body)?.1),
        UNSPECIFIED => (None, body),
        other => return Err(Error::Family(other)),
    };
    // Without a family nobody says where the fields begin.
    if family != UNSPECIFIED {
        check_fields(header.get(..length).ok_or(Error::CutShort)?, fields)?;
    }
    Ok(client)
}

fn taken<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), Error> {
    bytes.split_first_chunk().ok_or(Error::CutShort)
}

/// Walks over the fields; the only one that matters is the checksum.
fn check_fields(header: &[u8], mut fields: &[u8]) -> Result<(), Error> {
    while !fields.is_empty() {
        let ([kind, high, low], rest) = taken(fields)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(Error::CutShort)?;
        if *kind == CRC32C {
            let stated = value.try_into().map(u32::from_be_bytes).map_err(|_| Error::CutShort)?;
            // The checksum counts as zeroes in itself.
            let at = header.len() - rest.len() - length..header.len() - rest.len();
            let bytes = header.iter().enumerate();
            let zeroed = bytes.map(|(i, byte)| if at.contains(&i) { 0 } else { *byte });
            if crc32c(zeroed) != stated {
                return Err(Error::Checksum);
            }
        }
        fields = rest;
    }
    Ok(())
}

/// Castagnoli's checksum, bit by bit: a header is short and there is one for a connection.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}

/// The part that says how long the header is.
pub const HEAD_BYTES: usize = 16;
/// The longest header that is read. Balancers that add the names of TLS need some hundreds.
pub const HEADER_BYTES_MAX: usize = 1_024;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const UNIX: u8 = 0x31;
const CRC32C: u8 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[0x20 | command, family], &length, body].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 127, 0, 0, 1, 0x1F, 0x90, 0x07, 0x5B];

    fn with_checksum(mut header: Vec<u8>) -> Vec<u8> {
        let length = header.len() as u16 - 16 + 7;
        header[14..16].copy_from_slice(&length.to_be_bytes());
        header.extend([CRC32C, 0, 4, 0, 0, 0, 0]);
        let crc = crc32c(header.iter().copied());
        let at = header.len() - 4;
        header[at..].copy_from_slice(&crc.to_be_bytes());
        header
    }

    #[test]
    fn the_client_is_who_the_header_says() {
        let client = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        assert_eq!(parse(&header(PROXY, TCP4, &V4)).unwrap(), client("192.0.2.7:8080"));
        let v6 = [&Ipv6Addr::LOCALHOST.octets()[..], &[0; 16], &[0x1F, 0x90, 0, 1]].concat();
        assert_eq!(parse(&header(PROXY, TCP6, &v6)).unwrap(), client("[::1]:8080"));
        assert_eq!(parse(&header(LOCAL, UNSPECIFIED, b"")).unwrap(), None);
        assert_eq!(parse(&header(LOCAL, TCP4, &V4)).unwrap(), None);
        assert_eq!(parse(&header(PROXY, UNSPECIFIED, b"anything")).unwrap(), None);
        assert_eq!(parse(&header(PROXY, UNIX, &[0; 216])).unwrap(), None);
        let noop = [&V4[..], &[4, 0, 2, 9, 9, 0xEE, 0, 0]].concat();
        assert_eq!(parse(&header(PROXY, TCP4, &noop)).unwrap(), client("192.0.2.7:8080"));
    }

    #[test]
    fn a_checksum_is_checked() {
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xE306_9283);
        let good = with_checksum(header(PROXY, TCP4, &V4));
        assert!(parse(&good).unwrap().is_some());
        for at in 16..good.len() - 7 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(matches!(parse(&bad), Err(Error::Checksum)), "byte {at}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let v4 = || header(PROXY, TCP4, &V4);
        let cut = |length: usize| parse(&v4()[..length]);
        assert!((0..v4().len()).all(|length| matches!(cut(length), Err(Error::CutShort))));
        let mut other = v4();
        other[0] = b'P';
        assert!(matches!(parse(&other), Err(Error::Signature)));
        let mut old = v4();
        old[12] = 0x11;
        assert!(matches!(parse(&old), Err(Error::Signature)));
        assert!(matches!(parse(&header(2, TCP4, &V4)), Err(Error::Command(2))));
        assert!(matches!(parse(&header(PROXY, 0x12, &V4)), Err(Error::Family(0x12))));
        assert!(matches!(parse(&header(PROXY, TCP4, &V4[..11])), Err(Error::CutShort)));
        assert!(matches!(parse(&header(PROXY, TCP6, &[0; 35])), Err(Error::CutShort)));
        let field = [&V4[..], &[4, 0, 3, 9, 9]].concat();
        assert!(matches!(parse(&header(PROXY, TCP4, &field)), Err(Error::CutShort)));
        let long = header(PROXY, TCP4, &[0; HEADER_BYTES_MAX - 15]);
        assert!(matches!(parse(&long), Err(Error::TooLong(_))));
    }

    #[test]
    fn balancers_are_networks_of_both_families() {
        let all = ["10.0.0.0/8", "2001:db8::/32"].map(|network| network.parse().unwrap());
        let balancers = Balancers::new(all);
        let is_one = |address: &str| balancers.contains(address.parse().unwrap());
        assert!(is_one("10.1.2.3") && is_one("::ffff:10.1.2.3") && is_one("2001:db8::1"));
        assert!(!is_one("11.1.2.3") && !is_one("2001:db9::1"));
    }

    #[tokio::test]
    async fn exactly_the_header_is_read_and_only_from_a_balancer() {
        let balancers = Balancers::new(["10.0.0.0/8".parse().unwrap()]);
        let balancer = SocketAddr::from(([10, 0, 0, 1], 5));
        let bytes = [with_checksum(header(PROXY, TCP4, &V4)), b"rest".to_vec()].concat();
        let mut stream = &bytes[..];
        let client = client_address(&mut stream, balancer, &balancers).await.unwrap();
        assert_eq!((client.to_string(), stream), ("192.0.2.7:8080".into(), &b"rest"[..]));
        let stranger = SocketAddr::from(([11, 0, 0, 1], 5));
        let mut stream = &bytes[..];
        assert_eq!(client_address(&mut stream, stranger, &balancers).await.unwrap(), stranger);
        assert_eq!(stream.len(), bytes.len());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            tail in prop::collection::vec(any::<u8>(), 0..300),
            command in any::<u8>(),
            family in prop::sample::select(vec![UNSPECIFIED, TCP4, TCP6, UNIX, 0x12]),
        ) {
            drop(parse(&tail));
            drop(parse(&header(command & 1, family, &tail)));
            drop(parse(&[&SIGNATURE[..], &[0x21, family], &tail].concat()));
        }
    }
}
