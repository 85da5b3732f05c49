//! Keeping both: the newest of what nobody replaced has the item's key, each other one a copy.

use carillon_wire::digest::position_hash;

use super::{Decision, Outcome, Present, Put, after, put};
use crate::queue::{
    collection::{
        change::{KEY_BYTES_MAX, Kind, Origin, Stamp, Value, Wish},
        head::{ItemHead, Sibling},
    },
    position::Seq,
};

/// Copies that an item remembers; older ones become items like any other.
const SIBLINGS_MAX: usize = 32;

/// Decides a change. A delete stands only for what its maker knew.
pub(super) fn decide(key: &str, present: &Present, wish: &Wish, next: Seq) -> Decision {
    let Some(before) = &present.head else { return Decision::applied(put(key, None, wish, next)) };
    let mut work = Work { puts: Vec::new(), siblings: before.siblings.clone(), next };
    work.end_replaced(present, wish);
    let was_seen = before.was_seen_by(wish);
    let is_first = before.is_deleted || wish.stamp > before.stamp;
    let value = present.value.clone().unwrap_or_default();
    let (outcome, own) = match &wish.value {
        None if was_seen => (Outcome::Applied, Some(put(key, Some(before), wish, work.next))),
        None if work.puts.is_empty() => return Decision::lost(),
        None => (Outcome::Applied, None),
        Some(_) if was_seen => (Outcome::Applied, Some(put(key, Some(before), wish, work.next))),
        Some(_) if is_first => {
            if !before.is_deleted {
                work.copy(key, before.stamp, value, Some(before.seq));
            }
            (Outcome::Applied, Some(put(key, Some(before), wish, work.next)))
        }
        Some(lost) => {
            work.copy(key, wish.stamp, lost.clone(), None);
            (Outcome::Copied, None)
        }
    };
    let Work { mut puts, mut siblings, .. } = work;
    siblings.drain(..siblings.len().saturating_sub(SIBLINGS_MAX));
    let Some(mut own) = own else {
        let head = ItemHead { siblings, ..before.clone() };
        return Decision { outcome, puts, head: Some(head) };
    };
    own.head.siblings = siblings;
    puts.push(own);
    Decision { outcome, puts, head: None }
}

/// The entries so far, and the copies that the item knows after them.
struct Work {
    puts: Vec<Put>,
    siblings: Vec<Sibling>,
    next: Seq,
}

impl Work {
    fn push(&mut self, put: Put) {
        self.puts.push(put);
        self.next = self.next.next();
    }

    /// Takes away the copies that the change stands for.
    fn end_replaced(&mut self, present: &Present, wish: &Wish) {
        for (key, head) in &present.copies {
            let is_replaced = |s: &Sibling| s.key == *key && s.is_replaced_by(wish);
            let Some(at) = self.siblings.iter().position(is_replaced) else { continue };
            self.take(at, head);
        }
    }

    /// Forgets a copy, and takes it away unless somebody changed it meanwhile.
    fn take(&mut self, at: usize, head: &ItemHead) {
        let sibling = self.siblings.remove(at);
        if head.seq == sibling.copied && !head.is_deleted {
            self.push(end(&sibling.key, head, self.next));
        }
    }

    fn copy(&mut self, key: &str, stamp: Stamp, value: Value, original: Option<Seq>) {
        let key = copy_key(key, stamp);
        let head = after(None, stamp, false, self.next);
        let sibling = Sibling { key: key.clone(), stamp, original, copied: self.next };
        self.siblings.push(sibling);
        self.push(Put { key, kind: Kind::New, value, head });
    }
}

/// A change that takes a copy away again; whoever changed the copy meanwhile keeps it.
fn end(key: &str, head: &ItemHead, seq: Seq) -> Put {
    let head = after(Some(head), Stamp::default(), true, seq);
    Put { key: key.into(), kind: Kind::Delete, value: Value::default(), head }
}

/// `<key>~<origin>-<cseq>`, at most [`KEY_BYTES_MAX`] long. The origin is a hash: a regID is nothing for the other devices.
fn copy_key(key: &str, stamp: Stamp) -> Box<str> {
    let name = match stamp.origin {
        Origin::Server => format!("server-{:x}", stamp.clock.0),
        Origin::Device { regid, cseq } => {
            let origin = position_hash(&regid.to_string(), 0, "", 0, 0);
            format!("{origin:016x}-{cseq}")
        }
    };
    // The name of the change alone tells copies apart, so that a long key may lose its end.
    let room = KEY_BYTES_MAX - 1 - name.len();
    format!("{}~{name}", &key[..key.floor_char_boundary(room)]).into()
}
