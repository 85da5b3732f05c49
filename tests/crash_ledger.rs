//! The checker is checked: for each rule a good history passes, and a history that
//! breaks it, and nothing else, is found.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod ledger;
mod support;

use std::time::Duration;

use ledger::{Delivery, Event, Noted, Position, Queue, check::check, report::Rule};

const DEVICE: usize = 0;
const OWN: Queue = Queue::Own(DEVICE);

/// A history in which each event comes a tenth of a second after the one before.
#[derive(Clone, Default)]
struct History {
    noted: Vec<Noted>,
    now: Duration,
}

impl History {
    /// A device that is connected and follows its own queue and a topic.
    fn of_a_device() -> Self {
        Self::default().follow(OWN).follow(Queue::Topic(1)).connect(false)
    }

    fn event(mut self, event: Event) -> Self {
        self.now += Duration::from_millis(100);
        self.noted.push(Noted { at: self.now, event });
        self
    }

    fn pause(mut self, seconds: u64) -> Self {
        self.now += Duration::from_secs(seconds);
        self
    }

    fn follow(self, queue: Queue) -> Self {
        self.event(Event::Asked { device: DEVICE, queue, follow: true }).event(Event::Changed {
            device: DEVICE,
            queue,
            follow: true,
        })
    }

    fn unfollow(self, queue: Queue) -> Self {
        self.event(Event::Asked { device: DEVICE, queue, follow: false }).event(Event::Changed {
            device: DEVICE,
            queue,
            follow: false,
        })
    }

    fn connect(self, session_present: bool) -> Self {
        self.event(Event::Connecting { device: DEVICE })
            .event(Event::Connected { device: DEVICE, session_present })
    }

    fn attempt(self, message: u64, to: &[Queue]) -> Self {
        self.event(Event::Attempted { message, to: to.to_vec() })
    }

    fn send(self, message: u64, to: &[Queue]) -> Self {
        self.attempt(message, to).accept(message)
    }

    fn accept(self, message: u64) -> Self {
        self.event(Event::Accepted { message, id: format!("id{message}") })
    }

    fn deliver(self, queue: Queue, seq: u64, message: u64) -> Self {
        self.event(delivery(queue, seq, message, false))
    }

    fn ack(self, queue: Queue, seq: u64) -> Self {
        let position = Position { epoch: 1, seq };
        self.event(Event::Acked { device: DEVICE, queue, position })
    }

    /// The node has read everything that was acknowledged so far.
    fn confirm(self) -> Self {
        self.event(Event::Pinged { device: DEVICE }).event(Event::Ponged { device: DEVICE })
    }

    fn kill(self) -> Self {
        self.event(Event::Killed).event(Event::Dead).event(Event::Ready).connect(false)
    }

    #[track_caller]
    fn holds(self) -> Self {
        let faults = check(&self.noted).faults();
        assert!(faults.is_empty(), "{faults:?}");
        self
    }

    #[track_caller]
    fn breaks(self, rule: Rule) {
        let faults = check(&self.noted).faults();
        let rules: Vec<Rule> = faults.iter().map(|fault| fault.rule).collect();
        assert_eq!(rules, [rule], "{faults:?}");
    }
}

fn delivery(queue: Queue, seq: u64, message: u64, dup: bool) -> Event {
    Event::Delivered(Delivery {
        device: DEVICE,
        queue,
        position: Position { epoch: 1, seq },
        message,
        id: format!("id{message}"),
        dup,
    })
}

#[test]
fn an_accepted_message_that_never_comes_is_lost() {
    let sent = History::of_a_device().send(1, &[OWN]).send(2, &[OWN, Queue::Topic(9)]);
    sent.clone().deliver(OWN, 1, 1).deliver(OWN, 2, 2).holds();
    sent.deliver(OWN, 1, 1).breaks(Rule::Lost);
    History::of_a_device().attempt(1, &[OWN]).holds();
    History::of_a_device().unfollow(Queue::Topic(1)).send(1, &[Queue::Topic(1)]).holds();
}

#[test]
fn a_message_that_comes_behind_a_later_one_is_out_of_order() {
    let sent = History::of_a_device().attempt(1, &[OWN]).attempt(2, &[OWN]).accept(1).accept(2);
    sent.clone().deliver(OWN, 1, 2).deliver(OWN, 2, 1).holds();
    sent.clone().deliver(OWN, 2, 1).connect(false).deliver(OWN, 1, 2).breaks(Rule::Order);
    let both = sent.deliver(OWN, 1, 1).deliver(OWN, 2, 2);
    both.clone().connect(false).deliver(OWN, 1, 1).deliver(OWN, 2, 2).holds();
    let dup = delivery(OWN, 1, 1, true);
    both.event(dup).breaks(Rule::Order);
}

