//! The state directory and the file in it: made with their modes, never widened, never followed through links.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use super::StateError;

/// Makes the directory if it is not there (mode 0700) and returns its real path.
pub(super) fn prepare(state_dir: &Path) -> Result<PathBuf, StateError> {
    let fails = |source| StateError::Directory { path: state_dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(state_dir).map_err(fails)?;
    let path = state_dir.canonicalize().map_err(fails)?;
    let mode = fs::metadata(&path).map_err(fails)?.mode() & 0o7777;
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(StateError::DirectoryOpen { path, mode });
    }
    Ok(path)
}

/// Makes the file `name` (mode 0600) if it is not there, and returns its path.
///
/// An existing file is looked at without opening it: closing a descriptor of a database would drop every lock that
/// this process holds on it, those of SQLite included (POSIX record locks belong to the process). The directory is
/// writable to its owner only, so that nobody exchanges the file in between.
pub(super) fn make_file(directory: &Path, name: &str) -> Result<PathBuf, StateError> {
    let path = directory.join(name);
    let fails = |source| StateError::File { path: path.clone(), source };
    let made = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path);
    match made {
        Ok(_closed) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = path.symlink_metadata().map_err(fails)?;
            if !metadata.is_file() {
                return Err(fails(io::Error::other("it is not a regular file")));
            }
            if metadata.mode() & 0o777 & !FILE_MODE != 0 {
                let closed = fs::Permissions::from_mode(FILE_MODE);
                fs::set_permissions(&path, closed).map_err(fails)?;
            }
        }
        Err(error) => return Err(fails(error)),
    }
    Ok(path)
}

/// Waits until no other process is opening the database. The lock ends with the file.
pub(super) fn lock(directory: &Path) -> Result<File, StateError> {
    let path = make_file(directory, LOCK_FILE)?;
    let fails = |source| StateError::File { path: path.clone(), source };
    let file = File::open(&path).map_err(fails)?;
    file.lock().map_err(fails)?;
    Ok(file)
}

/// Beside the database rather than the database itself, see [`make_file`].
const LOCK_FILE: &str = "state.lock";

const DIRECTORY_MODE: u32 = 0o700;

const FILE_MODE: u32 = 0o600;

/// Who may write into a directory may replace the files in it, whatever their modes.
const WRITABLE_BY_OTHERS: u32 = 0o022;
