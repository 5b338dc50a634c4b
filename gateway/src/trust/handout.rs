//! What a container is given when it is created, so that its clients trust the CA from the first instruction.
//!
//! Stores in the image are covered once the container runs. Before that, and for clients with roots of their own, a
//! folder is mounted and variables name the files in it. A folder and not files, so that a container sees the files
//! that replace them.
//!
//! | file | holds |
//! |---|---|
//! | [`BUNDLE`] | the host's roots and the CA, for variables that replace a client's roots |
//! | [`CA`] | the CA alone, for variables that add to them |

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::bundle::{self, BundleError};
use super::environment;

/// Mounts and variables of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handout {
    /// The folder on the host, which [`publish`] fills.
    pub source: PathBuf,
    /// Where the container has it, read-only.
    pub target: PathBuf,
    /// The variables, none of them twice. One that the container's own configuration sets is to be left as it is: the
    /// file that it names is covered like the image's.
    pub variables: Vec<(&'static str, PathBuf)>,
}

/// Why there is nothing to hand out.
#[derive(Debug, thiserror::Error)]
pub enum HandoutError {
    /// The bundle cannot be made.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The system refuses.
    #[error("cannot write {}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Mounts and variables for a container that is created on a host with this state directory. The one source for the OCI
/// runtime wrapper and for `docker-args`; it touches no file.
///
/// There is no variable for Java: the one that every Java reads (`JAVA_TOOL_OPTIONS`) makes it write to the standard
/// error of every program, and its stores are covered like all others.
#[must_use]
pub fn handout(state_dir: &Path) -> Handout {
    let target = Path::new(TARGET);
    Handout {
        source: state_dir.join(FOLDER),
        target: target.to_path_buf(),
        variables: environment::variables(&target.join(BUNDLE), &target.join(CA)),
    }
}

/// Writes what [`handout`] hands out: the first of the host's bundles in `system` extended by `ca_pem`, and `ca_pem`
/// itself. Whoever reads meanwhile reads the old file or the new one.
///
/// # Errors
/// When the bundle cannot be made or written.
pub fn publish(state_dir: &Path, system: &[PathBuf], ca_pem: &str) -> Result<(), HandoutError> {
    let folder = state_dir.join(FOLDER);
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| HandoutError::Write { path, source }
    };
    // Containers' users read it, whatever this process withholds from new files; the state directory is the gateway's
    // alone.
    make_folder(&folder).map_err(failed(&folder))?;
    let merged = bundle::merged(system, ca_pem)?;
    for (name, content) in [(BUNDLE, merged.as_str()), (CA, ca_pem)] {
        let path = folder.join(name);
        write(&path, content).map_err(failed(&path))?;
    }
    Ok(())
}

fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _there => fs::set_permissions(folder, Permissions::from_mode(0o755)),
    }
}

fn write(path: &Path, content: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|known| known == content.as_bytes()) {
        return Ok(());
    }
    let part = path.with_extension(format!("{}.part", std::process::id()));
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _free => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(&part)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(part, path)
}

/// Below the state directory.
const FOLDER: &str = "trust";
/// In the container.
const TARGET: &str = "/run/tollgate";
/// Its name in the folder.
const BUNDLE: &str = "ca-bundle.pem";
/// Its name in the folder.
const CA: &str = "ca.pem";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::terminate::{self, Authority};

    #[test]
    fn what_is_published_is_what_the_variables_name_and_everybody_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let pem = Authority::open(folder.path()).unwrap().trusted_pem();
        publish(folder.path(), &[], &pem).unwrap();
        let handout = handout(folder.path());
        let files: Vec<PathBuf> = handout
            .variables
            .iter()
            .filter_map(|(_name, value)| value.strip_prefix(&handout.target).ok())
            .map(|below| handout.source.join(below))
            .collect();
        assert!(files.len() > 10, "{handout:?}");
        for file in files {
            assert_eq!(fs::read_to_string(&file).unwrap(), pem, "{}", file.display());
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        }
        assert_eq!(fs::metadata(&handout.source).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn what_has_not_changed_is_not_written_and_what_has_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let pem = Authority::open(folder.path()).unwrap().trusted_pem();
        let file = folder.path().join(FOLDER).join(CA);
        let inode = || fs::metadata(&file).unwrap().ino();
        publish(folder.path(), &[], &pem).unwrap();
        let first = inode();
        publish(folder.path(), &[], &pem).unwrap();
        assert_eq!(inode(), first);
        terminate::rotate(folder.path(), time::Duration::hours(1)).unwrap();
        let both = terminate::trusted_pem(folder.path()).unwrap();
        let held = fs::File::open(&file).unwrap();
        publish(folder.path(), &[], &both).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), both);
        assert_eq!(io::read_to_string(held).unwrap(), pem, "a reader has the old one whole");
        assert!(matches!(publish(folder.path(), &[], "no CA"), Err(HandoutError::Bundle(_))));
    }
}
