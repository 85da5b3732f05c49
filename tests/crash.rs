//! D1: the node is killed again and again under load; nothing that was answered is lost,
//! and what was acknowledged durably never comes again.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

#[path = "callbacks/hook.rs"]
mod hook;
mod ledger;
mod support;

use std::time::{Duration, Instant};

use ledger::{
    Dice, Event, Queue,
    fleet::{Fleet, Plan},
    number_from_env,
    rounds::CALLBACKS,
};
use support::{Node, Options};
use tokio::time::sleep;

/// Kills of one run of the gate; the slow set asks for more.
const KILLS: u64 = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_a_node_that_is_killed_again_and_again_loses_nothing() {
    let kills = number_from_env("CARILLON_KILLS").unwrap_or(KILLS);
    let sends_per_s = number_from_env("CARILLON_RATE").unwrap_or(300);
    let mut dice = Dice::of_this_run("crash");
    let hook = hook::Hook::start("").await;
    let config = Some(CALLBACKS.to_owned());
    let mut node = Node::start_with(Options { config, ..Options::default() }).await;
    hook.trust(&node.app().app_secret);
    let senders = (sends_per_s as usize / 50).clamp(6, 40);
    let plan = Plan {
        sends_per_s,
        senders,
        scheduled_percent: 10,
        collapsed_percent: 4,
        pause_ms: 2..600,
        recalled_percent: 5,
        callback: Some(hook.url()),
        away: 100 + 4 * kills as usize,
        ..Plan::default()
    };
    let mut fleet = Fleet::set_up(&node, plan, dice.fork()).await;
    fleet.start_load();
    let (mut longest, mut done) = (Duration::ZERO, 0);
    while done < kills {
        sleep(moment(&mut dice)).await;
        kill(&mut node, &fleet);
        done += 1;
        if dice.percent(20) {
            // Killed again while it starts.
            node.spawn();
            sleep(dice.millis(0..400)).await;
            kill(&mut node, &fleet);
            done += 1;
        }
        longest = longest.max(restart(&mut node, &fleet).await);
    }
    fleet.stop_load().await;
    fleet.settle(&node).await;
    after_a_quiet_time_a_kill_costs_nothing(&mut node, &mut fleet).await;
    // Everything is acknowledged: none of what was asked for is missing.
    hook.wait_for(&fleet.events().owed()).await;
    let told = fleet.events().judge(&hook.taken());
    let report = fleet.end().await;
    println!("events of callbacks, none missing and none wrong: {told:?}");
    println!("crash: {report}, longest restart to ready {longest:?}");
    if kills >= KILLS {
        let kinds = told.iter().filter(|(_, owed)| *owed > 0).count();
        assert!(
            report.withheld > 0 && report.superseded > 0 && kinds == told.len(),
            "all is tried"
        );
    }
}

/// A random moment; a long one now and then, so that acknowledgements become durable.
fn moment(dice: &mut Dice) -> Duration {
    if dice.percent(30) { dice.millis(1_800..3_000) } else { dice.millis(0..1_200) }
}

fn kill(node: &mut Node, fleet: &Fleet) {
    fleet.ledger.note(Event::Killed);
    node.kill9();
    fleet.ledger.note(Event::Dead);
}

async fn restart(node: &mut Node, fleet: &Fleet) -> Duration {
    let since = Instant::now();
    node.restart().await;
    fleet.ledger.note(Event::Ready);
    since.elapsed()
}

/// Everything is acknowledged for long enough: the ledger takes no redelivery after this
/// kill. One more message shows that every device is back.
async fn after_a_quiet_time_a_kill_costs_nothing(node: &mut Node, fleet: &mut Fleet) {
    // The promise is about time: no event says that pointers are on the disk.
    sleep(fleet.ledger.check().forgiven).await;
    kill(node, fleet);
    restart(node, fleet).await;
    fleet.send(Queue::All).await;
    fleet.settle(node).await;
}
