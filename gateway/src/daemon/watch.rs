//! Learns at once when cgroups appear, vanish, or get their first process (inotify(7)).
//!
//! What it misses, the next look finds: it only saves the wait for it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::Notify;

pub(super) struct Watch {
    inotify: Arc<Inotify>,
    changed: Arc<Notify>,
}

impl Watch {
    /// Starts the thread that waits for events, for as long as the process lives.
    pub(super) fn new() -> io::Result<Self> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?);
        let changed = Arc::new(Notify::new());
        let (events, notify) = (Arc::clone(&inotify), Arc::clone(&changed));
        std::thread::Builder::new().name("tollgate-watch".to_owned()).spawn(move || {
            loop {
                match events.read_events() {
                    // Whatever it was, a look at all of them answers it.
                    Ok(_) => notify.notify_one(),
                    Err(nix::Error::EINTR) => {}
                    Err(error) => return tracing::warn!(%error, "cgroups are only polled"),
                }
            }
        })?;
        Ok(Self { inotify, changed })
    }

    /// Watches for cgroups that come and go in `directory`.
    pub(super) fn children_of(&self, directory: &Path) {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        self.add(directory, flags);
    }

    /// Watches for the first process in a cgroup, and the end of the last one.
    pub(super) fn processes_of(&self, cgroup: &Path) {
        self.add(&cgroup.join("cgroup.events"), AddWatchFlags::IN_MODIFY);
    }

    /// The kernel knows a file that is watched already by its inode.
    fn add(&self, path: &Path, flags: AddWatchFlags) {
        if let Err(error) = self.inotify.add_watch(path, flags) {
            tracing::debug!(%error, path = %path.display(), "not watched");
        }
    }

    /// Returns when something has happened since the last call.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
