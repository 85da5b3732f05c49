//! Two devices of one user edit, upload, send again and lose answers, as a seed says: each edit is
//! done once, every answer about it is the same, and both end with the same items.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    dice::{Dice, seeds},
    edge_support::{
        Account, Node, team,
        team::{ALIAS, member, upload},
        visitor::{Visitor, result},
    },
};
use carillon::{
    base::ids::{Alias, QueueName},
    queue::collection::rule::Rule,
};
use carillon_wire::{
    idl::{self, EditOutcome, ResultCode},
    mqtt::Connect,
};

/// A device that edits.
struct Editor<'a> {
    visitor: Visitor<'a>,
    edits: BTreeMap<i64, idl::Edit>,
    /// What it was told of each.
    told: BTreeMap<i64, idl::EditResult>,
}

impl<'a> Editor<'a> {
    async fn new(node: &'a Node, account: &'a Account) -> Self {
        let mut visitor = Visitor::new(node, account);
        visitor.catch_up().await;
        Self { visitor, edits: BTreeMap::new(), told: BTreeMap::new() }
    }

    /// One more edit, of one of few items.
    fn make(&mut self, time: u64, dice: &mut Dice) {
        let cseq = self.edits.len() as i64 + 1;
        let text = (dice.below(4) > 0).then(|| format!("{{\"f{}\":{time}}}", dice.below(3)));
        let key = format!("n{}", dice.below(4));
        let (_, seen) = self.visitor.at();
        let edit = team::edit(cseq, &key, text.as_deref(), seen, time);
        self.edits.insert(cseq, edit);
    }

    /// Sends what was not answered, and perhaps some before; hears the answer, perhaps.
    async fn upload(&mut self, dice: &mut Dice) {
        let first = self.told.len() as i64 + 1;
        let from = (first - dice.below(4) as i64).max(1);
        let count = 1 + dice.below(6);
        let edits: Vec<_> =
            self.edits.range(from..).take(count as usize).map(|(_, edit)| edit.clone()).collect();
        let (epoch, _) = self.visitor.at();
        let up = upload(7, self.visitor.account, epoch, edits);
        let result = match dice.below(2) {
            0 => result(&self.visitor.ask(&[up]).await.unwrap(), 7).clone(),
            _ => self.over_a_connection(up).await,
        };
        assert_eq!(result.code, ResultCode::OK, "{result:?}");
        if dice.below(3) == 0 {
            return;
        }
        for edit in result.edits.unwrap() {
            let before = self.told.insert(edit.cseq, edit.clone());
            assert!(before.is_none_or(|before| before == edit), "two answers about {edit:?}");
        }
    }

    async fn over_a_connection(&self, up: idl::Up) -> idl::Result {
        let Visitor { node, account, .. } = &self.visitor;
        let mut client = node.connect(account, Connect::default()).await;
        client.up(up).await;
        client.down().await.result.expect("nothing else is sent to who did not resume")
    }

    fn is_done(&self) -> bool {
        self.told.len() == self.edits.len()
    }
}

async fn run(seed: u64, rule: Rule) {
    let mut dice = Dice::new(seed);
    let node = Node::start().await;
    let app = team::app_with(&node, &[("notes", rule)]).await;
    let accounts = [member(&node, &app).await, member(&node, &app).await];
    let mut editors =
        [Editor::new(&node, &accounts[0]).await, Editor::new(&node, &accounts[1]).await];
    for time in 1..=80 {
        let editor = &mut editors[dice.below(2) as usize];
        match dice.below(4) {
            0 | 1 => editor.make(time, &mut dice),
            2 => editor.upload(&mut dice).await,
            _ => drop(editor.visitor.visit(&[]).await),
        }
    }
    for editor in &mut editors {
        for _ in 0..1_000 {
            if editor.is_done() {
                break;
            }
            editor.upload(&mut dice).await;
        }
        assert!(editor.is_done(), "every edit is answered in the end");
    }
    let alias: Alias = ALIAS.parse().unwrap();
    let head = node.service.head(&QueueName::Alias(app.app_id.clone(), alias).id()).unwrap();
    for editor in &mut editors {
        editor.visitor.reach(head.seq.0).await;
    }
    let told = || editors.iter().flat_map(|editor| editor.told.values());
    let seqs: Vec<i64> = told().filter_map(|edit| edit.seq).collect();
    if rule == Rule::Newest {
        let distinct: BTreeSet<_> = seqs.iter().collect();
        assert_eq!((distinct.len(), seqs.len() as u64), (seqs.len(), head.seq.0), "each once");
        assert!(told().all(|edit| (edit.outcome == EditOutcome::LOST) == edit.seq.is_none()));
    }
    for editor in &editors {
        let own: Vec<_> = editor.visitor.changes.iter().filter_map(|(_, c)| c.cseq).collect();
        let distinct: BTreeSet<_> = own.iter().collect();
        assert!(rule != Rule::Newest || distinct.len() == own.len(), "an own edit came twice");
    }
    let [one, other] = &editors;
    assert_eq!(one.visitor.items(&one.edits), other.visitor.items(&other.edits));
}

#[allow(clippy::disallowed_methods, reason = "seeds come from outside")]
/// As many seeds as the environment asks for, from where it says.
async fn runs(rule: Rule) {
    for seed in seeds(15) {
        println!("seed {seed}");
        run(seed, rule).await;
    }
}

#[tokio::test]
async fn s20_random_uploads_are_done_once_and_both_devices_agree() {
    runs(Rule::Newest).await;
}

#[tokio::test]
async fn s20_the_same_where_fields_are_merged() {
    runs(Rule::Merge).await;
}

#[tokio::test]
async fn s20_the_same_where_both_are_kept() {
    runs(Rule::KeepBoth).await;
}
