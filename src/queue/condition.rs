//! Conditions over topics: `'a' in topics && ('b' in topics || !('c' in topics))`.
//!
//! A text is parsed once into a truth table of its topics, which a message carries. Whoever
//! delivers only looks up the row of what a registration follows. Pure.

use serde::{Deserialize, Serialize};

use crate::base::ids::Topic;

/// Different topics of one condition.
pub const TOPICS_MAX: usize = 5;
/// Bytes of a condition's text.
pub const BYTES_MAX: usize = 1_024;
/// Parentheses and negations inside each other.
pub const DEPTH_MAX: usize = 32;

/// A condition as a message carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// In the order of their first mention, each once.
    topics: Vec<Topic>,
    /// Bit n: topic n is somewhere under no negation, or under an even number of them.
    unnegated: u8,
    /// Bit n: it holds for who follows the topics that are the bits of n, and no others.
    truth: u32,
}

/// Why a text is no condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {rule}")]
pub struct Error {
    /// Where, from 1.
    pub at: usize,
    /// What should be there.
    pub rule: String,
}

impl Condition {
    /// Reads a text. `!` binds more tightly than `&&`, and `&&` more tightly than `||`.
    ///
    /// # Errors
    /// [`Error`]: not a condition, or over one of the bounds.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > BYTES_MAX {
            return Err(Error { at: BYTES_MAX, rule: format!("at most {BYTES_MAX} bytes") });
        }
        let chars = text.chars().collect();
        let mut parser = Parser { chars, at: 0, depth: 0, topics: Vec::new(), unnegated: 0 };
        let truth = parser.either(Polarity::Plain)?;
        parser.skip_blanks();
        if parser.at < parser.chars.len() {
            return Err(parser.error("`&&`, `||` or the end"));
        }
        // Rows of topics that are not there repeat those that are.
        Ok(Self { topics: parser.topics, unnegated: parser.unnegated, truth })
    }

    /// Whether it holds for who follows the topics that `follows` says.
    pub fn holds(&self, follows: impl Fn(&Topic) -> bool) -> bool {
        let row = self.topics.iter().enumerate();
        let row = row.fold(0, |row, (at, topic)| row | u32::from(follows(topic)) << at);
        self.truth >> row & 1 == 1
    }

    /// The topics under no negation, in the order of their first mention.
    pub fn unnegated(&self) -> impl Iterator<Item = &Topic> {
        let is_unnegated = |(at, _): &(usize, &Topic)| self.unnegated >> at & 1 == 1;
        self.topics.iter().enumerate().filter(is_unnegated).map(|(_, topic)| topic)
    }

    /// Whether it can hold for who follows none of [`Condition::unnegated`].
    pub fn can_hold_without(&self) -> bool {
        let without = |row: &u32| row & u32::from(self.unnegated) == 0;
        (0..32_u32).filter(without).any(|row| self.truth >> row & 1 == 1)
    }

    /// Roughly its bytes in memory and on disk.
    pub fn bytes(&self) -> usize {
        self.topics.iter().map(|topic| topic.as_str().len()).sum()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Polarity {
    Plain,
    Negated,
}

impl Polarity {
    fn turned(self) -> Self {
        match self {
            Self::Plain => Self::Negated,
            Self::Negated => Self::Plain,
        }
    }
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: usize,
    topics: Vec<Topic>,
    unnegated: u8,
}

/// Each rule gives the truth table of what it read.
impl Parser {
    fn either(&mut self, polarity: Polarity) -> Result<u32, Error> {
        let mut truth = self.both(polarity)?;
        while self.takes("||") {
            truth |= self.both(polarity)?;
        }
        Ok(truth)
    }

    fn both(&mut self, polarity: Polarity) -> Result<u32, Error> {
        let mut truth = self.one(polarity)?;
        while self.takes("&&") {
            truth &= self.one(polarity)?;
        }
        Ok(truth)
    }

    fn one(&mut self, polarity: Polarity) -> Result<u32, Error> {
        self.skip_blanks();
        match self.chars.get(self.at) {
            Some('!') => {
                self.deeper()?;
                let truth = !self.one(polarity.turned())?;
                self.depth -= 1;
                Ok(truth)
            }
            Some('(') => {
                self.deeper()?;
                let truth = self.either(polarity)?;
                if !self.takes(")") {
                    return Err(self.error("`)`, `&&` or `||`"));
                }
                self.depth -= 1;
                Ok(truth)
            }
            Some(quote @ ('\'' | '"')) => {
                let quote = *quote;
                let truth = self.topic(quote, polarity)?;
                if !(self.takes_word("in") && self.takes_word("topics")) {
                    return Err(self.error("`in topics`"));
                }
                Ok(truth)
            }
            Some(_) | None => Err(self.error("a topic in quotes, `!` or `(`")),
        }
    }

    fn topic(&mut self, quote: char, polarity: Polarity) -> Result<u32, Error> {
        let begin = self.at;
        let name = &self.chars[begin + 1..];
        let Some(length) = name.iter().position(|c| *c == quote) else {
            return Err(self.error("a topic with a quote at its end"));
        };
        let name: String = name[..length].iter().collect();
        let topic: Topic = name.parse().map_err(|error: crate::base::ids::ParseError| Error {
            at: begin + 1,
            rule: format!("a topic has {}", error.rule),
        })?;
        self.at = begin + length + 2;
        let place = match self.topics.iter().position(|known| *known == topic) {
            Some(place) => place,
            None if self.topics.len() == TOPICS_MAX => {
                let rule = format!("at most {TOPICS_MAX} different topics");
                return Err(Error { at: begin + 1, rule });
            }
            None => {
                self.topics.push(topic);
                self.topics.len() - 1
            }
        };
        if polarity == Polarity::Plain {
            self.unnegated |= 1 << place;
        }
        Ok((0..32).filter(|row| row >> place & 1 == 1).fold(0, |truth, row| truth | 1 << row))
    }

    fn deeper(&mut self) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error("a condition that is less deep"));
        }
        self.at += 1;
        Ok(())
    }

    /// Takes this sign if it comes next.
    fn takes(&mut self, sign: &str) -> bool {
        self.skip_blanks();
        let comes = self.chars[self.at..].iter().copied().take(sign.len()).eq(sign.chars());
        if comes {
            self.at += sign.len();
        }
        comes
    }

    /// The same for a word, which must end there.
    fn takes_word(&mut self, word: &str) -> bool {
        let begin = self.at;
        let ends = self.takes(word)
            && self.chars.get(self.at).is_none_or(|c| !c.is_alphanumeric() && *c != '_');
        if !ends {
            self.at = begin;
            self.skip_blanks();
        }
        ends
    }

    fn skip_blanks(&mut self) {
        while self.chars.get(self.at).is_some_and(|c| c.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn error(&self, wanted: &str) -> Error {
        Error { at: self.at + 1, rule: format!("expected {wanted}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(text: &str, follows: &str) -> bool {
        let condition = Condition::parse(text).unwrap();
        condition.holds(|topic| follows.contains(topic.as_str()))
    }

    #[test]
    fn signs_bind_as_they_should() {
        let text = "'a' in topics || 'b' in topics && !'c' in topics";
        for (follows, wanted) in
            [("", false), ("a", true), ("b", true), ("bc", false), ("abc", true), ("c", false)]
        {
            assert_eq!(holds(text, follows), wanted, "{follows}");
        }
        let text = "('a' in topics||\"b\"in topics)&&!('c' in topics)";
        assert!(holds(text, "b") && holds(text, "a") && !holds(text, "ac") && !holds(text, ""));
        assert!(holds("!!('a' in topics)", "a"));
    }

    fn queues(text: &str) -> (String, bool) {
        let condition = Condition::parse(text).unwrap();
        (condition.unnegated().map(Topic::as_str).collect(), condition.can_hold_without())
    }

    #[test]
    fn it_knows_who_can_bring_it() {
        let a_b = "'b' in topics && ('a' in topics || !('c' in topics))";
        assert_eq!(queues(a_b), ("ba".into(), false));
        assert_eq!(queues("!('a' in topics)"), (String::new(), true));
        assert_eq!(queues("'a' in topics || !('b' in topics)"), ("a".into(), true));
        assert_eq!(queues("!(!('a' in topics) || 'b' in topics)"), ("a".into(), false));
        assert_eq!(queues("'a' in topics && !('a' in topics)"), ("a".into(), false));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let deep = format!("{}'a' in topics", "!".repeat(DEPTH_MAX + 1));
        let six = ["a", "b", "c", "d", "e", "f"].map(|t| format!("'{t}' in topics")).join("||");
        for (text, at, words) in [
            ("", 1, "a topic in quotes"),
            ("a in topics", 1, "a topic in quotes"),
            ("'a'", 4, "`in topics`"),
            ("'a' in topic", 8, "`in topics`"),
            ("'a' in topicsx", 8, "`in topics`"),
            ("'a in topics", 1, "quote at its end"),
            ("'a' in topics &", 15, "`&&`, `||` or the end"),
            ("'a' in topics && ", 18, "a topic in quotes"),
            ("('a' in topics", 15, "`)`"),
            ("'ä' in topics", 1, "a topic has"),
            ("'a' in topics 'b' in topics", 15, "or the end"),
            (&deep, DEPTH_MAX + 1, "less deep"),
            (&six, 76, "at most 5"),
            (&" ".repeat(BYTES_MAX + 1), BYTES_MAX, "at most 1024 bytes"),
        ] {
            let error = Condition::parse(text).unwrap_err();
            assert_eq!(error.at, at, "{text}: {error}");
            assert!(error.rule.contains(words), "{text}: {error}");
        }
    }
}
