//! `cargo xtask test`: what a change has to pass.

use std::ffi::OsString;

use anyhow::Result;

use crate::setup::{self, Group};
use crate::{ebpf, lint, run};

/// What `cargo xtask test` is asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only the tests, without formatting and lints.
    #[arg(long)]
    no_lint: bool,
    /// Let tests that need root and the kernel skip (loudly) instead of fail where they cannot run.
    #[arg(long)]
    allow_skips: bool,
    /// For `cargo test`: a filter, or `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// The verb: tools, kernel object, lints, tests.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Group::Build, Group::Extras])?;
    ebpf::run()?;
    if !arguments.no_lint {
        lint::run()?;
    }
    let mut cargo = run::cargo(["test", "--workspace"]);
    cargo.args(&arguments.rest);
    if arguments.allow_skips {
        cargo.env_remove("CI");
    } else {
        // A privileged test that cannot run is a failure, not a pass.
        cargo.env("CI", "1");
    }
    run::inherit("cargo test --workspace", &mut cargo)
}
