//! Load for a push gateway or an MQTT broker on this machine, measured.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    carillon_loadtest::cli::main()
}
