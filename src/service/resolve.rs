//! From a target as it was stated to the queues that bring a message to it.

use std::{cell::LazyCell, collections::HashSet};

use super::{
    Error, Service,
    records::member_key,
    send::{Send, Target},
};
use crate::{
    base::ids::{Alias, AppId, QueueId, QueueName, RegId, Topic},
    queue::{condition::Condition, store::Space},
};

/// A target as queues.
pub(super) struct Resolved {
    pub(super) queues: Vec<QueueName>,
    pub(super) matched: usize,
    pub(super) invalid: Vec<String>,
    pub(super) condition: Option<Condition>,
}

impl Service {
    pub(super) fn resolve(&self, app: &AppId, send: &Send) -> Result<Resolved, Error> {
        match &send.target {
            Target::Regids(regids) => {
                let (queues, invalid) = self.registered_of(app, regids)?;
                if !send.is_dry_run && !invalid.is_empty() {
                    self.named_unknown(app, &invalid);
                }
                if queues.is_empty() {
                    let what = "registration of this app among the regids";
                    return Err(Error::NotFound { what });
                }
                Ok(Resolved { matched: queues.len(), queues, invalid, condition: None })
            }
            Target::Aliases(aliases) => {
                self.check_targets("target.aliases", aliases)?;
                let queue = |a: &String| Ok(QueueName::Alias(app.clone(), a.parse::<Alias>()?));
                let queues = distinct(aliases.iter().map(queue))?;
                self.shared(queues)
            }
            Target::Topic(topic) => {
                self.shared(vec![QueueName::Topic(app.clone(), topic.parse::<Topic>()?)])
            }
            Target::Condition(text) => {
                let condition = Condition::parse(text).map_err(|error| Error::Invalid {
                    field: "target.condition",
                    rule: error.to_string(),
                })?;
                let resolved = self.shared(queues_of(app, &condition))?;
                Ok(Resolved { condition: Some(condition), ..resolved })
            }
            Target::All => self.shared(vec![QueueName::All(app.clone())]),
        }
    }

    fn shared(&self, queues: Vec<QueueName>) -> Result<Resolved, Error> {
        let mut matched = 0;
        for queue in &queues {
            matched += self.members(&queue.id())?;
        }
        Ok(Resolved { queues, matched, invalid: Vec::new(), condition: None })
    }

    /// The own queues of those that are the app's, each once, and those that are not.
    fn registered_of(
        &self,
        app: &AppId,
        regids: &[String],
    ) -> Result<(Vec<QueueName>, Vec<String>), Error> {
        self.check_targets("target.regids", regids)?;
        let (mut queues, mut invalid) = (Vec::with_capacity(regids.len()), Vec::new());
        // One is always the first.
        let several = regids.len() > 1;
        let mut seen = HashSet::with_capacity(if several { regids.len() } else { 0 });
        // Every registration follows this. Worked out where memory does not know one.
        let all = LazyCell::new(|| QueueName::All(app.clone()).id());
        for text in regids {
            match text.parse::<RegId>() {
                Ok(regid) if self.is_registered(app, || *all, &regid)? => {
                    if !several || seen.insert(regid) {
                        queues.push(QueueName::Own(regid));
                    }
                }
                _ => invalid.push(text.clone()),
            }
        }
        Ok((queues, invalid))
    }

    /// Whether a regID is the app's. What nobody has and what another app has take the same way through
    /// the store, whatever is in memory: the time of an answer does not tell them apart.
    fn is_registered(
        &self,
        app: &AppId,
        all: impl Fn() -> QueueId,
        regid: &RegId,
    ) -> Result<bool, Error> {
        if self.is_known_of(app, regid) {
            return Ok(true);
        }
        if self.router.get(Space::Members, &member_key(&all(), regid))?.is_none() {
            return Ok(false);
        }
        Ok(self.registered(regid)?.is_some_and(|one| one.app == *app))
    }

    fn check_targets(&self, field: &'static str, targets: &[String]) -> Result<(), Error> {
        let max = self.limits.load().targets_per_send;
        if targets.is_empty() || targets.len() > max {
            return Err(Error::Invalid { field, rule: format!("1 to {max} of them") });
        }
        Ok(())
    }
}

/// The queues that can bring a message with a condition: the topics that it names unnegated, or
/// `all` if it can hold without any of them.
fn queues_of(app: &AppId, condition: &Condition) -> Vec<QueueName> {
    if condition.can_hold_without() {
        return vec![QueueName::All(app.clone())];
    }
    condition.unnegated().map(|topic| QueueName::Topic(app.clone(), topic.clone())).collect()
}

/// Each queue once, in the order of its first mention.
fn distinct(
    queues: impl Iterator<Item = Result<QueueName, Error>>,
) -> Result<Vec<QueueName>, Error> {
    let mut seen = HashSet::new();
    let queues: Result<Vec<QueueName>, Error> = queues.collect();
    Ok(queues?.into_iter().filter(|queue| seen.insert(queue.id())).collect())
}
