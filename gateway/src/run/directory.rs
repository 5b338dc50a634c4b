//! The run directory: where a run is found again after a crash.
//!
//! It is made first and removed last, and its owner holds a lock in it while it lives. A directory whose lock is free
//! belongs to nobody: its cgroup, pins and files are swept.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::plan::Plan;
use crate::capture::{BpfFs, Cgroup, CgroupRoot};

/// Parent of all run directories.
pub(crate) const PARENT: &str = "/run/tollgate";
/// Names of runs, their cgroups and pin directories start with it.
pub(crate) const PREFIX: &str = "run-";

pub(super) struct Directory {
    path: PathBuf,
    name: String,
    /// Held as long as the run lives; the kernel lets it go when the process dies.
    _lock: Flock<File>,
}

impl Directory {
    pub(super) fn create() -> anyhow::Result<Self> {
        let parent = Path::new(PARENT);
        let name = format!("{PREFIX}{:016x}", random()?);
        let path = parent.join(&name);
        // Made under a name that the sweep does not look at, so that it is never seen without its lock.
        let unfinished = parent.join(format!(".{name}"));
        let make = || -> io::Result<Flock<File>> {
            make_below_parent(&unfinished)?;
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(unfinished.join("lock"))?;
            let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
                .map_err(|(_, errno)| io::Error::from(errno))?;
            fs::rename(&unfinished, &path)?;
            Ok(lock)
        };
        let lock = make()
            .with_context(|| format!("cannot create the run directory {}", path.display()))?;
        Ok(Self { path, name, _lock: lock })
    }

    /// Name of the run, its cgroup and its pins.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn write_plan(&self, plan: &Plan) -> anyhow::Result<()> {
        let path = plan_path(&self.path);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&serde_json::to_vec(plan)?)?;
        Ok(())
    }

    /// Makes the pipe through which init reports, and opens its reading end.
    pub(super) fn make_status(&self) -> anyhow::Result<File> {
        let path = status_path(&self.path);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
        Ok(file)
    }

    pub(super) fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.path)
            .with_context(|| format!("cannot remove {}", self.path.display()))?;
        remove_parent_if_empty();
        Ok(())
    }
}

/// Another run that ends may remove the empty parent between the two steps.
fn make_below_parent(path: &Path) -> io::Result<()> {
    let mut tries = 3;
    loop {
        DirBuilder::new().recursive(true).mode(0o755).create(PARENT)?;
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 => tries -= 1,
            made => return made,
        }
    }
}

/// Where init finds its plan.
pub(super) fn plan_path(run: &Path) -> PathBuf {
    run.join("plan.json")
}

/// Where init reports.
pub(super) fn status_path(run: &Path) -> PathBuf {
    run.join("status")
}

/// Removes what runs have left behind whose Tollgate was killed. What cannot be removed stays for the next time: it
/// harms nobody but the disk.
pub(crate) fn sweep(cgroups: &CgroupRoot, bpf: &BpfFs) {
    if let Ok(entries) = fs::read_dir(PARENT) {
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.strip_prefix('.').is_some_and(|name| name.starts_with(PREFIX)) {
                sweep_unfinished(&entry.path());
            }
            if !name.starts_with(PREFIX) {
                continue;
            }
            if let Err(error) = sweep_one(&entry.path(), name, cgroups, bpf) {
                tracing::warn!("a former run could not be swept: {error:#}");
            }
        }
    }
    let pinned = bpf.workloads().unwrap_or_default();
    let names: BTreeSet<String> = cgroups.runs().into_iter().chain(pinned).collect();
    for name in names.into_iter().filter(|name| name.starts_with(PREFIX)) {
        if let Err(error) = sweep_without_directory(&name, cgroups, bpf) {
            tracing::warn!("a former run could not be swept: {error:#}");
        }
    }
}

/// A run whose directory is gone: `/run` was emptied, or it is another mount namespace's `/run`, and the run lives.
/// What lives has processes, but for the moment between its first step and its first process.
fn sweep_without_directory(name: &str, cgroups: &CgroupRoot, bpf: &BpfFs) -> anyhow::Result<()> {
    if Path::new(PARENT).join(name).exists() {
        return Ok(());
    }
    let cgroup = cgroups.existing(name)?;
    let pins = bpf.existing(name);
    let ages = [
        cgroup.as_ref().and_then(Cgroup::seen_since),
        pins.as_ref().and_then(|pins| pins.changed().ok()),
    ];
    let is_old = |since: SystemTime| since.elapsed().is_ok_and(|age| age > UNFINISHED_MAX);
    if cgroup.as_ref().is_some_and(Cgroup::has_processes) || !ages.into_iter().flatten().all(is_old)
    {
        return Ok(());
    }
    tracing::info!(run = name, "sweeping a run whose directory is gone");
    if let Some(cgroup) = cgroup {
        cgroup.remove_empty()?;
    }
    if let Some(pins) = pins {
        pins.remove()?;
    }
    Ok(())
}

fn sweep_one(path: &Path, name: &str, cgroups: &CgroupRoot, bpf: &BpfFs) -> anyhow::Result<()> {
    let lock = match File::open(path.join("lock")) {
        Ok(lock) => lock,
        // Whoever removes the lock has removed cgroup and pins before; if it was killed then, only this is left.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return remove_all(path),
        Err(error) => return Err(error.into()),
    };
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else { return Ok(()) };
    tracing::info!(run = name, "sweeping a run whose Tollgate was killed");
    if let Some(cgroup) = cgroups.existing(name)? {
        cgroup.destroy()?;
    }
    if let Some(pins) = bpf.existing(name) {
        pins.remove()?;
    }
    remove_all(path)
}

/// What is gone already is as good.
fn remove_all(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _gone => Ok(()),
    }
}

/// A Tollgate that was killed between its first two steps has made nothing but this directory. One that is at work
/// there needs a moment.
fn sweep_unfinished(path: &Path) {
    let age = fs::metadata(path).and_then(|found| found.modified()).map(|made| made.elapsed());
    if let Ok(Ok(age)) = age
        && age > UNFINISHED_MAX
        && let Err(error) = remove_all(path)
    {
        tracing::warn!("a former run could not be swept: {error:#}");
    }
}

const UNFINISHED_MAX: Duration = Duration::from_secs(60);

fn remove_parent_if_empty() {
    if let Err(error) = fs::remove_dir(PARENT) {
        tracing::trace!(%error, "other runs live");
    }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
