//! Where an image has no directory for roots: an empty one, to mount on. It is the one thing that the container's own
//! file system gets.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, Stat};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::Uncovered;
use super::view::{Found, View};

/// Makes the directory. The calling thread has a copy of the container's mount namespace, which nobody else sees: there
/// the root of a container that was started read-only is made writable, as the file system below it mostly is.
pub(super) fn make(view: &View<'_>, path: &Path) -> Result<Stat, Uncovered> {
    let made = match make_directories(view, path) {
        Err(error) if error.raw_os_error() == Some(Errno::ROFS.raw_os_error()) => {
            rustix::mount::mount_remount(c"/", MountFlags::BIND, c"")
                .map_err(io::Error::from)
                .and_then(|()| make_directories(view, path))
        }
        made => made,
    };
    made.map_err(|source| Uncovered::NoPlace { source })
}

fn make_directories(view: &View<'_>, path: &Path) -> io::Result<Stat> {
    let mut parent: Option<Found> = None;
    let mut whole = PathBuf::from("/");
    for part in path.iter().skip(1) {
        whole.push(part);
        let found = match view.find_itself(&whole) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let above = parent.as_ref().map_or_else(|| view.root(), |found| found.fd.as_fd());
                rustix::fs::mkdirat(above, part, Mode::from_raw_mode(0o755))?;
                view.find_itself(&whole)?
            }
            Err(error) => return Err(error),
        };
        parent = Some(found);
    }
    parent.map(|found| found.stat).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
