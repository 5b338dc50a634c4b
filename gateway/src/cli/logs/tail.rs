//! The audit log as whole lines, while others write to it, tear a line, or put it away.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek as _, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The log cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum TailError {
    /// Nobody has written one.
    #[error(
        "there is no audit log at {} (gateway.audit): nothing was governed by this configuration yet",
        path.display()
    )]
    Absent {
        /// Where it should be.
        path: PathBuf,
    },
    /// A pipe, a terminal, a directory.
    #[error("the audit log {} (gateway.audit) is no file that can be read again", path.display())]
    NoFile {
        /// Where it is.
        path: PathBuf,
    },
    /// It is there.
    #[error("cannot read the audit log {} (gateway.audit); it is for root alone, try sudo", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// An open log and the place in it.
pub(super) struct Tail {
    path: PathBuf,
    file: File,
    /// How much of the file is read.
    position: u64,
    /// The line that has no end yet.
    pending: Vec<u8>,
    /// Whether that line is too long to be one of ours.
    is_too_long: bool,
    /// Lines that were not handed out.
    skipped: u64,
}

/// The longest line that is read: a record with its longest path is far below. A longer one is no record.
const LINE_MAX: usize = 1 << 20;

impl Tail {
    pub(super) fn open(path: &Path) -> Result<Self, TailError> {
        let unreadable = |source: io::Error| {
            let path = path.to_owned();
            if source.kind() == ErrorKind::NotFound {
                TailError::Absent { path }
            } else {
                TailError::Unreadable { path, source }
            }
        };
        // Before it is opened: opening a pipe waits for its other end.
        if !fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(TailError::NoFile { path: path.to_owned() });
        }
        Ok(Self {
            path: path.to_owned(),
            file: File::open(path).map_err(unreadable)?,
            position: 0,
            pending: Vec::new(),
            is_too_long: false,
            skipped: 0,
        })
    }

    /// Calls `each` for every whole line that is there now. One without an end is being written.
    pub(super) fn read<B>(
        &mut self,
        each: &mut impl FnMut(&[u8]) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, TailError> {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let length = match self.file.read(&mut bytes) {
                Ok(0) => return Ok(ControlFlow::Continue(())),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(source) => return Err(self.unreadable(source)),
            };
            self.position = self.position.saturating_add(length as u64);
            for part in bytes.get(..length).unwrap_or_default().split_inclusive(|b| *b == b'\n') {
                if let ControlFlow::Break(reason) = self.take(part, each) {
                    return Ok(ControlFlow::Break(reason));
                }
            }
        }
    }

    /// Goes on with the file that took this one's place, or at the start of one that was emptied.
    pub(super) fn follow_rotation(&mut self) -> Result<(), TailError> {
        let own = self.file.metadata().map_err(|source| self.unreadable(source))?;
        if own.len() < self.position {
            self.file.seek(SeekFrom::Start(0)).map_err(|source| self.unreadable(source))?;
            self.begin();
            return Ok(());
        }
        let is_read = own.len() == self.position;
        let Ok(there) = fs::metadata(&self.path) else { return Ok(()) };
        let is_other = (there.dev(), there.ino()) != (own.dev(), own.ino());
        // What was written to the old one up to now is read first.
        if is_read && is_other && there.is_file() {
            self.file = File::open(&self.path).map_err(|source| self.unreadable(source))?;
            self.begin();
        }
        Ok(())
    }

    /// How many lines were too long or lost their end since the last call.
    pub(super) fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.skipped)
    }

    fn begin(&mut self) {
        if !self.pending.is_empty() || self.is_too_long {
            self.skipped = self.skipped.saturating_add(1);
        }
        self.pending.clear();
        self.is_too_long = false;
        self.position = 0;
    }

    fn take<B>(
        &mut self,
        part: &[u8],
        each: &mut impl FnMut(&[u8]) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let (text, is_whole) = match part.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (part, false),
        };
        if self.is_too_long || self.pending.len().saturating_add(text.len()) > LINE_MAX {
            self.is_too_long = !is_whole;
            self.pending.clear();
            self.skipped = self.skipped.saturating_add(u64::from(is_whole));
            return ControlFlow::Continue(());
        }
        self.pending.extend_from_slice(text);
        if !is_whole {
            return ControlFlow::Continue(());
        }
        let line = std::mem::take(&mut self.pending);
        if line.is_empty() { ControlFlow::Continue(()) } else { each(&line) }
    }

    fn unreadable(&self, source: io::Error) -> TailError {
        TailError::Unreadable { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn lines(tail: &mut Tail) -> Vec<String> {
        let mut lines = Vec::new();
        let read = tail.read(&mut |line: &[u8]| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            ControlFlow::<()>::Continue(())
        });
        assert!(read.unwrap().is_continue());
        lines
    }

    #[test]
    fn a_line_is_handed_out_when_its_end_is_there_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut file = File::create(&path).unwrap();
        let mut tail = Tail::open(&path).unwrap();
        for byte in b"one" {
            file.write_all(&[*byte]).unwrap();
            assert_eq!(lines(&mut tail), Vec::<String>::new());
        }
        file.write_all(b"\n\ntw").unwrap();
        assert_eq!(lines(&mut tail), ["one"]);
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(lines(&mut tail), ["two", "three"]);
        assert_eq!(tail.take_skipped(), 0);
    }

    #[test]
    fn a_log_that_is_moved_away_or_emptied_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut old = File::options().append(true).create(true).open(&path).unwrap();
        let mut tail = Tail::open(&path).unwrap();
        writeln!(old, "before").unwrap();
        assert_eq!(lines(&mut tail), ["before"]);
        fs::rename(&path, folder.path().join("audit.jsonl.1")).unwrap();
        tail.follow_rotation().unwrap();
        writeln!(old, "into the old one").unwrap();
        let mut new = File::options().append(true).create(true).open(&path).unwrap();
        writeln!(new, "into the new one").unwrap();
        tail.follow_rotation().unwrap();
        assert_eq!(lines(&mut tail), ["into the old one"]);
        tail.follow_rotation().unwrap();
        assert_eq!(lines(&mut tail), ["into the new one"]);
        write!(new, "torn by what comes nex").unwrap();
        assert_eq!(lines(&mut tail), Vec::<String>::new());
        new.set_len(0).unwrap();
        tail.follow_rotation().unwrap();
        assert_eq!(tail.take_skipped(), 1);
        writeln!(new, "after").unwrap();
        assert_eq!(lines(&mut tail), ["after"]);
    }

    #[test]
    fn a_line_without_end_takes_no_memory_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![b'x'; 3 * LINE_MAX]).unwrap();
        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(lines(&mut tail), Vec::<String>::new());
        assert!(tail.pending.capacity() <= 2 * LINE_MAX);
        file.write_all(b"\nnext\n").unwrap();
        assert_eq!(lines(&mut tail), ["next"]);
        assert_eq!(tail.take_skipped(), 1);
    }

    #[test]
    fn what_is_not_there_or_no_file_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let absent = Tail::open(&folder.path().join("audit.jsonl")).err().unwrap();
        assert!(matches!(absent, TailError::Absent { .. }));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [folder.path(), &pipe] {
            assert!(matches!(Tail::open(path).err().unwrap(), TailError::NoFile { .. }));
        }
    }
}
