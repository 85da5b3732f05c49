//! The order of things, from a trace of the node's system calls: an answer and a push
//! must come after a sync that covers what they promise.
//!
//! A kill keeps the page cache, so only the calls themselves show whether anything was
//! durable. [`read`] understands what strace writes, [`judge`] holds it against the rule.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
};

use super::{Event, Ledger};
use crate::support::{DEADLINE, poll_until, tools};

/// A system call of the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call {
    /// The lines of the trace where it began and ended.
    pub begun: usize,
    pub ended: usize,
    /// When it began, in seconds since 1970.
    pub at_s: f64,
    pub name: String,
    /// What its first descriptor is: a path, or the two ends of a connection.
    pub file: String,
    /// All bytes among its arguments.
    pub bytes: Vec<u8>,
    pub result: i64,
}

/// What the ledger knows of the messages in a trace.
pub struct Known {
    /// The first message that was attempted during the trace.
    pub first: u64,
    /// Message ids of 2xx answers.
    pub ids: HashMap<String, u64>,
    /// Messages to several queues: their record is durable before their entries are.
    pub several: HashSet<u64>,
}

/// What a trace amounts to.
#[derive(Debug, Default)]
pub struct Order {
    /// Answers and pushes that were found.
    pub answers: usize,
    pub pushes: usize,
    /// Answers that no client has read, so that it is not known to what.
    pub unread: usize,
    /// Successful syncs of the journal.
    pub syncs: usize,
    /// What went out before it was durable.
    pub violations: Vec<String>,
}

/// The command under which a node is traced. It becomes the node.
pub fn command(trace: &Path, inject: &str) -> String {
    let calls = "write,writev,pwrite64,sendto,sendmsg,fdatasync,fsync";
    format!(
        "'{}' -D -f --seccomp-bpf -ttt -yy -s 1048576 -o '{}' -e trace={calls} {inject}",
        tools::program("strace").display(),
        trace.display(),
    )
}

/// What strace wrote, once it is whole.
pub async fn whole(trace: &Path) -> String {
    let text = poll_until(DEADLINE, async || {
        let text = fs::read_to_string(trace).ok()?;
        text.lines().last()?.contains("+++").then_some(text)
    });
    text.await.expect("a whole trace")
}

/// Reads what strace wrote.
pub fn read(text: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut unfinished: HashMap<&str, (usize, f64, String)> = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((at, rest)) = rest.trim_start().split_once(' ') else { continue };
        let at_s: f64 = at.parse().unwrap_or_else(|_| panic!("no time in `{line}`"));
        if let Some(begin) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (number, at_s, begin.to_owned()));
        } else if let Some(end) = rest.strip_prefix("<... ") {
            let end = end.split_once(" resumed>").map_or("", |(_, end)| end);
            if let Some((begun, at_s, begin)) = unfinished.remove(thread) {
                calls.extend(call((begun, number), at_s, &format!("{begin}{end}")));
            }
        } else {
            calls.extend(call((number, number), at_s, rest));
        }
    }
    // Calls that the end of the process cut off may have had their effect.
    for (begun, at_s, begin) in unfinished.into_values() {
        calls.extend(call((begun, usize::MAX), at_s, &format!("{begin}) = -1")));
    }
    calls.sort_by_key(|call| call.begun);
    calls
}

/// `name(3</a/file>, "bytes", 5) = 5`; none for the end of a thread and for signals.
fn call((begun, ended): (usize, usize), at_s: f64, text: &str) -> Option<Call> {
    let (name, arguments) = text.split_once('(')?;
    if name.contains(['+', '-', ' ']) {
        return None;
    }
    let (_, result) = arguments.rsplit_once(" = ")?;
    let result = result.split_whitespace().next()?.parse().unwrap_or(-1);
    let file = arguments.split_once('<').map_or("", |(_, file)| file);
    // Ends of a connection are written `TCP:[a->b]`.
    let file = file.split(['"', ')']).next().unwrap_or_default().trim_end_matches([',', ' ']);
    let file = file.rsplit_once('>').map_or(file, |(file, _)| file).to_owned();
    let bytes = strings(arguments);
    Some(Call { begun, ended, at_s, name: name.to_owned(), file, bytes, result })
}

/// All quoted strings of a line, decoded, one after the other.
fn strings(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some(open) = rest.iter().position(|byte| *byte == b'"') {
        rest = &rest[open + 1..];
        while let Some((first, tail)) = rest.split_first() {
            rest = tail;
            match first {
                b'"' => break,
                b'\\' => rest = escape(rest, &mut bytes),
                _ => bytes.push(*first),
            }
        }
        assert!(!rest.starts_with(b"..."), "the trace is cut short: {text:.80}");
    }
    bytes
}

/// One escape of C, behind its backslash; returns what follows it.
fn escape<'a>(text: &'a [u8], bytes: &mut Vec<u8>) -> &'a [u8] {
    let digits = text.iter().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
    if digits > 0 {
        let value = text[..digits].iter().fold(0_u32, |value, d| value * 8 + u32::from(d - b'0'));
        bytes.push(value as u8);
        return &text[digits..];
    }
    bytes.push(match text[0] {
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'v' => 0x0b,
        b'f' => 0x0c,
        other => other,
    });
    &text[1..]
}

