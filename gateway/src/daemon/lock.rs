//! One daemon on a machine: two would open and close the same workloads.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

use crate::run::RUN_DIRECTORY;

/// Held as long as the daemon lives; the kernel lets it go when the process dies.
pub(super) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    pub(super) fn take() -> anyhow::Result<Self> {
        let path = PathBuf::from(RUN_DIRECTORY).join("daemon.lock");
        let mut tries = 3;
        loop {
            let file = open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((file, nix::Error::EWOULDBLOCK)) => return Err(taken(file)),
                Err((_, errno)) => return Err(io::Error::from(errno).into()),
            };
            // Somebody may have removed the file in between: a lock on a file without a name keeps nobody out.
            let is_named = fs::metadata(&path).is_ok_and(|named| {
                file.metadata()
                    .is_ok_and(|held| (held.dev(), held.ino()) == (named.dev(), named.ino()))
            });
            if is_named {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                return Ok(Self { _file: file });
            }
            anyhow::ensure!(tries > 0, "{} does not stay where it is", path.display());
            tries -= 1;
        }
    }
}

fn open(path: &std::path::Path) -> io::Result<File> {
    // A run that ends may remove the empty directory between the two steps.
    let mut tries = 3;
    loop {
        DirBuilder::new().recursive(true).mode(0o755).create(RUN_DIRECTORY)?;
        let mut options = OpenOptions::new();
        match options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 => tries -= 1,
            opened => return opened,
        }
    }
}

fn taken(file: File) -> anyhow::Error {
    let who = match io::read_to_string(file) {
        Ok(pid) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
        _ => "a process that is starting".to_owned(),
    };
    anyhow::anyhow!("another `tollgate daemon` governs this machine ({who}); stop it first")
}
