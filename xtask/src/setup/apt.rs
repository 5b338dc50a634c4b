//! System packages by apt: only what is missing, one `apt-get` at a time, no service started.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{paths, run};

/// A system package, and how to see that what it brings is there already, whoever brought it.
pub(crate) struct Package {
    /// Debian's name.
    pub(crate) name: &'static str,
    /// An absolute path, or a program to look for.
    pub(crate) probe: &'static str,
    /// Why it is needed, for the user.
    pub(crate) why: &'static str,
}

const LOG: &str = "apt.log";
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs those of `packages` whose probe finds nothing.
pub(crate) fn ensure(purpose: &str, packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !is_there(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    run::announce(&format!("missing for {purpose}:"));
    for package in &missing {
        eprintln!("    {} ({})", package.name, package.why);
    }
    let names = missing.iter().map(|package| package.name).collect::<Vec<_>>().join(" ");
    let by_hand = format!("install these by hand and run this again: {names}");
    if paths::find_program("apt-get").is_none() {
        bail!("this machine has no apt-get\nremedy: {by_hand}");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("installing packages needs root\nremedy: sudo apt-get install {names}");
    }
    let _quiet = ServicesStayOff::new()?;
    run::logged(
        "apt-get update",
        &mut apt_get(&["update"]),
        LOG,
        "a package mirror must be reachable",
    )?;
    for package in &missing {
        let step = format!("apt-get install {}", package.name);
        run::logged(&step, &mut apt_get(&["install", package.name]), LOG, &by_hand)?;
    }
    match missing.iter().find(|package| !is_there(package)) {
        Some(package) => {
            bail!("{} is installed, but {} is still missing", package.name, package.probe)
        }
        None => Ok(()),
    }
}

fn is_there(package: &Package) -> bool {
    if package.probe.starts_with('/') {
        return Path::new(package.probe).exists();
    }
    paths::find_program(package.probe).is_some()
}

fn apt_get(arguments: &[&str]) -> std::process::Command {
    let mut apt = run::command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    // Another apt on the machine is waited for, not disturbed.
    apt.args(["-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=600"])
        .args(arguments);
    apt
}

/// Keeps maintainer scripts from starting servers (an nginx on port 80 is not what the user asked for).
/// A policy that the machine already has is left alone.
struct ServicesStayOff {
    ours: bool,
}

impl ServicesStayOff {
    fn new() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        // Should this process be killed before it removes the file, the file no longer forbids anything.
        let script = format!(
            "#!/bin/sh\n# Written by `cargo xtask setup` for as long as it runs.\n[ -d /proc/{} ] && exit 101\nexit 0\n",
            std::process::id()
        );
        let mut file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY)
            .with_context(|| format!("cannot write {POLICY}"))?;
        file.write_all(script.as_bytes())?;
        Ok(Self { ours: true })
    }
}

impl Drop for ServicesStayOff {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("warning: {POLICY} is left over: {error}");
        }
    }
}
