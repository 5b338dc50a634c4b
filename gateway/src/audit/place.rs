//! The place of the audit log in the file system: when the file there is put away, a new one is begun.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where a log is, and which file was there.
pub(super) struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
    looked: Instant,
}

/// How often the place is looked at. Who renames a log and compresses it waits longer than that.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Opens the log for appending, made with mode 0600 when it is not there.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

impl Place {
    /// None for a pipe or a terminal: nobody puts those away.
    pub(super) fn of(path: &Path, file: &File) -> io::Result<Option<Self>> {
        let found = file.metadata()?;
        let place = Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
            looked: Instant::now(),
        };
        Ok(found.is_file().then_some(place))
    }

    /// The file to go on with, when the one that was there has been put away. When it cannot be opened, what there is
    /// is gone on with: a record in the old file is worth more than none.
    pub(super) fn another(&mut self, now: Instant) -> Option<File> {
        if now.duration_since(self.looked) < LOOK_EVERY {
            return None;
        }
        self.looked = now;
        let is_same = fs::metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if is_same {
            return None;
        }
        let opened = open(&self.path).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((found, file)) => {
                (self.device, self.inode) = (found.dev(), found.ino());
                Some(file)
            }
            Err(error) => {
                tracing::warn!(%error, "the audit log was put away and a new one cannot be begun");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_log_that_is_put_away_is_begun_anew_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let file = open(&path).unwrap();
        let mut place = Place::of(&path, &file).unwrap().unwrap();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(place.another(at(2)).is_none());
        fs::rename(&path, folder.path().join("audit.jsonl.1")).unwrap();
        assert!(place.another(at(2)).is_none(), "it is not looked at that often");
        let mut new = place.another(at(4)).unwrap();
        writeln!(new, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(place.another(at(6)).is_none());
        // A folder that is gone cannot hold a new one.
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(place.another(at(8)).is_none());
    }

    #[test]
    fn a_pipe_has_no_place() {
        let pipe = OpenOptions::new().write(true).open("/dev/null").unwrap();
        assert!(Place::of(Path::new("/dev/null"), &pipe).unwrap().is_none());
    }
}
