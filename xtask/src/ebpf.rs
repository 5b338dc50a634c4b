//! `cargo xtask ebpf`: builds the kernel programs into `target/bpf/tollgate-bpf.o`.

use std::fs;

use anyhow::{Context as _, Result};

use crate::setup::{self, Group, toolchain};
use crate::{paths, run};

const TARGET: &str = "bpfel-unknown-none";

/// The verb: the tools when they are missing, then the object.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Group::Build])?;
    let tools = toolchain::kernel_tools().context("no compiler with library sources")?;
    let build = paths::target().join("bpf");

    let mut cargo = run::command("cargo");
    cargo.args([
        "build",
        "--package",
        "gateway-ebpf",
        "--bin",
        "tollgate-bpf",
        "--features",
        "bpf",
    ]);
    cargo.args(["--release", "--target", TARGET, "-Z", "build-std=core"]);
    cargo.env("CARGO_TARGET_DIR", &build).env("RUSTC", &tools.rustc);
    // cargo itself is the pinned stable one, so it needs the permission even where the compiler is a nightly.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    // For the kernel's target alone: macros and build scripts run on the host and must not see these.
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker);
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", target_flags());
    // A global RUSTFLAGS would take the place of the target's.
    cargo.env_remove("RUSTFLAGS");
    run::inherit(&format!("building the kernel object with {}", tools.title), &mut cargo)?;

    let built = build.join(TARGET).join("release/tollgate-bpf");
    let stable = paths::kernel_object();
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    // An unchanged object keeps its time stamp, so that the gateway is not built again.
    if fs::read(&stable).ok().as_deref() != Some(bytes.as_slice()) {
        fs::write(&stable, bytes).with_context(|| format!("cannot write {}", stable.display()))?;
    }
    Ok(())
}

/// BTF, without which maps with kernel-side storage cannot be loaded, and the register layout of the host.
fn target_flags() -> String {
    format!("-C debuginfo=2 -C link-arg=--btf --cfg bpf_target_arch=\"{}\"", std::env::consts::ARCH)
}
