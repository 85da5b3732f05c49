//! Who may see what, said a second time: the oracle of the access tests.
//!
//! It is written from the device protocol's document, knows no code of the gateway, and keeps what
//! each registration follows as the calls that were granted changed it.

use std::collections::BTreeSet;

use super::rng::Rng;
use crate::support::Device;

/// A device as the oracle sees it.
#[derive(Clone, Debug)]
pub struct Known {
    pub device: Device,
    pub registrations: Vec<Registration>,
}

/// One app on a device.
#[derive(Clone, Debug)]
pub struct Registration {
    pub app: &'static str,
    pub regid: String,
    pub topics: BTreeSet<String>,
    pub aliases: BTreeSet<String>,
}

/// Where a message was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Own(String),
    Alias(&'static str, String),
    Topic(&'static str, String),
    All(&'static str),
}

/// What a valid filter asks for; the app where it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter<'a> {
    Down,
    Push(Option<&'a str>),
    Topic(Option<&'a str>, &'a str),
}

/// The subscriptions of one plain connection: text, place of the registration, topic.
#[derive(Clone, Debug, Default)]
pub struct Plain {
    pub subscriptions: Vec<(String, usize, Option<String>)>,
}

impl Known {
    pub fn of(device: Device, app: Option<&'static str>) -> Self {
        let registration = |app| Registration::new(app, device.regid.clone());
        Self { registrations: app.map(registration).into_iter().collect(), device }
    }

    /// Which registration a filter is about, if this device may have it.
    pub fn granted(&self, filter: &Filter<'_>) -> Option<usize> {
        let app = match filter {
            Filter::Down => return None,
            Filter::Push(app) | Filter::Topic(app, _) => app,
        };
        match app {
            Some(app) => self.registrations.iter().position(|one| one.app == *app),
            None => (self.registrations.len() == 1).then_some(0),
        }
    }

    pub fn registration(&mut self, regid: &str) -> Option<&mut Registration> {
        self.registrations.iter_mut().find(|one| one.regid == regid)
    }
}

impl Registration {
    pub fn new(app: &'static str, regid: String) -> Self {
        Self { app, regid, topics: BTreeSet::new(), aliases: BTreeSet::new() }
    }

    /// Whether a message reaches it.
    pub fn follows(&self, target: &Target) -> bool {
        match target {
            Target::Own(regid) => *regid == self.regid,
            Target::Alias(app, alias) => *app == self.app && self.aliases.contains(alias),
            Target::Topic(app, topic) => *app == self.app && self.topics.contains(topic),
            Target::All(app) => *app == self.app,
        }
    }
}

impl Plain {
    /// A SUBSCRIBE on a connection that is plain: whether each filter is granted.
    pub fn subscribe(&mut self, known: &mut Known, filters: &[String]) -> Vec<bool> {
        let mut granted = Vec::new();
        for text in filters {
            let filter = parse(text);
            let place = filter.as_ref().and_then(|filter| known.granted(filter));
            granted.push(place.is_some());
            let (Some(place), Some(filter)) = (place, filter) else { continue };
            let topic = match filter {
                Filter::Topic(_, topic) => Some(topic.to_owned()),
                Filter::Push(_) | Filter::Down => None,
            };
            known.registrations[place].topics.extend(topic.clone());
            if !self.subscriptions.iter().any(|(old, ..)| old == text) {
                self.subscriptions.push((text.clone(), place, topic));
            }
        }
        granted
    }

    /// An UNSUBSCRIBE: whether it was there. The topic is no longer followed.
    pub fn unsubscribe(&mut self, known: &mut Known, text: &str) -> bool {
        let at = self.subscriptions.iter().position(|(old, ..)| old == text);
        let Some(at) = at else { return false };
        let (_, place, topic) = self.subscriptions.remove(at);
        if let Some(topic) = topic {
            known.registrations[place].topics.remove(&topic);
        }
        true
    }

    /// Under which of its filters a message may come; none: it must not.
    pub fn delivered_as(&self, known: &Known, target: &Target) -> Vec<&str> {
        let mut texts = Vec::new();
        for (place, registration) in known.registrations.iter().enumerate() {
            if !registration.follows(target) {
                continue;
            }
            let of_topic = |topic: &Option<String>| match (topic, target) {
                (Some(topic), Target::Topic(_, name)) => topic == name,
                _ => false,
            };
            let own = self.subscriptions.iter().filter(|(_, at, _)| *at == place);
            let by_name: Vec<&str> =
                own.clone().filter(|(.., t)| of_topic(t)).map(|(text, ..)| text.as_str()).collect();
            let by_push = own.filter(|(.., topic)| topic.is_none()).map(|(text, ..)| text.as_str());
            if by_name.is_empty() {
                texts.extend(by_push);
            } else {
                texts.extend(by_name);
            }
        }
        texts
    }
}

/// What a filter says, if it is one of ours.
pub fn parse(text: &str) -> Option<Filter<'_>> {
    if text.starts_with("$share/") {
        return None;
    }
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        ["down"] => Some(Filter::Down),
        ["push"] => Some(Filter::Push(None)),
        ["push", app] => is_app(app).then_some(Filter::Push(Some(app))),
        ["topic", topic] => is_topic(topic).then_some(Filter::Topic(None, topic)),
        ["topic", app, topic] => {
            (is_app(app) && is_topic(topic)).then_some(Filter::Topic(Some(app), topic))
        }
        _ => None,
    }
}

