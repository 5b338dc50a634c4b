//! Looking into a container's files as hostile ones: lookups stay below its root, reads are bounded, nothing but
//! regular files is opened.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use regex::bytes::Regex;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags};

use super::Uncovered;

/// The files of the mount namespace that the calling thread is in.
pub(super) struct View<'a> {
    /// The directory of the calling thread in a proc file system of our own.
    proc: BorrowedFd<'a>,
    root: OwnedFd,
}

/// A file or directory that was found, and can be neither read nor written by this handle.
pub(super) struct Found {
    pub(super) fd: OwnedFd,
    pub(super) stat: Stat,
    /// Where it is, links resolved. Only the file that `fd` holds counts; this is for people and for comparing.
    pub(super) path: PathBuf,
}

impl<'a> View<'a> {
    /// Of the namespace that the calling thread is in now; `proc` is `/proc/thread-self`, opened before it entered.
    pub(super) fn open(proc: BorrowedFd<'a>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { proc, root: rustix::fs::open("/", flags, Mode::empty())? })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What `path` names, as a process in there would find it; links lead nowhere else.
    pub(super) fn find(&self, path: &Path) -> io::Result<Found> {
        self.find_with(path, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// The same where no part of the path is a link.
    pub(super) fn find_itself(&self, path: &Path) -> io::Result<Found> {
        self.find_with(path, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
    }

    fn find_with(&self, path: &Path, resolve: ResolveFlags) -> io::Result<Found> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        // The kernel gives up where somebody renames beside it.
        let mut opened = Err(rustix::io::Errno::AGAIN);
        for _attempt in 0..LOOKUP_ATTEMPTS {
            opened = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve);
            if !matches!(opened, Err(rustix::io::Errno::AGAIN)) {
                break;
            }
        }
        self.found(opened?)
    }

    /// An entry of a directory, not followed if it is a link.
    pub(super) fn entry(&self, directory: &Found, name: &CString) -> io::Result<Found> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.found(rustix::fs::openat(&directory.fd, name, flags, Mode::empty())?)
    }

    fn found(&self, fd: OwnedFd) -> io::Result<Found> {
        let stat = rustix::fs::fstat(&fd)?;
        let path = rustix::fs::readlinkat(self.proc, number(&fd), Vec::new())?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes()));
        Ok(Found { fd, stat, path })
    }

    /// The whole content of a regular file.
    pub(super) fn read(&self, file: &Found, limit: usize) -> Result<Vec<u8>, Uncovered> {
        let too_large = |length: u64| length > u64::try_from(limit).unwrap_or(u64::MAX);
        if u64::try_from(file.stat.st_size).is_ok_and(too_large) {
            return Err(Uncovered::TooLarge);
        }
        let opened = self.open_file(file)?;
        let mut content = Vec::new();
        let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        opened.take(bound).read_to_end(&mut content).map_err(Uncovered::unreadable)?;
        if content.len() > limit { Err(Uncovered::TooLarge) } else { Ok(content) }
    }

    /// What matches the pattern in a regular file, of which no more than `limit` bytes are read; each match once, and
    /// none that is longer than [`OVERLAP`].
    pub(super) fn search(
        &self,
        file: &Found,
        pattern: &Regex,
        limit: u64,
    ) -> Result<HashSet<Vec<u8>>, Uncovered> {
        let mut opened = self.open_file(file)?.take(limit);
        let mut window = Vec::new();
        let mut matches = HashSet::new();
        loop {
            let read = opened.by_ref().take(SEARCH_STEP_BYTES).read_to_end(&mut window);
            if read.map_err(Uncovered::unreadable)? == 0 {
                return Ok(matches);
            }
            matches.extend(pattern.find_iter(&window).map(|found| found.as_bytes().to_vec()));
            // One may begin here and end in what comes next.
            window.drain(..window.len().saturating_sub(OVERLAP));
        }
    }

    fn open_file(&self, file: &Found) -> Result<File, Uncovered> {
        if file.kind() != FileType::RegularFile {
            return Err(Uncovered::NotAFile);
        }
        // By its number: the path may mean another file by now.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(self.proc, number(&file.fd), flags, Mode::empty());
        Ok(File::from(opened.map_err(Uncovered::unreadable)?))
    }

    /// What is in a directory, with the kind as far as the directory tells; at most `limit`.
    pub(super) fn entries(
        directory: &Found,
        limit: usize,
    ) -> Result<Vec<(CString, FileType)>, Uncovered> {
        if directory.kind() != FileType::Directory {
            return Err(Uncovered::NotAFile);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&directory.fd, c".", flags, Mode::empty());
        let entries = Dir::new(opened.map_err(Uncovered::unreadable)?);
        let mut names = Vec::new();
        for entry in entries.map_err(Uncovered::unreadable)? {
            let entry = entry.map_err(Uncovered::unreadable)?;
            let name = entry.file_name().to_owned();
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            if names.len() == limit {
                return Err(Uncovered::TooLarge);
            }
            names.push((name, entry.file_type()));
        }
        names.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(names)
    }

    /// Where a link leads, as it stands there.
    pub(super) fn link_target(link: &Found) -> io::Result<CString> {
        Ok(rustix::fs::readlinkat(&link.fd, c"", Vec::new())?)
    }

    /// Detaches a mount of which `fd` is the root.
    pub(super) fn detach(&self, fd: &OwnedFd) -> io::Result<()> {
        // By the descriptor's number in our own proc: the path may lead to another mount by now.
        rustix::process::fchdir(self.proc)?;
        let flags = rustix::mount::UnmountFlags::DETACH;
        Ok(rustix::mount::unmount(number(fd), flags)?)
    }

    /// Which mounts there are.
    pub(super) fn mounts(&self) -> io::Result<Vec<Mounted>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.proc, c"mountinfo", flags, Mode::empty())?;
        let mut text = Vec::new();
        File::from(file).take(MOUNTINFO_MAX_BYTES).read_to_end(&mut text)?;
        Ok(text.split(|byte| *byte == b'\n').filter_map(Mounted::parse).collect())
    }
}