/// Holds a trace against the rule. `mqtt` and `admin` are the node's ends of its
/// connections, as `address:port`.
pub fn judge(calls: &[Call], known: &Known, mqtt: &str, admin: &str) -> Order {
    let durable = durable_places(calls);
    // What the node found when it started is durable once it has synced its journal.
    let older = vec![syncs(calls).next().map(|call| call.ended); 2];
    let places_of = |message: u64| match message < known.first {
        true => Some(&older),
        false => durable.get(&message),
    };
    let mut order = Order { syncs: syncs(calls).count(), ..Order::default() };
    for call in calls.iter().filter(|call| call.file.starts_with("TCP:[")) {
        let is_from = |door: &str| call.file.starts_with(&format!("TCP:[{door}->"));
        if is_from(admin) && call.bytes.starts_with(b"HTTP/1.1 202") {
            order.answers += 1;
            match id_in(&call.bytes).and_then(|id| known.ids.get(&id).copied()) {
                Some(message) => {
                    order.hold(call, places_of(message), 1, || format!("answer to {message}"));
                }
                None => order.unread += 1,
            }
        }
        if is_from(mqtt) {
            for message in messages_in(&call.bytes) {
                order.pushes += 1;
                let places = if known.several.contains(&message) { 2 } else { 1 };
                order.hold(call, places_of(message), places, || format!("push of {message}"));
            }
        }
    }
    order
}

impl Order {
    /// Something went out that needs so many places of its message to be durable.
    fn hold(
        &mut self,
        call: &Call,
        durable: Option<&Vec<Option<usize>>>,
        places: usize,
        what: impl FnOnce() -> String,
    ) {
        let synced = durable.and_then(|durable| *durable.get(places - 1)?);
        if synced.is_none_or(|synced| synced > call.begun) {
            let line = call.begun + 1;
            self.violations.push(format!("{} in line {line}, synced: {synced:?}", what()));
        }
    }
}

/// For each message where it is in the journals, in order, and the line of the sync
/// that made this place durable.
fn durable_places(calls: &[Call]) -> HashMap<u64, Vec<Option<usize>>> {
    // What was written to each, and where each write ends in that and in the trace.
    type Written = (Vec<u8>, Vec<(usize, usize)>);
    let mut journals: HashMap<&str, Written> = HashMap::new();
    for call in calls.iter().filter(|call| is_journal(call) && call.name.contains("write")) {
        let (stream, ends) = journals.entry(&call.file).or_default();
        stream.extend(&call.bytes[..call.bytes.len().min(call.result.max(0) as usize)]);
        ends.push((stream.len(), call.ended));
    }
    let mut places: Vec<(usize, u64, Option<usize>)> = Vec::new();
    for (file, (stream, ends)) in &journals {
        for (at, message) in numbers_in(stream) {
            let written = ends[ends.partition_point(|(end, _)| *end < at)].1;
            let covers = |call: &&Call| call.file == **file && call.begun > written;
            places.push((written, message, syncs(calls).find(covers).map(|call| call.ended)));
        }
    }
    places.sort_unstable();
    let mut durable: HashMap<u64, Vec<Option<usize>>> = HashMap::new();
    for (_, message, synced) in places {
        durable.entry(message).or_default().push(synced);
    }
    durable
}

/// The syncs that count: successful ones, before the first that failed.
fn syncs(calls: &[Call]) -> impl Iterator<Item = &Call> {
    let is_sync = |call: &&Call| is_journal(call) && call.name.ends_with("sync");
    calls.iter().filter(is_sync).take_while(|call| call.result == 0)
}

fn is_journal(call: &Call) -> bool {
    call.file.ends_with(".jnl")
}

fn messages_in(bytes: &[u8]) -> impl Iterator<Item = u64> {
    numbers_in(bytes).into_iter().map(|(_, message)| message)
}

/// The numbers of all payloads in some bytes, `{"m":17,…`, each with where it ends.
fn numbers_in(bytes: &[u8]) -> Vec<(usize, u64)> {
    const BEGIN: &[u8] = b"{\"m\":";
    let begins = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(BEGIN));
    let number = |at: usize| {
        let digits = &bytes[at + BEGIN.len()..];
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        let number = std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?;
        (digits[end] == b',').then_some((at + BEGIN.len() + end, number))
    };
    begins.filter_map(number).collect()
}

fn id_in(answer: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(answer);
    let (_, id) = text.split_once("\"id\":\"")?;
    Some(id.split('"').next()?.to_owned())
}

impl Known {
    /// From what senders noted; the trace began before the message `first`.
    pub fn of(ledger: &Ledger, first: u64) -> Self {
        let (mut ids, mut several) = (HashMap::new(), HashSet::new());
        for noted in ledger.history().iter() {
            match &noted.event {
                Event::Accepted { message, id } => drop(ids.insert(id.clone(), *message)),
                Event::Attempted { message, to } if to.len() > 1 => drop(several.insert(*message)),
                _ => {}
            }
        }
        Self { first, ids, several }
    }
}
