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
use aya::programs::TcAttachType;
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
    /// Interfaces of the host that had carried nothing when they were closed. The kernel gives no index twice before it
    /// has given all, so that one of an interface that is gone does no harm.
    untouched: BTreeMap<u32, Untouched>,
}

/// Which directions of an interface had carried nothing when they were closed.
#[derive(Debug, Clone, Copy, Default)]
struct Untouched {
    /// What the workload sends.
    sent: bool,
    /// What it receives.
    received: bool,
}

/// A governed namespace, as long as this lives.
pub(super) struct Registered {
    number: u64,
    governed: Arc<Mutex<Governed>>,
}

impl Registered {
    /// What an interface of the host may have carried that has these counters now: nothing where it was closed in time.
    pub(super) fn may_have_carried(&self, index: u32, now: Counters) -> Counters {
        let untouched = lock(&self.governed).untouched.get(&index).copied().unwrap_or_default();
        let mut carried = now;
        if untouched.sent {
            (carried.rx_packets, carried.rx_bytes) = (0, 0);
        }
        if untouched.received {
            (carried.tx_packets, carried.tx_bytes) = (0, 0);
        }
        carried
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
            self.look(monitor);
            pace.keep();
        }
    }

    /// Closes what is new before anything else is asked, and lets go of what is known.
    fn look(&mut self, monitor: &Monitor) {
        let mut new = self.new_ones(monitor);
        if !new.is_empty() {
            // The other end of the pair is made in the same breath.
            let mut other = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
            if poll(&mut other, PollTimeout::from(1_u8)).is_ok() {
                new.extend(self.new_ones(monitor));
            }
            self.close(&new);
        }
        if let Err(error) = self.sort() {
            tracing::warn!(%error, "the host's interfaces cannot be looked at");
        }
    }

    fn new_ones(&mut self, monitor: &Monitor) -> Vec<Link> {
        let mut new = Vec::new();
        match monitor.drain_to(|link| new.push(link)) {
            // Some changes may be lost where there are too many.
            Ok(true) if new.is_empty() => new = self.host.links().unwrap_or_default(),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a change of the host's interfaces is lost"),
        }
        new.retain(|link| link.kind == VETH && self.known.insert(link.index));
        new
    }

    /// Closes interfaces that are new. Each step takes the kernel a while, in which whoever makes them goes on: so the
    /// direction out of workloads comes first, and the end that was made last, which engines keep.
    fn close(&mut self, new: &[Link]) {
        if lock(&self.governed).namespaces.is_empty() {
            return;
        }
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            for link in new.iter().rev() {
                let mut held = self.held.remove(&link.index).unwrap_or_default();
                match self.programs.hold(link, direction, &mut held) {
                    Ok(()) => drop(self.held.insert(link.index, held)),
                    Err(error) => {
                        tracing::debug!(%error, name = link.name, "not closed, or gone");
                        continue;
                    }
                }
                // Asked after it was closed: what it has carried by now may have passed, and nothing will.
                let now = self.host.link(link.index).ok().flatten().map(|link| link.counters);
                let mut governed = lock(&self.governed);
                let untouched = governed.untouched.entry(link.index).or_default();
                match direction {
                    TcAttachType::Ingress => {
                        untouched.sent = now.is_some_and(|now| now.rx_packets == 0)
                    }
                    _egress => untouched.received = now.is_some_and(|now| now.tx_packets == 0),
                }
            }
        }
    }

    /// Lets go of what is known not to be a workload's, and forgets what is gone.
    fn sort(&mut self) -> Result<(), WireError> {
        if self.held.is_empty() {
            return Ok(());
        }
        let mut let_go = Vec::new();
        let all: Vec<u32> = self.held.keys().copied().collect();
        for index in all {
            let Some(link) = self.host.link(index)? else {
                self.known.remove(&index);
                lock(&self.governed).untouched.remove(&index);
                let_go.push(index);
                continue;
            };
            let goes_on = match link.peer_nsid {
                // Asked after the link: looking at it makes the id of its other end's namespace known.
                Some(id) => {
                    self.governed_ids()?.contains(&id) && !self.programs.is_fenced_by_others(&link)
                }
                None => {
                    let other = link.peer.map(|peer| self.host.link(peer)).transpose()?.flatten();
                    !(link.is_up && other.is_some_and(|other| other.is_up))
                }
            };
            if !goes_on {
                let_go.push(index);
            }
        }
        self.held.retain(|index, _held| !let_go.contains(index));
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