fn is_app(text: &str) -> bool {
    let is = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (1..=32).contains(&text.len()) && text.bytes().all(is)
}

/// Whether it may be a topic's name.
pub fn is_topic(text: &str) -> bool {
    let is = |b: u8| b.is_ascii_alphanumeric() || b"-_.~%:".contains(&b);
    (1..=128).contains(&text.len()) && text.bytes().all(is)
}

/// Whether it may be an alias.
pub fn is_alias(text: &str) -> bool {
    let is = |c: char| !c.is_control() && c != '\u{FEFF}';
    (1..=128).contains(&text.len()) && text.chars().all(is)
}

/// Pieces of names, right and wrong.
pub const PIECES: &[&str] = &[
    "push", "push", "topic", "topic", "topic", "down", "up", "demo", "other", "third", "witness",
    "news", "sport", "a", "b.c", "#", "+", "$share", "$SYS", "$queue", "$CONTROL", "all", "own",
    "alias", "", " ", "..", "Push", "é", "\u{202E}", "\u{FEFF}", "%2f", "*", "ann", "bob", "~",
    "news ", "NEWS", "news#", "+news",
];

/// A text of some pieces, the given ones among them; never empty.
pub fn any_text(rng: &mut Rng, more: &[String]) -> String {
    let count = 1 + rng.below(4);
    let piece = |rng: &mut Rng| match rng.one_in(6) && !more.is_empty() {
        true => rng.pick(more).clone(),
        false => (*rng.pick(PIECES)).to_owned(),
    };
    let text = (0..count).map(|_| piece(rng)).collect::<Vec<_>>().join("/");
    if text.is_empty() { "/".to_owned() } else { text }
}

/// A filter that may well be right.
pub fn likely_filter(rng: &mut Rng, more: &[String]) -> String {
    let app = |rng: &mut Rng| *rng.pick(&["demo", "other", "third", "witness"]);
    let topic = |rng: &mut Rng| *rng.pick(&["news", "sport", "a", "b.c", "~"]);
    match rng.below(7) {
        0 => "push".to_owned(),
        1 => format!("push/{}", app(rng)),
        2 => format!("topic/{}", topic(rng)),
        3 => format!("topic/{}/{}", app(rng), topic(rng)),
        4 => format!("$share/g/topic/{}", topic(rng)),
        _ => any_text(rng, more),
    }
}
