//! `cargo xtask build`: the kernel object, then the gateway with the object inside.

use anyhow::Result;

use crate::{ebpf, paths, run};

/// What `cargo xtask build` is asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Optimise.
    #[arg(long)]
    release: bool,
}

/// The verb. The last line of standard output is the path of the binary.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    println!("{}", binary(arguments.release)?.display());
    Ok(())
}

/// Builds all of it and says where the binary is.
pub(crate) fn binary(release: bool) -> Result<std::path::PathBuf> {
    ebpf::run()?;
    let mut cargo = run::cargo(["build", "--package", "gateway", "--bin", "tollgate"]);
    if release {
        cargo.arg("--release");
    }
    run::inherit("building the gateway", &mut cargo)?;
    let profile = if release { "release" } else { "debug" };
    Ok(paths::target().join(profile).join("tollgate"))
}
