//! One connection of the generator: a socket and what is half read or half written, which is nothing while it idles.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};

use crate::credentials::Device;
use crate::mqtt311::{self, Connect, Incoming};

/// See the module.
#[derive(Debug)]
pub struct Link {
    stream: TcpStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

impl Link {
    /// Connects, authenticates and subscribes `push`. Done when SUBACK has come.
    #[expect(clippy::disallowed_methods, reason = "the generator's only door to sockets")]
    pub async fn open(
        target: SocketAddr,
        from: SocketAddr,
        device: &Device,
        keep_alive_s: u16,
    ) -> anyhow::Result<Self> {
        let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind(from).context("cannot take a local port")?;
        let stream = socket.connect(target).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let mut link = Self { stream, inbox: Vec::new(), outbox: Vec::new() };
        let connect = Connect {
            client_id: &device.device_id,
            user: &device.device_id,
            password: &device.secret,
            clean_session: true,
            keep_alive_s,
        };
        mqtt311::connect(connect, &mut link.outbox);
        mqtt311::subscribe("push", &mut link.outbox);
        link.write()?;
        let mut is_subscribed = false;
        while !is_subscribed {
            link.ready().await?;
            link.turn(&mut |incoming| match incoming {
                Incoming::ConnAck(0) => Ok(()),
                Incoming::ConnAck(code) => bail!("CONNECT refused with {code}"),
                Incoming::SubAck(0 | 1) => {
                    is_subscribed = true;
                    Ok(())
                }
                Incoming::SubAck(code) => bail!("SUBSCRIBE refused with {code:#x}"),
                Incoming::Publish { .. } => bail!("a message before its time"),
                Incoming::PingResp => Ok(()),
            })?;
        }
        Ok(link)
    }

    /// Waits until [`Link::turn`] has something to do. May be dropped.
    pub async fn ready(&self) -> io::Result<()> {
        let writable = if self.outbox.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        self.stream.ready(writable).await.map(drop)
    }

    /// Reads and writes without waiting; every QoS 1 message is acknowledged after `on` has seen it.
    pub fn turn(
        &mut self,
        on: &mut impl FnMut(Incoming<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut room = [0; READ_BYTES];
        loop {
            match self.stream.try_read(&mut room) {
                Ok(0) => bail!("the gateway closed the connection"),
                Ok(read) => {
                    self.take(&room[..read], on)?;
                    if read < room.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("cannot read"),
            }
        }
        self.write().context("cannot write")
    }

    /// Queues PINGREQ and writes what can be written.
    pub fn ping(&mut self) -> anyhow::Result<()> {
        self.outbox.extend_from_slice(&mqtt311::PINGREQ);
        self.write().context("cannot write")
    }

    /// Says goodbye, if the socket takes it at once.
    pub fn disconnect(mut self) {
        self.outbox.extend_from_slice(&mqtt311::DISCONNECT);
        // The connection ends either way.
        let _ = self.write();
    }

    fn take(
        &mut self,
        read: &[u8],
        on: &mut impl FnMut(Incoming<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let was_empty = self.inbox.is_empty();
        if !was_empty {
            self.inbox.extend_from_slice(read);
        }
        let bytes = if was_empty { read } else { &self.inbox };
        let mut at = 0;
        while let Some((incoming, length)) = mqtt311::parse(&bytes[at..])? {
            at += length;
            let packet_id = match incoming {
                Incoming::Publish { packet_id, .. } => packet_id,
                Incoming::ConnAck(_) | Incoming::SubAck(_) | Incoming::PingResp => 0,
            };
            on(incoming)?;
            if packet_id != 0 {
                mqtt311::puback(packet_id, &mut self.outbox);
            }
        }
        let left = bytes[at..].to_vec();
        ensure!(left.len() <= PACKET_BYTES_MAX, "a packet that is too long");
        self.inbox = left;
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            match self.stream.try_write(&self.outbox) {
                Ok(written) => drop(self.outbox.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // An idle connection keeps no room.
        self.outbox = Vec::new();
        Ok(())
    }
}

const READ_BYTES: usize = 8 << 10;
const PACKET_BYTES_MAX: usize = 1 << 20;
