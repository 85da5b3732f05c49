//! Names within collections: the rules that the gateway enforces, and that a device keeps to before it is online.

/// What a name may be.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// It has at least one byte, and at most so many.
    pub bytes_max: usize,
    /// Each of its characters.
    pub allowed: fn(char) -> bool,
    /// The rule for humans.
    pub says: &'static str,
}

/// A collection of an app.
pub const COLLECTION: Rule = Rule {
    bytes_max: 64,
    allowed: |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'),
    says: "1 to 64 characters of a-z, A-Z, 0-9, - _ and .",
};

/// An item of a collection.
pub const KEY: Rule = Rule {
    bytes_max: 256,
    allowed: |c| !c.is_control() && c != '\u{feff}',
    says: "1 to 256 bytes of UTF-8 without control characters",
};

impl Rule {
    /// Whether this may be a name.
    pub fn allows(&self, name: &str) -> bool {
        (1..=self.bytes_max).contains(&name.len()) && name.chars().all(self.allowed)
    }
}
