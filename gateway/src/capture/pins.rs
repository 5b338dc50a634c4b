//! Pinned links: they go on enforcing when the gateway is gone.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use nix::mount::{MsFlags, mount};

/// The BPF file system.
#[derive(Debug, Clone)]
pub struct BpfFs {
    root: PathBuf,
}

/// The pins of one workload: a directory of links.
#[derive(Debug, Clone)]
pub struct Pins {
    directory: PathBuf,
}

/// The BPF file system cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It is not mounted and cannot be.
    #[error(
        "no BPF file system at {BPF_FS}, and it cannot be mounted; try: mount -t bpf bpf {BPF_FS}"
    )]
    NoBpfFs(#[source] io::Error),
    /// Somebody else made Tollgate's directory, and could move what is in it.
    #[error("{} belongs to somebody else; remove it", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// A directory or pin cannot be made or removed.
    #[error("cannot {step} {}", path.display())]
    Path {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A link cannot be pinned.
    #[error("cannot pin the link {}", path.display())]
    Link {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: aya::pin::PinError,
    },
}

const BPF_FS: &str = "/sys/fs/bpf";

impl BpfFs {
    /// Finds the BPF file system at its usual place and mounts it there when it is not.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn find_or_mount() -> Result<Self, PinError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(PinError::NoBpfFs)?;
        if !is_bpf_mounted(&mounts) {
            mount(
                Some("bpf"),
                BPF_FS,
                Some("bpf"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                // The kernel's own default lets everybody make directories in it.
                Some("mode=0700"),
            )
            .map_err(|errno| PinError::NoBpfFs(errno.into()))?;
        }
        Ok(Self { root: Path::new(BPF_FS).join("tollgate") })
    }

    /// A new, empty directory of pins for the workload `name`.
    ///
    /// # Errors
    /// When there is one already.
    pub fn create(&self, name: &str) -> Result<Pins, PinError> {
        let directory = self.root.join(name);
        // Another run that ends may remove the empty root between the two steps.
        let mut tries = 3;
        loop {
            create_root(&self.root)?;
            match DirBuilder::new().mode(0o700).create(&directory) {
                Ok(()) => return Ok(Pins { directory }),
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 => tries -= 1,
                Err(source) => {
                    self.remove_if_empty();
                    return Err(PinError::Path { step: "create", path: directory, source });
                }
            }
        }
    }

    /// The pins that a workload of this name has left behind, if any.
    #[must_use]
    pub fn existing(&self, name: &str) -> Option<Pins> {
        let directory = self.root.join(name);
        directory.is_dir().then_some(Pins { directory })
    }

    /// Whether a daemon, living or dead, has pinned programs for a cgroup.
    #[must_use]
    pub fn has_governed(&self) -> bool {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name())
            .any(|name| name.as_encoded_bytes().starts_with(b"cg-"))
    }

    /// Removes Tollgate's own directory when nothing is pinned in it any more.
    pub fn remove_if_empty(&self) {
        if let Err(error) = fs::remove_dir(&self.root) {
            tracing::trace!(%error, "other workloads are pinned");
        }
    }
}

/// A BPF file system that others may write to is common: a directory of this name that is not root's alone is refused.
fn create_root(path: &Path) -> Result<(), PinError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let ours = |found: &fs::Metadata| {
                found.is_dir() && found.uid() == 0 && found.mode() & MODE_OTHERS_WRITE == 0
            };
            match fs::symlink_metadata(path) {
                // Gone again: the next try makes it.
                Err(_gone) => Ok(()),
                Ok(found) if ours(&found) => Ok(()),
                Ok(_foreign) => Err(PinError::Foreign { path: path.to_owned() }),
            }
        }
        Err(source) => Err(PinError::Path { step: "create", path: path.to_owned(), source }),
    }
}

const MODE_OTHERS_WRITE: u32 = 0o022;

/// Whether a mountinfo (proc(5)) has a BPF file system at the usual place.
fn is_bpf_mounted(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let mount_point = line.split(' ').nth(4);
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        mount_point == Some(BPF_FS) && kind == Some("bpf")
    })
}

impl Pins {
    /// Where the link of the program `name` is pinned.
    pub(super) fn link_path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn pin_link(&self, name: &str, link: FdLink) -> Result<(), PinError> {
        let path = self.directory.join(name);
        link.pin(&path).map_err(|source| PinError::Link { path, source })?;
        Ok(())
    }

    /// Removes every pin and the directory: with the last reference to its link, a program is detached.
    ///
    /// # Errors
    /// When one cannot be removed; what is gone already does not count.
    pub fn remove(self) -> Result<(), PinError> {
        let failed =
            |source| PinError::Path { step: "remove", path: self.directory.clone(), source };
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed(source)),
        };
        for entry in entries {
            gone_is_as_good(fs::remove_file(entry.map_err(failed)?.path())).map_err(failed)?;
        }
        gone_is_as_good(fs::remove_dir(&self.directory)).map_err(failed)
    }
}

fn gone_is_as_good(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bpf_file_system_counts_only_at_its_place_and_by_its_type() {
        let yes = "30 25 0:27 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n";
        let elsewhere = "30 25 0:27 / /mnt/bpf rw,nosuid - bpf bpf rw\n";
        let other_type = "30 25 0:27 / /sys/fs/bpf rw,nosuid - tmpfs bpf rw\n";
        assert!(is_bpf_mounted(yes));
        assert!(!is_bpf_mounted(elsewhere));
        assert!(!is_bpf_mounted(other_type));
    }
}
