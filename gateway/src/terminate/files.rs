//! The CA's files: made with their final mode under a temporary name, then renamed; never opened wider and
//! narrowed afterwards. What others could have read or replaced is refused, not repaired.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Why a file or directory is unusable. Each text names the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Others can read a secret, or replace it.
    #[error(
        "{} has mode {mode:04o}: others could {what}; if none did, run `chmod {wanted:04o} {}`, else remove \
         ca.key and ca.pem to make a new CA", path.display(), path.display()
    )]
    TooOpen {
        /// Which one.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What these bits let others do.
        what: &'static str,
        /// The mode that it should have.
        wanted: u32,
    },
    /// Somebody else owns it, and can change it at will.
    #[error("{} belongs to user {owner}; it must belong to root or to user {user}, who runs this program", path.display())]
    Owner {
        /// Which one.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who runs the program.
        user: u32,
    },
    /// A directory, a device, a pipe.
    #[error("{} is not a regular file; move it away", path.display())]
    NotAFile {
        /// Which one.
        path: PathBuf,
    },
    /// Not what this program wrote.
    #[error("{} is longer than {FILE_MAX_BYTES} bytes, which no key or certificate is; move it away", path.display())]
    TooLarge {
        /// Which one.
        path: PathBuf,
    },
}

/// The directory of the CA, held locked: as long as this lives, no other process makes a CA in it.
#[derive(Debug)]
pub(super) struct LockedDir {
    path: PathBuf,
    /// An advisory lock, gone when the file is closed, however the process ends.
    _lock: File,
}

impl LockedDir {
    /// Makes the directory (0700) where it is missing, checks it, and waits for its lock. The lock is held for the
    /// milliseconds that making a CA takes.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(path)
            .map_err(|source| io_error("create", path, source))?;
        let directory = File::open(path).map_err(|source| io_error("open", path, source))?;
        check(&directory, path, MODE_OTHERS_WRITE, "replace what is in it", DIRECTORY_MODE)?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(SECRET_MODE)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&lock_path)
            .map_err(|source| io_error("open", &lock_path, source))?;
        lock.lock().map_err(|source| io_error("lock", &lock_path, source))?;
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// Where `name` is.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a file that nobody else may have read; `None` where there is none.
    pub(super) fn read_secret(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
        self.read(name, MODE_OTHERS, "have read it", SECRET_MODE)
    }

    /// Reads a file that nobody else may have written; `None` where there is none.
    pub(super) fn read_public(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
        self.read(name, MODE_OTHERS_WRITE, "have replaced it", PUBLIC_MODE)
    }

    /// Writes a file that only its owner reads.
    pub(super) fn write_secret(&self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.write(name, content, SECRET_MODE)
    }

    /// Writes a file that everybody reads.
    pub(super) fn write_public(&self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.write(name, content, PUBLIC_MODE)
    }

    /// Gives a file another's name, in whose place it is from then on.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        let path = self.join(from);
        fs::rename(&path, self.join(to)).map_err(|source| io_error("rename", &path, source))?;
        self.sync()
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), FileError> {
        let path = self.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &path, source))
            }
            _gone => self.sync(),
        }
    }

    fn sync(&self) -> Result<(), FileError> {
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| io_error("sync", &self.path, source))
    }

    fn read(
        &self,
        name: &str,
        forbidden: u32,
        what: &'static str,
        wanted: u32,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
        let path = self.join(name);
        // Non-blocking, so that a pipe in the file's place does not hang the start.
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("open", &path, source)),
        };
        let metadata = check(&file, &path, forbidden, what, wanted)?;
        if !metadata.is_file() {
            return Err(FileError::NotAFile { path });
        }
        // One allocation: a buffer that grows leaves unwiped copies behind.
        let mut content = Zeroizing::new(Vec::with_capacity(FILE_MAX_BYTES + 1));
        let limit = u64::try_from(FILE_MAX_BYTES + 1).unwrap_or(u64::MAX);
        file.take(limit)
            .read_to_end(&mut content)
            .map_err(|source| io_error("read", &path, source))?;
        if content.len() > FILE_MAX_BYTES {
            return Err(FileError::TooLarge { path });
        }
        Ok(Some(content))
    }

    /// The lock makes the fixed temporary name ours: what stands there is the rest of a process that was killed.
    fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), FileError> {
        let temporary_name = format!("{name}.new");
        let temporary = self.join(&temporary_name);
        self.remove(&temporary_name)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)
            .map_err(|source| io_error("create", &temporary, source))?;
        file.write_all(content)
            .and_then(|()| file.sync_all())
            .map_err(|source| io_error("write", &temporary, source))?;
        self.rename(&temporary_name, name)
    }
}

/// Looks at the open file and not at its path, which may mean another file by now.
fn check(
    file: &File,
    path: &Path,
    forbidden: u32,
    what: &'static str,
    wanted: u32,
) -> Result<fs::Metadata, FileError> {
    let metadata = file.metadata().map_err(|source| io_error("look at", path, source))?;
    let mode = metadata.mode() & MODE_PERMISSIONS;
    if mode & forbidden != 0 {
        return Err(FileError::TooOpen { path: path.to_path_buf(), mode, what, wanted });
    }
    let (owner, user) = (metadata.uid(), nix::unistd::geteuid().as_raw());
    if owner != 0 && owner != user {
        return Err(FileError::Owner { path: path.to_path_buf(), owner, user });
    }
    Ok(metadata)
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> FileError {
    FileError::Io { action, path: path.to_path_buf(), source }
}

const LOCK_FILE: &str = "ca.lock";
/// A key or certificate has about 1000 bytes; operators may add text and comments.
const FILE_MAX_BYTES: usize = 64 * 1024;
const DIRECTORY_MODE: u32 = 0o700;
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;
const MODE_PERMISSIONS: u32 = 0o7777;
const MODE_OTHERS: u32 = 0o077;
const MODE_OTHERS_WRITE: u32 = 0o022;
