//! What the simulation knows for certain, kept outside the node.

use std::collections::{HashMap, HashSet};

use carillon::base::ids::{MessageId, QueueName, RegId};

/// One delivery of a message to the app code of a registration.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub regid: RegId,
    /// The queue's name on the wire: `own`, `alias/x`, `topic/x`, `all`.
    pub queue: String,
    pub epoch: u32,
    pub seq: u64,
    /// The number in the payload.
    pub number: u64,
}

/// The ledger of senders, devices and app servers.
#[derive(Default)]
pub struct World {
    /// Which registrations follow a queue for certain: bound before, not yet unbinding.
    certain: HashMap<QueueName, HashSet<RegId>>,
    /// Which registrations ever began to follow a queue.
    possible: HashMap<QueueName, HashSet<RegId>>,
    /// How often somebody began to unbind.
    unbindings: HashMap<(RegId, QueueName), u64>,
    /// Accepted messages that a registration must still get.
    owed: HashMap<RegId, HashMap<u64, Vec<QueueName>>>,
    /// Every number that was sent, with its queues.
    sent: HashMap<u64, Vec<QueueName>>,
    /// What a position of a queue means, as any device saw it.
    meaning: HashMap<(QueueName, u32, u64), u64>,
    /// What each registration got, in order.
    got: HashMap<RegId, Vec<u64>>,
    /// The newest position that each registration got of each queue.
    newest: HashMap<(RegId, QueueName), u64>,
    next: u64,
    pub accepted: u64,
    pub deliveries: u64,
    pub duplicates: u64,
    pub violations: Vec<String>,
}

impl World {
    /// A number for the next message, noted with the queues that it is sent to.
    pub fn number(&mut self, queues: &[QueueName]) -> u64 {
        self.next += 1;
        self.sent.insert(self.next, queues.to_vec());
        self.next
    }

    /// Who is certain to follow one of these queues now.
    pub fn followers(&self, queues: &[QueueName]) -> Vec<(RegId, Vec<QueueName>)> {
        let mut found: HashMap<RegId, Vec<QueueName>> = HashMap::new();
        for queue in queues {
            for regid in self.certain.get(queue).into_iter().flatten() {
                found.entry(*regid).or_default().push(queue.clone());
            }
        }
        found.into_iter().collect()
    }

    /// A send was answered with success; `followers` followed when it began.
    pub fn accepted(&mut self, number: u64, followers: Vec<(RegId, Vec<QueueName>)>, _: MessageId) {
        self.accepted += 1;
        for (regid, queues) in followers {
            if self.got.get(&regid).is_some_and(|got| got.contains(&number)) {
                continue;
            }
            // Who began to unbind one of them meanwhile may or may not get it.
            let is_certain =
                |queue: &QueueName| self.certain.get(queue).is_some_and(|f| f.contains(&regid));
            if queues.iter().all(is_certain) {
                self.owed.entry(regid).or_default().insert(number, queues);
            }
        }
    }

    /// A registration begins to follow a queue. Returns what `bound` wants back.
    pub fn binding(&mut self, regid: RegId, queue: &QueueName) -> u64 {
        self.possible.entry(queue.clone()).or_default().insert(regid);
        self.unbindings.get(&(regid, queue.clone())).copied().unwrap_or(0)
    }

    /// It follows it now, for certain, unless somebody began to unbind meanwhile.
    pub fn bound(&mut self, regid: RegId, queue: &QueueName, since: u64) {
        if self.binding(regid, queue) == since {
            self.certain.entry(queue.clone()).or_default().insert(regid);
        }
    }

    /// It may or may not follow it from now on: nothing more is owed from there, nor
    /// what was sent there and elsewhere (decision 7).
    pub fn unbinding(&mut self, regid: RegId, queue: &QueueName) {
        self.certain.entry(queue.clone()).or_default().remove(&regid);
        *self.unbindings.entry((regid, queue.clone())).or_default() += 1;
        let is_elsewhere =
            |number: &u64| self.sent.get(number).is_some_and(|queues| !queues.contains(queue));
        if let Some(owed) = self.owed.get_mut(&regid) {
            owed.retain(|number, _| is_elsewhere(number));
        }
    }

    /// A message reached the app code of a registration.
    pub fn delivered(&mut self, one: &Delivery) {
        self.deliveries += 1;
        let Some(queues) = self.sent.get(&one.number) else {
            return self.violate(format!("{one:?} was never sent"));
        };
        let is_it = |queue: &&QueueName| match queue {
            QueueName::Own(regid) => one.queue == "own" && *regid == one.regid,
            shared => shared.to_string() == one.queue,
        };
        let Some(queue) = queues.iter().find(is_it).cloned() else {
            return self.violate(format!("{one:?} came from a queue that it was not sent to"));
        };
        // A registration that unbinds one of several aliases may get the other's copy late
        // (decision 7).
        let has_other_ways = queues.len() > 1 && matches!(queue, QueueName::Alias(..));
        let is_own = matches!(&queue, QueueName::Own(regid) if *regid == one.regid);
        let may = self.possible.get(&queue).is_some_and(|may| may.contains(&one.regid));
        if !is_own && !may {
            self.violate(format!("{one:?} reached somebody who does not follow"));
        }
        let place = (queue.clone(), one.epoch, one.seq);
        let meant = *self.meaning.entry(place).or_insert(one.number);
        if meant != one.number {
            self.violate(format!("{one:?}: that place meant message {meant} before"));
        }
        let got = self.got.entry(one.regid).or_default();
        if got.contains(&one.number) {
            self.duplicates += 1;
        } else {
            got.push(one.number);
            let newest = self.newest.entry((one.regid, queue)).or_insert(0);
            if one.seq <= *newest && !has_other_ways {
                let newest = *newest;
                self.violate(format!("{one:?} came after {newest} for the first time"));
            } else {
                *newest = one.seq.max(*newest);
            }
        }
        if let Some(owed) = self.owed.get_mut(&one.regid) {
            owed.remove(&one.number);
        }
    }

    /// A message reached the app code over a protocol that carries no position.
    pub fn delivered_somewhere(&mut self, regid: RegId, number: u64) {
        self.deliveries += 1;
        let Some(queues) = self.sent.get(&number) else {
            return self.violate(format!("{regid} got {number}, which was never sent"));
        };
        let follows = |queue: &QueueName| {
            matches!(queue, QueueName::Own(own) if *own == regid)
                || self.possible.get(queue).is_some_and(|may| may.contains(&regid))
        };
        if !queues.iter().any(follows) {
            self.violate(format!("{regid} got {number} and does not follow"));
        }
        let got = self.got.entry(regid).or_default();
        if got.contains(&number) {
            self.duplicates += 1;
        } else {
            got.push(number);
        }
        if let Some(owed) = self.owed.get_mut(&regid) {
            owed.remove(&number);
        }
    }

    /// What is still owed.
    pub fn owed(&self) -> usize {
        self.owed.values().map(HashMap::len).sum()
    }

    pub fn violate(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Nothing is owed at the end of a quiet time.
    pub fn settle(&mut self) {
        let owed: Vec<String> = self
            .owed
            .iter()
            .flat_map(|(regid, owed)| owed.iter().map(move |one| format!("{regid} {one:?}")))
            .collect();
        for one in owed.into_iter().take(3) {
            self.violate(format!("an accepted message never came: {one}"));
        }
    }
}
