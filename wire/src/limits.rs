//! Bounds of the device link. They are part of the protocol: docs/PROTOCOL.md states them, and both ends enforce them.

/// A frame: the payload of one PUBLISH on `up` or `down`, in bytes.
pub const FRAME_BYTES_MAX: usize = 128 * 1024;

/// Frames of one request over HTTPS.
pub const FRAMES_MAX: usize = 64;

/// A whole PUBLISH that carries a frame: fixed header, topic, packet id and properties included, in bytes.
pub const FRAME_PACKET_BYTES_MAX: u32 = 132 * 1024;

/// One string or binary field inside a frame, in bytes. A message's payload is such a field.
pub const STRING_BYTES_MAX: usize = 64 * 1024;

/// Items of one list inside a frame.
pub const CONTAINER_ITEMS_MAX: usize = 4096;

/// Structs inside structs, in one frame.
pub const DEPTH_MAX: usize = 16;

/// User properties of one MQTT packet, counted together with those of a Will.
pub const USER_PROPERTIES_MAX: usize = 32;

/// Names and values of all user properties of one MQTT packet, in bytes.
pub const USER_PROPERTIES_BYTES_MAX: usize = 4 * 1024;

/// Topic filters of one SUBSCRIBE or UNSUBSCRIBE.
pub const FILTERS_MAX: usize = 1024;

/// What MQTT's variable length can say: the largest remaining length, in bytes.
pub const REMAINING_BYTES_MAX: u32 = 268_435_455;

/// The tag of a delta, in bytes.
pub const TAG_BYTES: usize = 8;
