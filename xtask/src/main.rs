//! `cargo xtask`: the one door for building, checking, testing, demonstrating and measuring Tollgate.
//!
//! Each verb is a file. Its steps are child processes that [`run`] prepares; those that live on beside it are
//! started in [`demo`]. Progress goes to standard error; standard output carries results only, so that `$(cargo xtask build | tail -1)` works.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks to its user"
)]

mod bench;
mod build;
mod demo;
mod ebpf;
mod fuzz;
mod kernels;
mod lint;
mod paths;
mod run;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, checks, tests and demonstrates Tollgate.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need, and say why; does nothing when all of it is there.
    Setup(setup::Arguments),
    /// Build the kernel object `target/bpf/tollgate-bpf.o`.
    Ebpf,
    /// Build everything; the last line of the output is the path of the binary.
    Build(build::Arguments),
    /// Check formatting, lints and the rules of the house.
    Lint,
    /// Build, lint and run every test.
    Test(test::Arguments),
    /// Play the story of three agents in a world of its own, and compare it with what is promised.
    Demo(demo::Arguments),
    /// Measure what the gateway costs, side by side with the same thing without it.
    Bench(bench::Arguments),
    /// Run each fuzz target for a while.
    Fuzz(fuzz::Arguments),
    /// Run the privileged tests and `tollgate doctor` on other kernels, in emulated machines.
    Kernels(kernels::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Setup(arguments) => setup::run(&arguments),
        Verb::Ebpf => ebpf::run(),
        Verb::Build(arguments) => build::run(&arguments),
        Verb::Lint => lint::run(),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
        Verb::Kernels(arguments) => kernels::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
