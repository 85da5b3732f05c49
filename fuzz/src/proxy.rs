//! Headers of balancers against an oracle that reads fixed places.
//!
//! Input: what came first on a connection.

use std::net::{IpAddr, SocketAddr};

use carillon::base::proxy::{HEAD_BYTES, length_of, parse};

pub fn run(data: &[u8]) {
    let Ok(length) = length_of(data) else {
        assert!(parse(data).is_err(), "what cannot begin a header is none");
        return;
    };
    let stated = usize::from(u16::from_be_bytes([data[14], data[15]]));
    assert_eq!(length, HEAD_BYTES + stated);
    let Some(header) = data.get(..length) else {
        assert!(parse(data).is_err(), "it has not come whole");
        return;
    };
    let read = parse(header);
    let with_more = parse(data);
    assert_eq!(format!("{read:?}"), format!("{with_more:?}"), "what follows is not looked at");
    if let Ok(client) = read {
        assert_eq!(client, said(header));
    }
}

fn said(header: &[u8]) -> Option<SocketAddr> {
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let address: (IpAddr, u16) = match (header[12], header[13]) {
        (0x21, 0x11) => (<[u8; 4]>::try_from(&header[16..20]).ok()?.into(), port(24)),
        (0x21, 0x21) => (<[u8; 16]>::try_from(&header[16..32]).ok()?.into(), port(48)),
        _ => return None,
    };
    Some(address.into())
}
