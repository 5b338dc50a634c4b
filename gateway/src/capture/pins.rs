//! Pinned links and maps: they go on enforcing when the gateway is gone.
//!
//! One directory for each workload, `cg-<cgroup id>` or the name of a run. A link's pin is called like its program, a
//! map's like the map with the version of its layout before it: `map-v1-FLOWS`.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use gateway_ebpf::abi;
use nix::mount::{MsFlags, mount};

use super::links::{self, PinnedLink};
use crate::mountinfo::MountInfo;

/// The BPF file system.
#[derive(Debug, Clone)]
pub struct BpfFs {
    root: PathBuf,
}

/// The pins of one workload: a directory of links and maps.
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
    /// A link or map cannot be pinned.
    #[error("cannot pin {}", path.display())]
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
        let mounts = MountInfo::read().map_err(PinError::NoBpfFs)?;
        if !mounts.is_mounted("bpf", Path::new(BPF_FS)) {
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
            create_directory(&self.root)?;
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

    /// The directory of pins for the workload `name`, new or as it was left.
    ///
    /// # Errors
    /// When it cannot be made, or belongs to somebody else.
    pub fn open_or_create(&self, name: &str) -> Result<Pins, PinError> {
        match self.existing(name) {
            Some(pins) => create_directory(&pins.directory).map(|()| pins),
            None => self.create(name),
        }
    }

    /// Names of the workloads that have pins.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn workloads(&self) -> Result<Vec<String>, PinError> {
        match names_in(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names.map_err(|source| PinError::Path {
                step: "read",
                path: self.root.clone(),
                source,
            }),
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
fn create_directory(path: &Path) -> Result<(), PinError> {
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

impl Pins {
    /// Where the link of the program `name` is pinned.
    pub(super) fn link_path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the map `name` is pinned. Another layout has another name, so that it is never taken for this one.
    pub(super) fn map_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{}{name}", own_maps()))
    }

    /// Whether a map or a link is pinned here.
    pub(super) fn is_empty(&self) -> bool {
        names_in(&self.directory).is_ok_and(|names| names.is_empty())
    }

    pub(super) fn restore_directory(&self) -> Result<(), PinError> {
        if let Some(root) = self.directory.parent() {
            create_directory(root)?;
        }
        create_directory(&self.directory)
    }

    /// The links that are pinned here.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn links(&self) -> Result<Vec<PinnedLink>, PinError> {
        links::pinned_links(&self.directory).map_err(|source| self.failed("read", source))
    }

    /// Whether the cgroup of every link is gone, the sockets that were made in it included: until then they are
    /// governed, wherever their processes are.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn are_dead(&self) -> Result<bool, PinError> {
        Ok(self.links()?.iter().all(|link| link.cgroup == 0))
    }

    /// When the directory was made, or last changed.
    ///
    /// # Errors
    /// When it is gone.
    pub fn changed(&self) -> Result<SystemTime, PinError> {
        fs::metadata(&self.directory)
            .and_then(|found| found.modified())
            .map_err(|source| self.failed("look at", source))
    }

    /// Removes the maps of other layouts; returns the names of the links that no program of this version is for.
    pub(super) fn tidy(&self, is_known: impl Fn(&str) -> bool) -> Result<Vec<String>, PinError> {
        let own = own_maps();
        let names = names_in(&self.directory).map_err(|source| self.failed("read", source))?;
        for name in names.iter().filter(|name| is_map(name) && !name.starts_with(&own)) {
            gone_is_as_good(fs::remove_file(self.directory.join(name)))
                .map_err(|source| self.failed("remove a map of", source))?;
        }
        let unknown = |link: &PinnedLink| link.cgroup != 0 && !is_known(&link.name);
        Ok(self.links()?.into_iter().filter(unknown).map(|link| link.name).collect())
    }

    fn failed(&self, step: &'static str, source: io::Error) -> PinError {
        PinError::Path { step, path: self.directory.clone(), source }
    }

    /// Removes every pin and the directory: with the last reference to its link, a program is detached.
    ///
    /// # Errors
    /// When one cannot be removed; what is gone already does not count.
    pub fn remove(self) -> Result<(), PinError> {
        let failed = |source| self.failed("remove", source);
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

/// How the names of maps' pins begin.
const MAP_PREFIX: &str = "map-v";

/// How those of this layout begin.
fn own_maps() -> String {
    format!("{MAP_PREFIX}{}-", abi::VERSION)
}

/// Whether a pin of this name is a map's.
pub(super) fn is_map(name: &str) -> bool {
    name.starts_with(MAP_PREFIX)
}

fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect()
}

pub(super) fn gone_is_as_good(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
