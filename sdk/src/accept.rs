//! When a registration takes messages, as an app says it.

/// When a registration takes messages; what comes otherwise waits at the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    /// Nothing is taken until this is taken back.
    pub paused: bool,
    /// Only then.
    pub hours: Option<Hours>,
}

/// Hours of every day; over midnight if they end before they begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours {
    /// The first minute of the day, 0 to 1439.
    pub start_minute: u16,
    /// The minute before which they end, 0 to 1439; another one than `start_minute`.
    pub end_minute: u16,
    /// A name of the IANA database like `Europe/Berlin`, or an offset like `+08:00`.
    pub zone: String,
}
