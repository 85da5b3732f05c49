//! A process that obeys JSON lines on stdin and tells what happens as JSON lines on stdout.

use std::{collections::VecDeque, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// Longer than anything that the process does.
const EVENT_DEADLINE: Duration = Duration::from_secs(30);

/// A running dialogue; the process ends with it.
pub struct Dialogue {
    child: Child,
    commands: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    unread: VecDeque<Value>,
}

impl Dialogue {
    /// Starts the process.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("the process starts");
        let commands = child.stdin.take().expect("a pipe");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, commands, lines, unread: VecDeque::new() }
    }

    /// Gives a command and waits until it was obeyed; what happens meanwhile is not lost.
    pub async fn obey(&mut self, command: Value) {
        let line = format!("{command}\n");
        self.commands.write_all(line.as_bytes()).await.expect("the process listens");
        let mut before = Vec::new();
        loop {
            let event = self.read(&line, &before).await;
            if event["event"] == "obeyed" {
                break;
            }
            before.push(event);
        }
        self.unread.extend(before);
    }

    /// Everything up to and with the next event of this kind.
    pub async fn until(&mut self, kind: &str) -> Vec<Value> {
        self.until_that(kind, |event| event["event"] == kind).await
    }

    /// Everything up to and with the `count`th event of this kind from now on.
    pub async fn until_count(&mut self, kind: &str, count: usize) -> Vec<Value> {
        let mut left = count;
        let what = format!("{count} events `{kind}`");
        let is_last = |event: &Value| {
            left -= usize::from(event["event"] == kind);
            left == 0
        };
        self.until_that(&what, is_last).await
    }

    async fn until_that(&mut self, what: &str, mut is: impl FnMut(&Value) -> bool) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = match self.unread.pop_front() {
                Some(event) => event,
                None => self.read(what, &events).await,
            };
            let last = is(&event);
            events.push(event);
            if last {
                return events;
            }
        }
    }

    async fn read(&mut self, what: &str, before: &[Value]) -> Value {
        match timeout(EVENT_DEADLINE, self.lines.next_line()).await {
            Ok(Ok(Some(line))) => serde_json::from_str(&line).expect("a JSON line"),
            ended => {
                let _ = self.child.start_kill();
                let mut errors = String::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    let _ = stderr.read_to_string(&mut errors).await;
                }
                panic!("no {what}: {ended:?}; before it: {before:#?}\n{errors}");
            }
        }
    }
}
