//! `cargo xtask setup`: brings what building and testing need, says what and why, and does nothing twice.
//!
//! An ordinary machine has a nightly tool chain with `rust-src` and a `bpf-linker`: then nothing is installed.
//! Without them, and with apt, Debian's own compiler with library sources takes their place.
//! Only system packages are written outside the checkout.

mod apt;
pub(crate) mod toolchain;

use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{paths, run};
use apt::Package;

/// What `cargo xtask setup` is asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The groups to bring; without any, `build` and `extras`.
    groups: Vec<Group>,
}

/// Things that are needed together.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// The compiler and the linker of the kernel object.
    Build,
    /// Real clients, servers and tools that tests and the demonstration run.
    Extras,
    /// cargo-fuzz.
    Fuzz,
    /// An emulator, and what makes initial file systems for it.
    Kernels,
}

/// The verb.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let wanted: &[Group] = if arguments.groups.is_empty() {
        &[Group::Build, Group::Extras]
    } else {
        &arguments.groups
    };
    ensure(wanted)?;
    eprintln!("setup: everything is there");
    Ok(())
}

/// Brings the groups; silent when nothing is missing.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    for group in groups {
        match group {
            Group::Build => toolchain::ensure()?,
            Group::Extras => apt::ensure("what tests and the demonstration run", EXTRAS)?,
            Group::Fuzz => fuzz()?,
            Group::Kernels => apt::ensure("running other kernels", KERNELS)?,
        }
    }
    Ok(())
}

/// Builds a tool from the crates registry into the checkout.
pub(crate) fn cargo_install(what: &[&str], environment: &[(&str, &Path)], why: &str) -> Result<()> {
    // Started in the checkout, whose tool chain it takes.
    let mut cargo = run::command("cargo");
    cargo.arg("install").args(what).arg("--root").arg(paths::tools()).arg("--locked");
    // Its own target folder: the workspace's would mix two sets of flags, cargo's default is outside the checkout.
    cargo.env("CARGO_TARGET_DIR", paths::target().join("tools-build"));
    // The caller's flags are not meant for a tool.
    cargo.env_remove("RUSTFLAGS");
    for (name, value) in environment {
        cargo.env(name, value);
    }
    let name = what.first().copied().unwrap_or("a tool");
    let step = format!("building {name} into target/tools: {why}");
    run::logged(
        &step,
        &mut cargo,
        "cargo-install.log",
        "read the log; a crates registry must be reachable",
    )
}

fn fuzz() -> Result<()> {
    if paths::find_program("cargo-fuzz").is_some() {
        return Ok(());
    }
    if toolchain::nightly().is_none() {
        bail!(
            "fuzzing needs a nightly compiler (sanitizers and coverage)\nremedy: rustup toolchain install nightly"
        );
    }
    cargo_install(&["cargo-fuzz"], &[], "drives the fuzz targets in gateway/fuzz")
}

const EXTRAS: &[Package] = &[
    Package {
        name: "ca-certificates",
        probe: "/etc/ssl/certs/ca-certificates.crt",
        why: "the roots to which tests add",
    },
    Package { name: "curl", probe: "curl", why: "a real client" },
    Package {
        name: "git",
        probe: "git",
        why: "a real client, and the server side of git over HTTPS",
    },
    Package { name: "python3", probe: "python3", why: "a real client with its own trust store" },
    Package { name: "nodejs", probe: "node", why: "a real client with its own trust store" },
    Package {
        name: "openssl",
        probe: "openssl",
        why: "the certificates of the demonstration's internet",
    },
    Package { name: "iproute2", probe: "ip", why: "network namespaces" },
    Package {
        name: "nftables",
        probe: "nft",
        why: "counts the packets that arrive where none may",
    },
    Package { name: "util-linux", probe: "setpriv", why: "children that end with their parent" },
    Package { name: "nginx-light", probe: "nginx", why: "real upstreams (HTTP/1.1, HTTP/2, TLS)" },
    Package { name: "fcgiwrap", probe: "fcgiwrap", why: "git's own HTTP backend behind nginx" },
    Package { name: "gcc", probe: "cc", why: "builds the programs that tests attack with" },
    Package {
        name: "libc6-dev",
        probe: "/usr/include/stdio.h",
        why: "the C library for those programs, static ones included",
    },
    Package { name: "procps", probe: "ps", why: "what a command sees of processes" },
    Package { name: "musl-tools", probe: "musl-gcc", why: "programs with another C library" },
    Package { name: "golang-go", probe: "go", why: "programs with a resolver of their own" },
    Package {
        name: "docker-compose",
        probe: "docker-compose",
        why: "several containers at once, as their operators start them",
    },
    Package { name: "podman", probe: "podman", why: "containers of another engine" },
    Package { name: "docker.io", probe: "dockerd", why: "containers of a real engine" },
    Package { name: "iptables", probe: "iptables", why: "the engine's own networks" },
    Package {
        name: "busybox-static",
        probe: "busybox",
        why: "the smallest image, and a first process",
    },
    Package { name: "wget", probe: "wget", why: "a real client with another TLS library" },
    Package {
        name: "openjdk-17-jdk-headless",
        probe: "javac",
        why: "a real client with its own trust store",
    },
    Package {
        name: "python3-requests",
        probe: "/usr/lib/python3/dist-packages/requests",
        why: "a library of clients that brings roots",
    },
    Package {
        name: "python3-httpx",
        probe: "/usr/lib/python3/dist-packages/httpx",
        why: "another",
    },
    Package {
        name: "python3-aiohttp",
        probe: "/usr/lib/python3/dist-packages/aiohttp",
        why: "one that asks OpenSSL for them",
    },
    Package {
        name: "python3-pycurl",
        probe: "/usr/share/doc/python3-pycurl",
        why: "libcurl with GnuTLS",
    },
    Package {
        name: "gnutls-bin",
        probe: "gnutls-cli",
        why: "a real client with another TLS library",
    },
    Package { name: "ruby", probe: "ruby", why: "a real client" },
    Package { name: "php-cli", probe: "php", why: "a real client" },
    Package { name: "npm", probe: "npm", why: "a real client with roots compiled in" },
    Package {
        name: "node-undici",
        probe: "/usr/share/nodejs/undici",
        why: "a library with those roots",
    },
    Package { name: "node-axios", probe: "/usr/share/nodejs/axios", why: "another" },
];

const KERNELS: &[Package] = &[
    Package {
        name: "qemu-system-x86",
        probe: "qemu-system-x86_64",
        why: "emulates a machine for another kernel",
    },
    Package { name: "kmod", probe: "depmod", why: "which modules that kernel loads first" },
    Package { name: "busybox-static", probe: "busybox", why: "its first process" },
    Package { name: "cpio", probe: "cpio", why: "packs its initial file system" },
    Package { name: "xz-utils", probe: "xz", why: "unpacks its modules" },
];
