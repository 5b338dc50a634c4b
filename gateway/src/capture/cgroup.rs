//! The workload's cgroup: made empty, killed whole, removed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::mountinfo::MountInfo;

/// Tollgate's slice, below the root of the cgroup v2 hierarchy: what others start in it is closed from its creation.
pub const SLICE: &str = "tollgate.slice";
/// The parent of the cgroups that Tollgate makes itself, with their programs before their first process.
pub const RUNS: &str = "tollgate-run";

/// Where the cgroup v2 hierarchy is mounted: `/sys/fs/cgroup`, or elsewhere on hybrid hosts.
#[derive(Debug, Clone)]
pub struct CgroupRoot {
    mount: PathBuf,
}

/// One workload's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
    id: u64,
}

/// A cgroup cannot be made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 hierarchy.
    #[error(
        "no cgroup v2 hierarchy is mounted; boot with systemd.unified_cgroup_hierarchy=1, or mount one: mount -t cgroup2 none /sys/fs/cgroup"
    )]
    NoCgroup2,
    /// The kernel refuses one step.
    #[error("cannot {step} the cgroup {}", path.display())]
    Step {
        /// What was tried.
        step: &'static str,
        /// Which cgroup.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Killed processes did not end.
    #[error("processes in the cgroup {} did not end within {} s", path.display(), KILL_PATIENCE.as_secs())]
    StillPopulated {
        /// Which cgroup.
        path: PathBuf,
    },
}

/// How long killed processes may take to end: uninterruptible I/O holds them.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl CgroupRoot {
    /// Finds the mount of the cgroup v2 hierarchy.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> Result<Self, CgroupError> {
        let mounts = MountInfo::read().map_err(|_unreadable| CgroupError::NoCgroup2)?;
        let mount = mounts.whole("cgroup2").ok_or(CgroupError::NoCgroup2)?;
        Ok(Self { mount: mount.to_owned() })
    }

    /// Makes the empty cgroup `name` below [`RUNS`].
    ///
    /// # Errors
    /// When it exists, or the kernel refuses.
    pub fn create(&self, name: &str) -> Result<Cgroup, CgroupError> {
        let parent = self.mount.join(RUNS);
        let path = parent.join(name);
        // Another run that ends may remove the empty parent between the two steps.
        let mut tries = 3;
        loop {
            make_directory(&parent)?;
            match fs::create_dir(&path) {
                Ok(()) => {
                    return Cgroup::open(path.clone())
                        .inspect_err(|_cause| best_effort(fs::remove_dir(&path)));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 => tries -= 1,
                Err(source) => {
                    self.remove_runs_if_empty();
                    return Err(CgroupError::Step { step: "create", path, source });
                }
            }
        }
    }

    /// The cgroup `name` below [`RUNS`], if it is there.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn existing(&self, name: &str) -> Result<Option<Cgroup>, CgroupError> {
        let path = self.mount.join(RUNS).join(name);
        if path.is_dir() { Cgroup::open(path).map(Some) } else { Ok(None) }
    }

    /// Where the hierarchy is mounted.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The cgroup at `path`, which is below the mount of the hierarchy.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self, path: &Path) -> Result<Cgroup, CgroupError> {
        Cgroup::open(path.to_owned())
    }

    /// The cgroup of the calling process, as a path below the mount, where it is in one.
    #[must_use]
    pub fn own(&self) -> Option<PathBuf> {
        cgroup_of_process(nix::unistd::getpid())
    }

    /// Tollgate's slice, made where it is not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn slice(&self) -> Result<Cgroup, CgroupError> {
        let path = self.mount.join(SLICE);
        make_directory(&path)?;
        Cgroup::open(path)
    }

    /// Names of the cgroups below [`RUNS`].
    #[must_use]
    pub fn runs(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.mount.join(RUNS)) else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// The path of the cgroup with this id, below the mount.
    #[must_use]
    pub fn path_of(&self, id: u64) -> Option<PathBuf> {
        let found = find_id(&self.mount, id)?;
        found.strip_prefix(&self.mount).ok().map(|below| Path::new("/").join(below))
    }

    /// Removes [`RUNS`] when nothing is left in it.
    pub fn remove_runs_if_empty(&self) {
        best_effort(fs::remove_dir(self.mount.join(RUNS)));
    }
}

/// The cgroup of a process in the unified hierarchy, as a path below its mount, where it is in one (proc(5)).
#[must_use]
pub fn cgroup_of_process(pid: Pid) -> Option<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    table.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::Step { step: "create", path: path.to_owned(), source: error })
        }
        _there => Ok(()),
    }
}

fn best_effort(removed: io::Result<()>) {
    if let Err(error) = removed {
        tracing::trace!(%error, "a cgroup stays");
    }
}

