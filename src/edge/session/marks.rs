//! Two facts of a lane in one byte: every connection has a lane for each queue that it follows.

/// Whether the stored pointer is elsewhere, and how many frames of changes are to go until
/// digests are due.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks(u8);

impl Marks {
    /// Digests are due at once.
    pub fn new(is_unstored: bool) -> Self {
        Self(if is_unstored { UNSTORED } else { 0 })
    }

    /// Whether the stored pointer was elsewhere until now: then the first acknowledgement is
    /// news in any case.
    pub fn take_unstored(&mut self) -> bool {
        let was_unstored = self.0 & UNSTORED != 0;
        self.0 &= !UNSTORED;
        was_unstored
    }

    /// The next acknowledgement is news.
    pub fn set_unstored(&mut self) {
        self.0 |= UNSTORED;
    }

    /// So many frames of changes until digests are due. Of aliases.
    pub fn digests_in(self) -> u8 {
        self.0 & !UNSTORED
    }

    /// At most 127.
    pub fn set_digests_in(&mut self, frames: u8) {
        assert!(frames < UNSTORED, "{frames} does not fit");
        self.0 = self.0 & UNSTORED | frames;
    }
}

const UNSTORED: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_fact_touches_the_other() {
        let mut marks = Marks::new(true);
        marks.set_digests_in(127);
        assert_eq!((marks.digests_in(), marks.take_unstored()), (127, true));
        assert_eq!((marks.digests_in(), marks.take_unstored()), (127, false));
        marks.set_digests_in(0);
        assert_eq!((marks.digests_in(), marks.take_unstored()), (0, false));
    }
}
