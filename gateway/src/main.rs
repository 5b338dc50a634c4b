//! The binary: parses arguments, calls the verb, turns errors into exit codes.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway::cli::main()
}