#[test]
fn a_message_that_stands_before_one_that_was_answered_earlier_is_out_of_order() {
    let sent = History::of_a_device().send(1, &[OWN]).send(2, &[OWN]);
    sent.clone().deliver(OWN, 1, 1).deliver(OWN, 2, 2).holds();
    sent.deliver(OWN, 1, 2).deliver(OWN, 2, 1).breaks(Rule::Order);
}

#[test]
fn a_position_that_means_two_messages_is_found() {
    let sent = History::of_a_device().send(1, &[OWN]).attempt(2, &[OWN]).deliver(OWN, 1, 1);
    sent.holds().connect(false).deliver(OWN, 1, 2).breaks(Rule::Meaning);
}

#[test]
fn a_message_with_two_places_in_a_queue_is_found() {
    let sent = History::of_a_device().send(1, &[OWN]).deliver(OWN, 1, 1);
    sent.holds().deliver(OWN, 2, 1).breaks(Rule::OnePlace);
}

#[test]
fn a_message_that_comes_by_two_queues_is_found() {
    let topic = Queue::Topic(1);
    let sent = History::of_a_device().send(1, &[OWN, topic]).deliver(OWN, 1, 1);
    sent.holds().deliver(topic, 1, 1).breaks(Rule::Once);
}

#[test]
fn what_was_acknowledged_long_before_a_kill_must_not_come_again() {
    let acked = History::of_a_device().send(1, &[OWN]).deliver(OWN, 1, 1).ack(OWN, 1);
    acked.clone().pause(2).kill().deliver(OWN, 1, 1).holds();
    acked.clone().confirm().kill().deliver(OWN, 1, 1).holds();
    acked.clone().confirm().connect(false).deliver(OWN, 1, 1).breaks(Rule::AckedAgain);
    acked.clone().confirm().pause(2).kill().deliver(OWN, 1, 1).breaks(Rule::AckedAgain);
    let again = acked.confirm().kill().deliver(OWN, 1, 1).ack(OWN, 1).confirm();
    again.clone().kill().deliver(OWN, 1, 1).holds();
    again.pause(2).kill().deliver(OWN, 1, 1).breaks(Rule::AckedAgain);
}

#[test]
fn what_a_device_keeps_itself_must_not_come_again() {
    let position = Position { epoch: 1, seq: 1 };
    let sent = History::of_a_device().send(1, &[OWN]).deliver(OWN, 1, 1);
    let kept = sent.event(Event::Kept { device: DEVICE, queue: OWN, position });
    kept.holds().kill().deliver(OWN, 1, 1).breaks(Rule::AckedAgain);
}

#[test]
fn what_was_not_acknowledged_must_come_again_before_anything_else() {
    let sent = History::of_a_device().send(1, &[OWN]).send(2, &[OWN]).deliver(OWN, 1, 1);
    let again = sent.clone().kill().deliver(OWN, 1, 1).deliver(OWN, 2, 2);
    again.holds();
    sent.clone().ack(OWN, 1).kill().deliver(OWN, 2, 2).holds();
    sent.kill().deliver(OWN, 2, 2).breaks(Rule::PassedOver);

    // A kill cut off the end of a following, which then began anew.
    let topic = Queue::Topic(1);
    let leave = Event::Asked { device: DEVICE, queue: topic, follow: false };
    let left = History::of_a_device().attempt(1, &[topic]).event(leave).deliver(topic, 1, 1);
    left.kill().follow(topic).send(2, &[topic]).deliver(topic, 2, 2).holds();
}

#[test]
fn an_acknowledgement_counts_once_all_before_it_are_acknowledged() {
    let both = History::of_a_device().send(1, &[OWN]).send(2, &[OWN]);
    let both = both.deliver(OWN, 1, 1).deliver(OWN, 2, 2).ack(OWN, 2).confirm().pause(2).kill();
    both.clone().deliver(OWN, 1, 1).deliver(OWN, 2, 2).holds();
    let acked = both.deliver(OWN, 1, 1).ack(OWN, 1).confirm().pause(2).kill();
    acked.clone().deliver(OWN, 2, 2).holds();
    acked.deliver(OWN, 1, 1).breaks(Rule::AckedAgain);
}

