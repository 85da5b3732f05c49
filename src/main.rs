//! The binary: a command line, and one line for people if it fails.

use std::process::ExitCode;

use carillon::cli::Cli;

fn main() -> ExitCode {
    match Cli::from_args().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("carillon: {error:#}");
            ExitCode::FAILURE
        }
    }
}
