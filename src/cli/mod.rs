//! The command line.
pub mod failure;

use std::process::ExitCode;

pub use failure::Failure;

/// Parses the command line, runs one command and returns its exit code: 0 done, 2 wrong usage, 1 anything else.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
