//! The state directory and the file in it: made with their modes, never widened, never followed through links.

use std::fs::{self, DirBuilder, File, OpenOptions};
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

/// Opens the file `name` in the directory, making it (mode 0600) if it is not there.
pub(super) fn open_file(directory: &Path, name: &str) -> Result<(PathBuf, File), StateError> {
    let path = directory.join(name);
    let fails = |source| StateError::File { path: path.clone(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&path)
        .map_err(fails)?;
    let mode = file.metadata().map_err(fails)?.mode() & 0o777;
    if mode & !FILE_MODE != 0 {
        file.set_permissions(fs::Permissions::from_mode(FILE_MODE)).map_err(fails)?;
    }
    Ok((path, file))
}

const DIRECTORY_MODE: u32 = 0o700;

const FILE_MODE: u32 = 0o600;

/// Who may write into a directory may replace the files in it, whatever their modes.
const WRITABLE_BY_OTHERS: u32 = 0o022;
