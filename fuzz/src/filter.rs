//! Topic filters against an oracle that takes them apart another way.
//!
//! Input: the text.

use carillon::edge::session::filter::{self, Filter};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match filter::parse(text) {
        Err(code) => assert!(REFUSALS.contains(&code), "{text:?}: {code:#04x}"),
        Ok(filter) => assert_eq!(said(&filter), text, "it means what it says"),
    }
    if text.contains(['+', '#']) || text.starts_with('$') || text.contains('\0') {
        assert!(filter::parse(text).is_err(), "{text:?} must not be taken");
    }
}

fn said(filter: &Filter) -> String {
    match filter {
        Filter::Down => "down".to_owned(),
        Filter::Push(None) => "push".to_owned(),
        Filter::Push(Some(app)) => format!("push/{}", app.as_str()),
        Filter::Topic(None, topic) => format!("topic/{}", topic.as_str()),
        Filter::Topic(Some(app), topic) => format!("topic/{}/{}", app.as_str(), topic.as_str()),
    }
}

const REFUSALS: [u8; 3] = [0x8F, 0x9E, 0xA2];
