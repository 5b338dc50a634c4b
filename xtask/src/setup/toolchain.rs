//! The compiler and the linker of the kernel object.
//!
//! The compiler needs two things that the pinned one lacks: permission for `-Z build-std`, and the sources of `core`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::apt::{self, Package};
use crate::{paths, run};

/// A compiler that can build `core` for the kernel, and the linker that fits its LLVM.
pub(crate) struct KernelTools {
    /// `rustc` itself, never rustup's proxy: that one would choose the checkout's pinned version.
    pub(crate) rustc: PathBuf,
    /// bpf-linker.
    pub(crate) linker: PathBuf,
    /// For the user.
    pub(crate) title: &'static str,
}

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";

const DEBIAN: &[Package] = &[
    Package {
        name: "rustc-web",
        probe: DEBIAN_RUSTC,
        why: "a compiler whose library sources are packaged; the kernel object is built with its own `core`",
    },
    Package {
        name: "rust-web-src",
        probe: "/usr/lib/rustlib/src/rust/library/core",
        why: "those sources",
    },
    Package {
        name: "llvm-22-dev",
        probe: "/usr/lib/llvm-22/bin/llvm-config",
        why: "the LLVM of that compiler, into which bpf-linker is built",
    },
];

/// What the machine has, ordinary nightly first.
pub(crate) fn kernel_tools() -> Option<KernelTools> {
    ordinary().or_else(debian)
}

/// Installs what is missing.
pub(crate) fn ensure() -> Result<()> {
    if kernel_tools().is_some() {
        return Ok(());
    }
    run::announce(
        "no nightly tool chain with rust-src and bpf-linker: Debian's compiler with library sources takes its place",
    );
    apt::ensure("the kernel object", DEBIAN).context(
        "remedy on other systems: rustup toolchain install nightly --component rust-src && cargo install bpf-linker",
    )?;
    if own_linker().is_none() {
        let what =
            [LINKER, "--version", LINKER_VERSION, "--no-default-features", "--features", "llvm-22"];
        super::cargo_install(
            &what,
            &[("LLVM_PREFIX", Path::new(LLVM_PREFIX))],
            "links kernel objects",
        )?;
    }
    match kernel_tools() {
        Some(_) => Ok(()),
        None => bail!(
            "all is installed, but {DEBIAN_RUSTC} has no library sources or {LINKER} is not in target/tools"
        ),
    }
}

/// The newest-looking nightly of rustup, with or without library sources.
pub(crate) fn nightly() -> Option<String> {
    let list = run::output(run::command("rustup").args(["toolchain", "list"])).ok()?;
    let name = list.lines().find(|line| line.starts_with("nightly"))?;
    name.split_whitespace().next().map(str::to_owned)
}

/// A nightly with library sources and the user's own bpf-linker. The one in the checkout is for Debian's LLVM.
fn ordinary() -> Option<KernelTools> {
    let linker = paths::find_on_path(LINKER)?;
    let mut rustc = run::command("rustc");
    rustc.env("RUSTUP_TOOLCHAIN", nightly()?).args(["--print", "sysroot"]);
    let sysroot = PathBuf::from(run::output(&mut rustc).ok()?.trim());
    let tools =
        KernelTools { rustc: sysroot.join("bin/rustc"), linker, title: "a nightly tool chain" };
    has_sources(&sysroot).then_some(tools)
}

fn debian() -> Option<KernelTools> {
    let linker = own_linker()?;
    let sysroot = run::output(run::command(DEBIAN_RUSTC).args(["--print", "sysroot"])).ok()?;
    let tools = KernelTools { rustc: DEBIAN_RUSTC.into(), linker, title: "Debian's compiler" };
    has_sources(Path::new(sysroot.trim())).then_some(tools)
}

fn own_linker() -> Option<PathBuf> {
    let linker = paths::tools().join("bin").join(LINKER);
    linker.exists().then_some(linker)
}

fn has_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}
