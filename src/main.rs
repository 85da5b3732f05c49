//! The binary: a command line, and one line for people if it fails.

use std::process::ExitCode;

use carillon::cli::Cli;

/// Chosen by measurement: `docs/MEMORY.md`. `.cargo/config.toml` sets how soon it gives back
/// what connections leave.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::from_args().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("carillon: {error:#}");
            ExitCode::FAILURE
        }
    }
}
