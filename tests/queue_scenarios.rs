//! Stories about positions, as text: `tests/scenarios/*.txt`.

use std::fmt::Write;

use carillon::queue::{
    log::Log,
    plan::{Claim, Jump, Stand, plan},
    position::{Epoch, Position, Seq},
};

struct World {
    log: Log,
    day: u32,
    epoch: u32,
    oldest_day: u32,
}

fn position(text: &str) -> Position {
    let (epoch, seq) = text.split_once(':').expect("epoch:seq");
    Position { epoch: Epoch(epoch.parse().unwrap()), seq: Seq(seq.parse().unwrap()) }
}

impl World {
    fn run(&mut self, words: &[&str]) -> Option<String> {
        let number = |at: usize| words[at].parse::<u32>().unwrap();
        match words[0] {
            "append" => (0..number(1)).for_each(|_| {
                self.log.append(self.day, Epoch(self.epoch));
            }),
            "day" => self.day = number(1),
            "epoch" => self.epoch = number(1),
            "hold" => self.oldest_day = number(1),
            "stand" => return Some(self.stand(words[1], position(words[3]))),
            other => panic!("unknown command {other}"),
        }
        None
    }

    fn stand(&self, claim: &str, since: Position) -> String {
        let at = |text, is_genuine| Claim::At { position: position(text), is_genuine };
        let (claim, stored) = match claim.split_once(':') {
            Some(("at", text)) => (at(text, false), None),
            Some(("proven", text)) => (at(text, true), None),
            Some(("stored", "none")) => (Claim::Stored, None),
            Some(("stored", text)) => (Claim::Stored, Some(position(text))),
            _ => (Claim::Nothing, None),
        };
        let plan = plan(&self.log, self.oldest_day, Stand { claim, stored, since });
        let mut answer = plan.after.0.to_string();
        let jump = plan.jump.map(|jump| match jump {
            Jump::New => "new",
            Jump::EpochChanged => "epoch_changed",
            Jump::Overflow => "overflow",
            Jump::Ahead => "ahead",
            Jump::Smaller => "smaller",
        });
        let loss = plan.proves_loss.then_some("loss");
        let forged = plan.is_forged.then_some("forged");
        for word in [jump, loss, forged].into_iter().flatten() {
            write!(answer, " {word}").unwrap();
        }
        answer
    }
}

#[test]
fn s7_i8_every_stand_gets_the_answer_of_its_story() {
    let story = include_str!("scenarios/plan.txt");
    let mut world = World { log: Log::default(), day: 1, epoch: 1, oldest_day: 0 };
    let mut stands = 0;
    for (number, line) in story.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (command, expected) = match line.split_once("->") {
            Some((command, expected)) => (command, Some(expected.trim())),
            None => (line, None),
        };
        let words: Vec<&str> = command.split_whitespace().collect();
        let answer = world.run(&words);
        assert_eq!(answer.as_deref(), expected, "line {}: {line}", number + 1);
        stands += usize::from(expected.is_some());
    }
    assert!(stands > 20, "the story was read");
}