#[test]
fn who_does_not_follow_must_not_hear_of_it() {
    let topic = Queue::Topic(1);
    let left = History::of_a_device().unfollow(topic).send(1, &[topic]);
    left.holds().deliver(topic, 1, 1).breaks(Rule::Stranger);
    let early = History::default().connect(false).send(1, &[topic]).follow(topic);
    early.holds().deliver(topic, 1, 1).breaks(Rule::Stranger);
    let during = History::of_a_device().attempt(1, &[topic]).unfollow(topic).accept(1);
    during.holds().deliver(topic, 1, 1).holds();
    let other = History::of_a_device().attempt(1, &[Queue::Own(7)]);
    other.deliver(OWN, 1, 1).breaks(Rule::Stranger);
    History::of_a_device().deliver(OWN, 1, 1).breaks(Rule::Stranger);
}

#[test]
fn what_was_refused_must_not_come() {
    let refused = History::of_a_device().attempt(1, &[OWN]).event(Event::Refused { message: 1 });
    refused.holds().deliver(OWN, 1, 1).breaks(Rule::Refused);
}

#[test]
fn a_message_with_two_ids_is_found() {
    let sent = History::of_a_device().attempt(1, &[OWN]).deliver(OWN, 1, 1);
    sent.clone().accept(1).holds();
    sent.event(Event::Accepted { message: 1, id: "other".into() }).breaks(Rule::Identity);
}

#[test]
fn a_redelivery_within_a_session_must_say_so() {
    let sent = History::of_a_device().send(1, &[OWN]).deliver(OWN, 1, 1);
    sent.clone().connect(false).connect(true).deliver(OWN, 1, 1).holds();
    sent.connect(true).deliver(OWN, 1, 1).breaks(Rule::Dup);
}

fn recalled(history: History, message: u64) -> History {
    history.event(Event::Recalling { message }).event(Event::Recalled { message })
}

#[test]
fn what_was_taken_back_is_not_given_to_who_comes_after() {
    let sent = History::of_a_device().send(1, &[OWN]);
    let gone = recalled(sent.clone(), 1);
    gone.clone().holds();
    // It was on its way; or the answer was lost.
    gone.clone().deliver(OWN, 1, 1).holds();
    let unanswered = sent.clone().event(Event::Recalling { message: 1 });
    unanswered.connect(false).deliver(OWN, 1, 1).holds();
    let again = sent.deliver(OWN, 1, 1);
    recalled(again, 1).connect(true).event(delivery(OWN, 1, 1, true)).holds();
    gone.clone().connect(false).deliver(OWN, 1, 1).breaks(Rule::TakenBack);
    gone.kill().deliver(OWN, 1, 1).breaks(Rule::TakenBack);
}

#[test]
fn what_a_newer_message_took_the_place_of_is_not_given_to_who_comes_after() {
    let supersedes = Event::Supersedes { message: 2, earlier: 1 };
    let begun = History::of_a_device().send(1, &[OWN]).event(supersedes).attempt(2, &[OWN]);
    let both = begun.clone().accept(2);
    both.clone().deliver(OWN, 1, 1).deliver(OWN, 2, 2).holds();
    both.clone().connect(false).deliver(OWN, 2, 2).holds();
    begun.clone().connect(false).deliver(OWN, 1, 1).deliver(OWN, 2, 2).holds();
    both.clone().connect(false).deliver(OWN, 1, 1).deliver(OWN, 2, 2).breaks(Rule::Superseded);
    // The newer one never came to be: the earlier one is owed.
    begun.clone().breaks(Rule::Lost);
    begun.kill().deliver(OWN, 1, 1).holds();
    let third = Event::Supersedes { message: 3, earlier: 2 };
    let three = both.event(third).send(3, &[OWN]).connect(false);
    three.clone().deliver(OWN, 3, 3).holds();
    three.clone().deliver(OWN, 1, 1).deliver(OWN, 3, 3).breaks(Rule::Superseded);
    recalled(three, 3).connect(false).holds();
}

#[test]
fn a_device_with_frames_learns_what_is_taken_back() {
    let position = Position { epoch: 1, seq: 1 };
    let has = History::of_a_device().send(1, &[OWN]).deliver(OWN, 1, 1);
    let kept = has.event(Event::Kept { device: DEVICE, queue: OWN, position });
    let told = Event::ToldOfRecall { device: DEVICE, id: "id1".into() };
    // It may be on its way until the next start.
    recalled(kept.clone(), 1).holds();
    recalled(kept.clone(), 1).kill().event(told).holds();
    kept.clone().event(Event::Recalling { message: 1 }).kill().holds();
    recalled(kept, 1).kill().breaks(Rule::Untold);
}