impl Cgroup {
    fn open(path: PathBuf) -> Result<Self, CgroupError> {
        let failed = |source| CgroupError::Step { step: "open", path: path.clone(), source };
        let directory = File::open(&path).map_err(failed)?;
        // The inode number of the directory is the id that bpf_get_current_cgroup_id returns (kernfs, 64-bit).
        let id = directory.metadata().map_err(failed)?.ino();
        Ok(Self { path, directory, id })
    }

    /// The kernel's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's ids of it and of the cgroups below it.
    ///
    /// # Errors
    /// When it cannot be read; one below that goes meanwhile is left out.
    pub fn ids(&self) -> Result<BTreeSet<u64>, CgroupError> {
        let mut found = BTreeSet::from([self.id]);
        let failed = |source| CgroupError::Step { step: "read", path: self.path.clone(), source };
        collect_ids(&self.path, &mut found).map_err(failed)?;
        Ok(found)
    }

    /// The processes in it and in the cgroups below it, as the calling process numbers them: 0 stands for one that it
    /// cannot see.
    ///
    /// # Errors
    /// When it cannot be read; a cgroup that was removed has none.
    pub fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        let mut found = Vec::new();
        let failed = |source| CgroupError::Step { step: "read", path: self.path.clone(), source };
        collect_processes(&self.path, &mut found).map_err(failed)?;
        Ok(found)
    }

    /// Whether a process is in it or below it.
    #[must_use]
    pub fn has_processes(&self) -> bool {
        is_populated(&self.path).unwrap_or(false)
    }

    /// A time after which it was made: the kernel does not keep that, but when it first looked at the directory.
    #[must_use]
    pub fn seen_since(&self) -> Option<SystemTime> {
        let found = self.directory.metadata().ok()?;
        let seconds = u64::try_from(found.ctime()).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// Whether its path still leads to this very cgroup: one that was removed and made again is another one.
    #[must_use]
    pub fn is_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.id)
    }

    /// The file that moves the process that writes `0` to it into this cgroup.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_procs(&self) -> Result<File, CgroupError> {
        let path = self.path.join("cgroup.procs");
        File::options().write(true).open(&path).map_err(|source| CgroupError::Step {
            step: "open",
            path,
            source,
        })
    }

    /// Removes it and those below it, where there is no process in any.
    ///
    /// # Errors
    /// When there is one, or the kernel refuses.
    pub fn remove_empty(self) -> Result<(), CgroupError> {
        let failed = |source| CgroupError::Step { step: "remove", path: self.path.clone(), source };
        remove_tree(&self.path).map_err(failed)
    }

    /// Kills every process in it and below, waits until they are gone, and removes it.
    ///
    /// # Errors
    /// When processes do not end, or the kernel refuses.
    pub fn destroy(self) -> Result<(), CgroupError> {
        let step = |step, source| CgroupError::Step { step, path: self.path.clone(), source };
        fs::write(self.path.join("cgroup.kill"), "1").map_err(|source| step("kill", source))?;
        let deadline = Instant::now() + KILL_PATIENCE;
        while is_populated(&self.path).map_err(|source| step("watch", source))? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::StillPopulated { path: self.path.clone() });
            }
            wait_for_event(&self.path, left).map_err(|source| step("watch", source))?;
        }
        remove_tree(&self.path).map_err(|source| step("remove", source))
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn collect_processes(path: &Path, found: &mut Vec<Pid>) -> io::Result<()> {
    match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(lines) => {
            found.extend(lines.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw));
        }
        // A threaded cgroup does not say; the one above it, which is not threaded, lists its processes.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return gone_has_none(error),
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return gone_has_none(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), found)?;
        }
    }
    Ok(())
}

fn collect_ids(path: &Path, found: &mut BTreeSet<u64>) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return gone_has_none(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(metadata) = entry.metadata()
        {
            found.insert(metadata.ino());
            collect_ids(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// ENODEV: removed while it is open.
fn gone_has_none(error: io::Error) -> io::Result<()> {
    let is_gone =
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV);
    if is_gone { Ok(()) } else { Err(error) }
}

fn is_populated(path: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string(path.join("cgroup.events"))?.lines().any(|line| line == "populated 1"))
}

/// Waits until `cgroup.events` changes (the kernel raises POLLPRI on it), in slices, as a change between reading and
/// polling raises nothing.
fn wait_for_event(path: &Path, left: Duration) -> io::Result<()> {
    let events = File::open(path.join("cgroup.events"))?;
    let slice = left.min(Duration::from_millis(50));
    let timeout = PollTimeout::try_from(slice).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
    poll(&mut fds, timeout)?;
    Ok(())
}

fn find_id(path: &Path, id: u64) -> Option<PathBuf> {
    for entry in fs::read_dir(path).ok()?.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.metadata().is_ok_and(|found| found.ino() == id) {
            return Some(entry.path());
        }
        if let Some(found) = find_id(&entry.path(), id) {
            return Some(found);
        }
    }
    None
}

/// Removes a cgroup and those that its processes made below it.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
