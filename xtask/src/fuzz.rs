//! `cargo xtask fuzz`: each fuzz target of `gateway/fuzz` for a while.

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Group, toolchain};
use crate::{paths, run};

/// What `cargo xtask fuzz` is asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only these targets.
    targets: Vec<String>,
}

/// The verb. A target that finds something ends it, with the input kept in `gateway/fuzz/artifacts`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Group::Fuzz])?;
    let nightly = toolchain::nightly().context("no nightly tool chain")?;
    let tool = paths::find_program("cargo-fuzz").context("no cargo-fuzz")?;
    let folder = paths::root().join("gateway");
    if !folder.join("fuzz/Cargo.toml").exists() {
        bail!("there are no fuzz targets: gateway/fuzz/Cargo.toml does not exist");
    }
    let cargo_fuzz = |verb: &str| {
        let mut command = run::command(&tool);
        command.current_dir(&folder).env("RUSTUP_TOOLCHAIN", &nightly).args(["fuzz", verb]);
        command
    };
    let list = run::output(&mut cargo_fuzz("list"))?;
    let known: Vec<&str> = list.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if let Some(unknown) = arguments.targets.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("no fuzz target is called {unknown}; there are: {}", known.join(", "));
    }
    for target in known {
        if !arguments.targets.is_empty() && !arguments.targets.iter().any(|name| name == target) {
            continue;
        }
        let mut command = cargo_fuzz("run");
        command.arg(target).args(["--", &format!("-max_total_time={}", arguments.seconds)]);
        run::inherit(&format!("fuzzing {target} for {} s", arguments.seconds), &mut command)?;
    }
    Ok(())
}
