//! The compiler and the linker of the kernel object.
//!
//! The compiler needs two things that the pinned one lacks: permission for `-Z build-std`, and the sources of `core`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::apt::{self, Package};
use crate::{paths, run};

/// A compiler that can build `core` for the kernel.
pub(crate) struct KernelCompiler {
    /// `rustc` itself, never rustup's proxy: that one would choose the checkout's pinned version.
    pub(crate) rustc: PathBuf,
    /// For the user.
    pub(crate) title: &'static str,
}

const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";

const DEBIAN: &[Package] = &[
    Package {
        name: "rustc-web",
        probe: "/usr/bin/rustc",
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

/// The compiler that the machine has, ordinary nightly first.
pub(crate) fn kernel_compiler() -> Option<KernelCompiler> {
    nightly_with_sources().or_else(debian)
}

/// Where bpf-linker is.
pub(crate) fn linker() -> Option<PathBuf> {
    paths::find_program(LINKER)
}

/// Installs compiler and linker when one is missing.
pub(crate) fn ensure() -> Result<()> {
    if kernel_compiler().is_some() && linker().is_some() {
        return Ok(());
    }
    if let Some(compiler) = nightly_with_sources() {
        bail!(
            "{} with library sources is here, {LINKER} is not\n\
             remedy: cargo install {LINKER} (see its README for the LLVM it wants), then run this again",
            compiler.title
        );
    }
    run::announce(
        "no nightly tool chain with rust-src and bpf-linker: Debian's compiler with sources takes its place",
    );
    apt::ensure("the kernel object", DEBIAN)?;
    if linker().is_none() {
        let version = ["--version", LINKER_VERSION];
        let what =
            [LINKER, version[0], version[1], "--no-default-features", "--features", "llvm-22"];
        super::cargo_install(
            &what,
            &[("LLVM_PREFIX", Path::new(LLVM_PREFIX))],
            "links kernel objects",
        )?;
    }
    match kernel_compiler() {
        Some(_) => Ok(()),
        None => bail!(
            "the packages are installed, but they do not make a compiler with library sources"
        ),
    }
}

/// The newest-looking nightly of rustup, with or without library sources.
pub(crate) fn nightly() -> Option<String> {
    let list = run::output(run::command("rustup").args(["toolchain", "list"])).ok()?;
    let name = list.lines().find(|line| line.starts_with("nightly"))?;
    name.split_whitespace().next().map(str::to_owned)
}

fn nightly_with_sources() -> Option<KernelCompiler> {
    let mut rustc = run::command("rustc");
    rustc.env("RUSTUP_TOOLCHAIN", nightly()?).args(["--print", "sysroot"]);
    let sysroot = PathBuf::from(run::output(&mut rustc).ok()?.trim());
    let compiler =
        KernelCompiler { rustc: sysroot.join("bin/rustc"), title: "a nightly tool chain" };
    has_sources(&sysroot).then_some(compiler)
}

fn debian() -> Option<KernelCompiler> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let sysroot = run::output(run::command(&rustc).args(["--print", "sysroot"])).ok()?;
    let compiler = KernelCompiler { rustc, title: "Debian's compiler" };
    has_sources(Path::new(sysroot.trim())).then_some(compiler)
}

fn has_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}
