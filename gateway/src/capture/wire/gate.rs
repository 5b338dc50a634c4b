//! Pairs that somebody makes on the host: closed until it is known whose they are.
//!
//! An engine makes a veth pair on the host, moves one end into a workload's namespace and sets it up there, all within
//! less than a millisecond if it likes. No watcher in the workload's namespace is fast enough for that. So every new
//! pair is closed where it is made, and opened again when one end has gone to a namespace that is not governed, or
//! both ends are up on the host. What has gone to a governed namespace stays closed until its own fence holds it.
//!
//! These programs are not pinned: should the gateway die, nobody else's interface stays closed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use aya::EbpfLoader;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::attach::{Held, Programs};
use super::watch::{Pace, come_first};
use super::{Attachment, VETH, WireError};
use crate::capture::programs::OBJECT;
use crate::capture::{Counters, Link, Monitor, Namespace, Netlink, ProgramsError};

/// Closes new pairs on the host as long as there is a governed workload. Dropping it opens them.
pub struct Gate {
    how: Attachment,
    governed: Arc<Mutex<Governed>>,
    /// Dropped to end the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Governed {
    next: u64,
    namespaces: BTreeMap<u64, Namespace>,
    /// Interfaces of the host that had carried nothing when they were closed.
    untouched: BTreeSet<u32>,
}

/// A governed namespace, as long as this lives.
pub(super) struct Registered {
    number: u64,
    governed: Arc<Mutex<Governed>>,
}

impl Registered {
    /// Whether an interface was closed before it had carried anything.
    pub(super) fn was_closed_in_time(&self, index: u32) -> bool {
        lock(&self.governed).untouched.contains(&index)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.governed).namespaces.remove(&self.number);
    }
}

fn lock(governed: &Mutex<Governed>) -> MutexGuard<'_, Governed> {
    governed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// Watches the calling thread's namespace, which is the host's, from now on.
    ///
    /// # Errors
    /// When the programs cannot be loaded, or the namespace not be watched.
    pub fn open(how: Attachment) -> Result<Self, WireError> {
        let governed = Arc::new(Mutex::new(Governed::default()));
        let mut gate = Self { how, governed: Arc::clone(&governed), stop: None, thread: None };
        if how == Attachment::Clsact {
            // A filter stays when the gateway dies: nobody else's interface may depend on that.
            return Ok(gate);
        }
        let monitor = Monitor::here()?;
        let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(ProgramsError::Load)?;
        let mut keeper = Keeper {
            governed,
            programs: Programs::load(&mut ebpf)?,
            host: Netlink::here()?,
            known: BTreeSet::new(),
            held: BTreeMap::new(),
        };
        keeper.known = keeper.host.links()?.iter().map(|link| link.index).collect();
        let (stopped, stop) = io::pipe().map_err(WireError::Watch)?;
        let thread = std::thread::Builder::new()
            .name("tollgate-gate".to_owned())
            .spawn(move || {
                come_first();
                keeper.keep(&monitor, &stopped);
            })
            .map_err(WireError::Watch)?;
        gate.stop = Some(stop);
        gate.thread = Some(thread);
        Ok(gate)
    }

    pub(super) fn attachment(&self) -> Attachment {
        self.how
    }

    /// What goes to `namespace` is closed from now on until its own fence holds it.
    pub(super) fn register(&self, namespace: Namespace) -> Registered {
        let mut governed = lock(&self.governed);
        let number = governed.next;
        governed.next += 1;
        governed.namespaces.insert(number, namespace);
        Registered { number, governed: Arc::clone(&self.governed) }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that closes new interfaces has panicked");
        }
    }
}

struct Keeper {
    governed: Arc<Mutex<Governed>>,
    programs: Programs,
    host: Netlink,
    /// Interfaces that have been seen.
    known: BTreeSet<u32>,
    /// Those that are closed.
    held: BTreeMap<u32, Held>,
}

/// How often interfaces that are held are looked at: their workload's fence does not tell.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Keeper {
    fn keep(&mut self, monitor: &Monitor, stopped: &PipeReader) {
        let mut pace = Pace::default();
        loop {
            let timeout = if self.held.is_empty() {
                PollTimeout::NONE
            } else {
                PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::MAX)
            };
            let mut waiting = [
                PollFd::new(monitor.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            if let Err(errno) = poll(&mut waiting, timeout)
                && errno != nix::errno::Errno::EINTR
            {
                tracing::error!(%errno, "new interfaces are no longer closed before they are known");
                return;
            }
            let [_, end] = &waiting;
            if end.revents().is_some_and(|events| !events.is_empty()) {
                return;
            }
            // What is new is closed before anything else is asked.
            if let Err(error) = monitor.drain_to(|link| self.meet(&link)) {
                tracing::warn!(%error, "a change of the host's interfaces is lost");
            }
            if let Err(error) = self.sort() {
                tracing::warn!(%error, "the host's interfaces cannot be looked at");
            }
            pace.keep();
        }
    }

    /// Closes an interface that is new.
    fn meet(&mut self, link: &Link) {
        if link.kind != VETH || !self.known.insert(link.index) {
            return;
        }
        if lock(&self.governed).namespaces.is_empty() {
            return;
        }
        match self.programs.hold(link) {
            Ok(held) => drop(self.held.insert(link.index, held)),
            Err(error) => {
                tracing::debug!(%error, name = link.name, "gone, or not to be closed");
                return;
            }
        }
        // Asked after it was closed: what it has carried by now has passed, and nothing will.
        let now = self.host.link(link.index).ok().flatten();
        if now.is_some_and(|now| now.counters == Counters::default()) {
            lock(&self.governed).untouched.insert(link.index);
        }
    }

    /// Lets go of what is known not to be a workload's.
    fn sort(&mut self) -> Result<(), WireError> {
        let links = self.host.links()?;
        for link in &links {
            self.meet(link);
        }
        let there: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        self.known.retain(|index| there.contains_key(index));
        lock(&self.governed).untouched.retain(|index| there.contains_key(index));
        let governed = self.governed_ids()?;
        let programs = &self.programs;
        self.held.retain(|index, _held| {
            let Some(link) = there.get(index) else { return false };
            match link.peer_nsid {
                Some(id) => governed.contains(&id) && !programs.is_fenced_by_others(link),
                None => {
                    let other = link.peer.and_then(|peer| there.get(&peer));
                    !(link.is_up && other.is_some_and(|other| other.is_up))
                }
            }
        });
        Ok(())
    }

    /// The ids of the governed namespaces in the host's.
    fn governed_ids(&mut self) -> Result<BTreeSet<i32>, WireError> {
        let governed = lock(&self.governed);
        let mut ids = BTreeSet::new();
        for namespace in governed.namespaces.values() {
            ids.extend(self.host.nsid_of(namespace)?);
        }
        Ok(ids)
    }
}
