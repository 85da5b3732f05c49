//! A connection without a stream: frames in, frames out, once.

use bytes::{Bytes, BytesMut};
use carillon_wire::mqtt::{Decoder, Packet, Publish, Qos};
use tokio::task::yield_now;

use super::Connection;
use crate::edge::{
    close::CloseReason,
    pool,
    session::{Output, frames::UP},
};

impl Connection<()> {
    /// Gives these frames to the session as if they were published, and gathers what it
    /// publishes. Nothing of that is acknowledged here: the next visit says where the device is.
    pub(in crate::edge) async fn exchange(
        mut self,
        ups: Vec<Bytes>,
    ) -> Result<Vec<Bytes>, CloseReason> {
        let mut out = pool::output();
        out.now = self.edge().now();
        let mut gathered = Gathered::default();
        let handled = self.take_frames(ups, &mut out, &mut gathered).await;
        self.record(&mut out);
        pool::give_back(out);
        self.bytes_out = gathered.bytes as u64;
        self.edge().metrics.edge.bytes_out.increment(self.bytes_out);
        self.close = Some(handled.err().unwrap_or(CloseReason::Answered));
        handled.map(|()| gathered.downs)
    }

    async fn take_frames(
        &mut self,
        ups: Vec<Bytes>,
        out: &mut Output,
        gathered: &mut Gathered,
    ) -> Result<(), CloseReason> {
        for (packet_id, payload) in (1..).zip(ups) {
            let (qos, topic) = (Qos::AtLeastOnce, UP.to_owned());
            let publish = Publish { qos, topic, packet_id, payload, ..Publish::default() };
            self.packet(Packet::Publish(publish), out);
            self.answer_calls(out).await;
            gathered.take(self.decoder(), &mut out.bytes)?;
            out.close.map_or(Ok(()), Err)?;
        }
        loop {
            self.answer_calls(out).await;
            let is_more = self.pull(out);
            gathered.take(self.decoder(), &mut out.bytes)?;
            out.close.map_or(Ok(()), Err)?;
            if !is_more || gathered.bytes >= ANSWER_BYTES_MAX {
                return Ok(());
            }
            yield_now().await;
            out.now = self.edge().now();
        }
    }

    /// What reads our own packets.
    fn decoder(&self) -> Option<Decoder> {
        let session = self.session.as_ref()?;
        Some(Decoder::client(session.terms().version, u32::MAX))
    }
}

/// What the session has published.
#[derive(Default)]
struct Gathered {
    downs: Vec<Bytes>,
    bytes: usize,
}

impl Gathered {
    fn take(
        &mut self,
        decoder: Option<Decoder>,
        packets: &mut BytesMut,
    ) -> Result<(), CloseReason> {
        let mut decoder = decoder.ok_or(CloseReason::Unavailable)?;
        while let Some(packet) =
            decoder.decode(packets).map_err(|error| CloseReason::of_error(&error))?
        {
            if let Packet::Publish(Publish { payload, .. }) = packet {
                self.bytes += payload.len();
                self.downs.push(payload);
            }
        }
        Ok(())
    }
}

/// An answer ends behind the frame that reaches this.
const ANSWER_BYTES_MAX: usize = 1 << 20;
