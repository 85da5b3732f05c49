//! How a connection ends, and what follows from it: try again, or stop.

use carillon_wire::{frame, mqtt, mqtt::reason};

use crate::applier::Failure;
use crate::heartbeat::Lost;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The app wants it.
    #[error("shut down")]
    Shutdown,
    /// The app says that the device is on another network.
    #[error("the network changed")]
    NetworkChanged,
    /// The stream could not be opened, or it broke.
    #[error("network: {0}")]
    Io(#[from] std::io::Error),
    /// The gateway closed the stream without a word.
    #[error("closed by the gateway")]
    Closed,
    /// Something did not come in time.
    #[error("no answer in time")]
    NoAnswer,
    /// CONNACK with this reason.
    #[error("connection refused with reason {0:#04x}")]
    Refused(u8),
    /// DISCONNECT with this reason.
    #[error("disconnected with reason {0:#04x}")]
    Disconnected(u8),
    /// Bytes that are not MQTT.
    #[error("not MQTT: {0}")]
    Wire(mqtt::Error),
    /// A payload that is not a frame.
    #[error("not a frame: {0}")]
    Frame(frame::Error),
    /// The gateway broke a rule; the text names it.
    #[error("the gateway broke the protocol: {0}")]
    Fault(&'static str),
    /// The applier cannot go on.
    #[error(transparent)]
    Applier(#[from] Failure),
    /// The applier is gone: the app's handler has panicked.
    #[error("the app's handler has panicked")]
    HandlerPanicked,
}

/// Why a device has stopped for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// [`Device::shutdown`](crate::Device::shutdown), or nobody holds the device any more.
    #[error("shut down")]
    Shutdown,
    /// Another connection with the same device id took over.
    #[error("another connection of this device took over")]
    TakenOver,
    /// The gateway does not want this device, with this MQTT reason code: 0x86 and 0x98 for its credentials.
    #[error("refused by the gateway with reason {reason:#04x}")]
    Refused {
        /// The MQTT 5 reason code.
        reason: u8,
    },
    /// The app's handler has panicked.
    #[error("the app's handler has panicked")]
    HandlerPanicked,
}

impl End {
    /// `None`: try again.
    pub fn stop(&self) -> Option<StopReason> {
        match self {
            Self::Shutdown => Some(StopReason::Shutdown),
            Self::HandlerPanicked => Some(StopReason::HandlerPanicked),
            Self::Disconnected(reason::SESSION_TAKEN_OVER) => Some(StopReason::TakenOver),
            Self::Refused(code) | Self::Disconnected(code) if is_final(*code) => {
                Some(StopReason::Refused { reason: *code })
            }
            Self::NetworkChanged
            | Self::Io(_)
            | Self::Closed
            | Self::NoAnswer
            | Self::Refused(_)
            | Self::Disconnected(_)
            | Self::Wire(_)
            | Self::Frame(_)
            | Self::Fault(_)
            | Self::Applier(_) => None,
        }
    }

    /// What to say to the gateway in DISCONNECT; `None` if it is gone or has said its own.
    pub fn goodbye(&self) -> Option<u8> {
        match self {
            Self::Shutdown => Some(reason::NORMAL),
            Self::Wire(error) => Some(error.reason()),
            Self::Frame(_) | Self::Fault(_) | Self::Applier(Failure::Fault(_)) => {
                Some(reason::PROTOCOL_ERROR)
            }
            Self::Applier(Failure::Store(_)) | Self::HandlerPanicked => Some(reason::UNSPECIFIED),
            Self::NetworkChanged
            | Self::Io(_)
            | Self::Closed
            | Self::NoAnswer
            | Self::Refused(_)
            | Self::Disconnected(_) => None,
        }
    }

    /// How the connection was lost, if the gateway did not end it with a word, nor we ourselves.
    pub fn lost(&self) -> Option<Lost> {
        match self {
            Self::NoAnswer => Some(Lost::Silence),
            Self::Io(_) | Self::Closed => Some(Lost::Broken),
            Self::Shutdown
            | Self::NetworkChanged
            | Self::Refused(_)
            | Self::Disconnected(_)
            | Self::Wire(_)
            | Self::Frame(_)
            | Self::Fault(_)
            | Self::Applier(_)
            | Self::HandlerPanicked => None,
        }
    }
}

/// Reasons that repeating will not change.
const fn is_final(code: u8) -> bool {
    matches!(
        code,
        reason::UNSUPPORTED_VERSION
            | reason::CLIENT_ID_INVALID
            | reason::BAD_CREDENTIALS
            | reason::NOT_AUTHORIZED
            | reason::BANNED
            | reason::BAD_AUTHENTICATION_METHOD
            | reason::ADMINISTRATIVE
    )
}
