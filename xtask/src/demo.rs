//! `cargo xtask demo`: three agents, real clients, real upstreams, and a count of what got past the gateway.
//!
//! The whole story happens in network namespaces of its own without a route out. The outer process makes the
//! folder and removes it; the inner one, in those namespaces, plays the story.

pub(crate) mod agent;
mod direct;
pub(crate) mod internet;
mod report;
pub(crate) mod secrets;
mod stories;
pub(crate) mod world;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::setup::{self, Group};
use crate::{build, run};
use agent::Tollgate;
use report::Report;
use secrets::Secrets;
use world::World;

/// What `cargo xtask demo` is asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The result as JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Use the optimised binary.
    #[arg(long)]
    release: bool,
    /// Only prove that the world and its counters work: nothing is governed.
    #[arg(long)]
    world_only: bool,
    /// Inside the namespaces: the folder. Set by the outer process.
    #[arg(long, hide = true, requires = "binary")]
    inside: Option<PathBuf>,
    /// Demonstrate this program instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// The verb.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match (&arguments.inside, &arguments.binary) {
        (Some(folder), Some(binary)) => play(folder, binary, arguments),
        _ => outer(arguments),
    }
}

fn outer(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Group::Extras])?;
    let binary = match &arguments.binary {
        Some(binary) => {
            binary.canonicalize().with_context(|| format!("there is no {}", binary.display()))?
        }
        None if arguments.world_only => PathBuf::from("none"),
        None => build::binary(arguments.release)?,
    };
    let folder = Folder::new()?;
    let mut inner = in_empty_world()?;
    inner.args(["demo", "--inside"]).arg(folder.path()).arg("--binary").arg(binary);
    inner.args(arguments.json.then_some("--json"));
    inner.args(arguments.world_only.then_some("--world-only"));
    wait_for_inner(&mut inner)
}

/// This program again, with mounts of its own and a network that has no interface.
pub(crate) fn in_empty_world() -> Result<Command> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this needs root: it makes network namespaces and attaches kernel programs");
    }
    let mut inner = Command::new("setpriv");
    inner
        .args(["--pdeathsig", "TERM", "unshare", "--mount", "--net"])
        .arg(std::env::current_exe()?);
    Ok(inner)
}

/// Waits for the process in its world. A signal ends that one; this one stays to clean up.
pub(crate) fn wait_for_inner(inner: &mut Command) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // The inner process inherits this, and undoes it in `heed_signals`.
    signals.thread_block()?;
    let mut child = inner.spawn().with_context(|| format!("cannot start {}", run::line(inner)))?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    std::thread::spawn(move || signals.wait().is_ok() && kill(pid, Signal::SIGTERM).is_ok());
    let status = child.wait()?;
    if !status.success() {
        bail!("what happened differs from what is promised ({status})");
    }
    Ok(())
}

/// In the inner process: a signal ends it, and with it everything that is tied to it.
pub(crate) fn heed_signals() -> Result<()> {
    Ok(SigSet::all().thread_unblock()?)
}

fn play(folder: &Path, binary: &Path, arguments: &Arguments) -> Result<()> {
    heed_signals()?;
    run::announce("an internet of its own, without a way out");
    let secrets = Secrets::new(&folder.join("secrets"))?;
    let world = World::new(folder, &secrets)?;
    let mut report = Report::default();
    if !arguments.world_only {
        let tollgate = Tollgate::new(folder, binary, &world, &secrets, &agent::rules())?;
        let outcome = stories::email(&tollgate, &world, &secrets, &mut report);
        report.told("mail", outcome);
        let outcome = stories::code(&tollgate, &world, &secrets, &mut report);
        report.told("code", outcome);
        let outcome = stories::research(&tollgate, &world, &mut report);
        report.told("research", outcome);
        let outcome = secrets::hunt(&tollgate, &secrets, &mut report);
        report.told("the hunt for secrets", outcome);
        let outcome = direct::attempts(&tollgate, &world, &mut report);
        report.told("the ways past the gateway", outcome);
        let outcome = stories::audit(&tollgate, &world, &secrets, &mut report);
        report.told("the audit", outcome);
    }
    // Last: what this sends is what the counters must not have seen before.
    let outcome = direct::control(folder, &world, &secrets, &mut report);
    report.told("the control", outcome);
    if arguments.json {
        println!("{}", report.json()?);
    } else {
        println!("{}", report.table());
    }
    if !report.is_as_promised() {
        bail!("{} of {} differ", report.differing(), report.rows());
    }
    Ok(())
}

/// A folder for this run, gone when it ends.
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tollgate-demo-{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("warning: {} is left over: {error}", self.path.display());
        }
    }
}
