//! What carries MQTT's bytes: a socket, or a layer over one.

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpStream,
};

/// A stream of MQTT's bytes.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// What came since the last call and brought no bytes of MQTT, such as pings of the layer
    /// itself. Each costs the peer what a packet does.
    fn take_extras(&mut self) -> u32 {
        0
    }
}

impl Carrier for TcpStream {}

/// In memory, for tests.
impl Carrier for DuplexStream {}
