//! A second process on the directory of a running node.

use std::{
    net::SocketAddr,
    process::{ExitStatus, Stdio},
};

use super::{DEADLINE, Node, poll_until, script};

impl Node {
    /// Starts a second process that takes over from the running one, and waits until it serves.
    /// Gives how the first one ended.
    pub async fn take_over(&mut self) -> ExitStatus {
        let mut old = self.child.take().expect("a running node");
        let before = self.admin.token.clone();
        self.child = Some(self.command().arg("--takeover").spawn().expect("the binary starts"));
        self.wait_until_ready(&before).await;
        let ended = poll_until(DEADLINE, async || old.try_wait().expect("a process of ours"));
        ended.await.expect("the old process ends")
    }

    /// Starts a further process on the same directory with these arguments, and gives what it
    /// says on its standard error and how it ends.
    pub async fn second(&self, args: &[&str]) -> (String, ExitStatus) {
        let mut command = self.command();
        command.args(args).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = script::output(command.into(), DEADLINE).await;
        (String::from_utf8_lossy(&output.stderr).into_owned(), output.status)
    }

    /// Where the next process shall serve plain MQTT.
    pub fn listen_at(&mut self, mqtt: SocketAddr) {
        self.admin.listen.mqtt = mqtt;
    }
}
