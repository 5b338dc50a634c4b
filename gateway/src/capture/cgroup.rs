//! The workload's cgroup: made empty, killed whole, removed.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

/// Tollgate's slice, below the root of the cgroup v2 hierarchy.
pub const SLICE: &str = "tollgate.slice";

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
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mount = cgroup2_mount(&mounts).ok_or(CgroupError::NoCgroup2)?;
        Ok(Self { mount })
    }

    /// Makes the empty cgroup `name` below Tollgate's slice.
    ///
    /// # Errors
    /// When it exists, or the kernel refuses.
    pub fn create(&self, name: &str) -> Result<Cgroup, CgroupError> {
        let slice = self.mount.join(SLICE);
        let path = slice.join(name);
        // Another run that ends may remove the empty slice between the two steps.
        let mut tries = 3;
        loop {
            match fs::create_dir(&slice) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    return Err(CgroupError::Step { step: "create", path: slice, source });
                }
            }
            match fs::create_dir(&path) {
                Ok(()) => {
                    return Cgroup::open(path.clone())
                        .inspect_err(|_cause| best_effort(fs::remove_dir(&path)));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 => tries -= 1,
                Err(source) => {
                    self.remove_slice_if_empty();
                    return Err(CgroupError::Step { step: "create", path, source });
                }
            }
        }
    }

    /// The cgroup `name` below Tollgate's slice, if it is there.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn existing(&self, name: &str) -> Result<Option<Cgroup>, CgroupError> {
        let path = self.mount.join(SLICE).join(name);
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

    /// Removes the slice when no workload is left in it.
    pub fn remove_slice_if_empty(&self) {
        best_effort(fs::remove_dir(self.mount.join(SLICE)));
    }
}

fn best_effort(removed: io::Result<()>) {
    if let Err(error) = removed {
        tracing::trace!(%error, "a cgroup stays");
    }
}

/// The first mount of the cgroup2 type in a mountinfo (proc(5)).
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let root = fields.next()?;
        let mount_point = fields.next()?;
        // A bind mount of a part of the hierarchy is not where cgroups can be made for all.
        (after.split(' ').next() == Some("cgroup2") && root == "/")
            .then(|| PathBuf::from(mount_point))
    })
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

    /// The processes in it (not those in cgroups below), as the calling process numbers them.
    ///
    /// # Errors
    /// When it cannot be read; a cgroup that was removed has none.
    pub fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        let path = self.path.join("cgroup.procs");
        match fs::read_to_string(&path) {
            Ok(lines) => {
                Ok(lines.lines().filter_map(|l| l.parse().ok()).map(Pid::from_raw).collect())
            }
            // ENODEV: removed while it is open.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Vec::new()),
            Err(source) => Err(CgroupError::Step { step: "read", path, source }),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_hierarchy_is_found_on_unified_and_hybrid_hosts() {
        let unified =
            "25 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = "25 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n26 1 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let v1_only = "25 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let part = "25 1 0:22 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(cgroup2_mount(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup2_mount(v1_only), None);
        assert_eq!(cgroup2_mount(part), None);
    }
}
