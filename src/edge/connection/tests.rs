//! The size of what every connection has.

use super::{
    super::{
        session::feeds::{Feed, Lane},
        tls::TlsStream,
    },
    *,
};
use crate::service::deliver::Following;

#[test]
fn an_idle_connection_is_as_small_as_documented() {
    // docs/MEMORY.md has these.
    let sizes = [
        ("connection", size_of::<Connection<tokio::net::TcpStream>>(), 320),
        ("connection over TLS", size_of::<Connection<TlsStream<tokio::net::TcpStream>>>(), 320),
        ("feed", size_of::<Feed>(), 88),
        ("following", size_of::<Following>(), 32),
        ("lane", size_of::<Lane>(), 24),
        ("nudge", size_of::<Nudge>(), 48),
    ];
    for (what, bytes, documented) in sizes {
        println!("{what}: {bytes} bytes");
        assert!(bytes <= documented, "{what}: {bytes} bytes");
    }
}