impl Found {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether this is the same file.
    pub(super) fn is(&self, other: &Stat) -> bool {
        (self.stat.st_dev, self.stat.st_ino) == (other.st_dev, other.st_ino)
    }

    /// The number of the mount that it was found on.
    pub(super) fn mount(&self) -> io::Result<u64> {
        let flags = AtFlags::EMPTY_PATH;
        Ok(rustix::fs::statx(&self.fd, c"", flags, StatxFlags::MNT_ID)?.stx_mnt_id)
    }
}

/// One line of mountinfo (proc(5)).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) id: u64,
    pub(super) path: PathBuf,
    /// Whether mounts on it appear elsewhere too.
    pub(super) is_shared: bool,
    /// Kind of the file system.
    pub(super) kind: String,
    pub(super) source: String,
}

impl Mounted {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let path = unescaped(fields.nth(3)?);
        let _options = fields.next()?;
        let optional: Vec<&[u8]> = fields.by_ref().take_while(|field| *field != b"-").collect();
        let is_shared = optional.iter().any(|field| field.starts_with(b"shared:"));
        let (kind, source) = (text(fields.next()?), text(fields.next()?));
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        Some(Self { id, path, is_shared, kind, source })
    }
}

/// Blanks, tabs, ends of lines and backslashes stand there as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, byte) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _plain => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Where a descriptor is found below the directory of a thread.
fn number(fd: &OwnedFd) -> String {
    format!("fd/{}", fd.as_raw_fd())
}

/// How far a match may reach from one step into the next.
const OVERLAP: usize = 64;
const SEARCH_STEP_BYTES: u64 = 1024 * 1024;
const LOOKUP_ATTEMPTS: usize = 8;
/// A mount has about 200 bytes there; the kernel allows 100000 of them.
const MOUNTINFO_MAX_BYTES: u64 = 32 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_taken_apart() {
        let line =
            br"36 35 98:0 /mnt1 /a\040b\134c rw,noatime master:1 shared:7 - ext3 /dev/root rw";
        let mounted = Mounted {
            id: 36,
            path: r"/a b\c".into(),
            is_shared: true,
            kind: "ext3".to_owned(),
            source: "/dev/root".to_owned(),
        };
        assert_eq!(Mounted::parse(line), Some(mounted));
        let line = b"1 0 0:5 / / rw - tmpfs none rw";
        assert!(Mounted::parse(line).is_some_and(|mounted| !mounted.is_shared));
        assert_eq!(Mounted::parse(b""), None);
        assert_eq!(Mounted::parse(b"36 35 98:0 /mnt1 /mnt2 rw master:1"), None);
    }
}
