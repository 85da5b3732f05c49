//! MQTT 3.1.1 and 5 packets, as both ends of the device link need them.
//!
//! Owns framing, strict checking and encoding. PUBLISH, its acknowledgements and pings are read and written here by
//! hand, because every delivery pays for them; the other packets go through `rmqtt-codec` behind our own checks
//! (`check`). It must never know what a topic means.

mod check;
mod cold;
mod decoder;
mod encode;
mod error;
mod hot;
mod packet;
mod publish;
mod read;
pub mod reason;

pub use decoder::Decoder;
pub use encode::encode;
pub use error::Error;
pub use packet::{
    Ack, ConnAck, Connect, Disconnect, Packet, Publish, Qos, SubAck, Subscribe, Unsubscribe,
    Version,
};
pub use publish::{PublishHead, encode_publish, publish_bytes};
