//! The run directory: where a run is found again after a crash.
//!
//! It is made first and removed last, and its owner holds a lock in it while it lives. A directory whose lock is free
//! belongs to nobody: its cgroup, pins and files are swept.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::plan::Plan;
use crate::capture::{BpfFs, CgroupRoot};

/// Parent of all run directories.
pub(super) const PARENT: &str = "/run/tollgate";
/// Names of runs, their cgroups and pin directories start with it.
const PREFIX: &str = "run-";

pub(super) struct Directory {
    path: PathBuf,
    name: String,
    /// Held as long as the run lives; the kernel lets it go when the process dies.
    _lock: Flock<File>,
}

impl Directory {
    pub(super) fn create() -> anyhow::Result<Self> {
        let parent = Path::new(PARENT);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .with_context(|| format!("cannot create {PARENT}"))?;
        let name = format!("{PREFIX}{:016x}", random()?);
        let path = parent.join(&name);
        // Made under a name that the sweep does not look at, so that it is never seen without its lock.
        let unfinished = parent.join(format!(".{name}"));
        let make = || -> io::Result<Flock<File>> {
            DirBuilder::new().mode(0o700).create(&unfinished)?;
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
pub(super) fn sweep(cgroups: &CgroupRoot, bpf: &BpfFs) {
    let Ok(entries) = fs::read_dir(PARENT) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        if let Err(error) = sweep_one(&entry.path(), name, cgroups, bpf) {
            tracing::warn!("a former run could not be swept: {error:#}");
        }
    }
}

fn sweep_one(path: &Path, name: &str, cgroups: &CgroupRoot, bpf: &BpfFs) -> anyhow::Result<()> {
    let lock = match File::open(path.join("lock")) {
        Ok(lock) => lock,
        // Another sweep was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
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
    fs::remove_dir_all(path)?;
    Ok(())
}

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
