//! The subcommands of the binary.
//!
//! `serve` (also without a subcommand) runs a node; `check` reads a configuration;
//! the others talk to a running node through its admin door, which they find by
//! `<data>/admin.json`, or by `--url` and `--token`.

mod check;
mod client;
mod demo;
mod operate;
mod serve;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Carillon, a push gateway.
#[derive(Debug, Parser)]
#[command(name = "carillon", version, about, long_about = None)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node (the default, with default settings)
    Serve(serve::Serve),
    /// Check a configuration file
    Check {
        /// The file
        file: PathBuf,
    },
    /// Create and list apps, rotate their secrets and keys, revoke them, seal their payloads
    #[command(subcommand)]
    App(operate::App),
    /// Create device accounts, revoke one
    #[command(subcommand)]
    Device(operate::Device),
    /// Send a message
    Send(operate::Send),
    /// Tell the whole story on this machine, in under a minute
    Demo(demo::Demo),
    /// Show a message's state, or its way to one registration
    Trace(operate::Trace),
    /// Let a node end in good order
    Drain(operate::Drain),
    /// Let a node read its configuration and certificates again
    Reload(operate::Reload),
}

impl Cli {
    /// Reads the command line; ends the process with a usage text if it is wrong.
    pub fn from_args() -> Self {
        Self::parse()
    }

    /// Does what was asked.
    ///
    /// # Errors
    /// For people: one line, with its causes.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command.unwrap_or_else(|| Command::Serve(serve::Serve::default())) {
            Command::Serve(serve) => serve.run(),
            Command::Check { file } => check::run(&file),
            Command::App(app) => app.run(),
            Command::Device(device) => device.run(),
            Command::Send(send) => send.run(),
            Command::Demo(demo) => demo.run(),
            Command::Trace(trace) => trace.run(),
            Command::Drain(drain) => drain.run(),
            Command::Reload(reload) => reload.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_send_has_exactly_one_target() {
        let parse = |args: &str| Cli::try_parse_from(args.split(' ')).is_ok();
        assert!(parse("carillon"));
        assert!(parse("carillon serve --mqtt 127.0.0.1:0 --ws off"));
        assert!(!parse("carillon serve --mqtt here"));
        assert!(parse("carillon send --app demo --regid a --regid b {}"));
        assert!(parse("carillon send --app demo --all hello"));
        assert!(!parse("carillon send --app demo {}"));
        assert!(!parse("carillon send --app demo --all --topic t {}"));
        assert!(!parse("carillon app list --url http://127.0.0.1:9464"));
        assert!(parse("carillon app list --url http://127.0.0.1:9464 --token t"));
        assert!(!parse("carillon app list --url http://127.0.0.1:9464 --token t --data d"));
        assert!(!parse("carillon device create --app demo --count 0"));
    }
}
