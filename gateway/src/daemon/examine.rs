//! Which network namespace is a workload's.
//!
//! By its processes, and by nothing that has a name: a process is held before it is asked, and it counts only when it
//! is still in the cgroup afterwards.

use std::io;

use nix::unistd::Pid;

use crate::capture::{self, Cgroup, HeldProcess, Namespace};
use crate::discover::{self, Objection, Waiver};

/// Why a workload cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// All its processes share the host's network.
    #[error(
        "its processes share the host's network namespace, where nothing tells its traffic from the host's; start it with a network of its own"
    )]
    HostNetwork,
    /// They are in a PID namespace that is not below ours.
    #[error("its processes cannot be seen from here; run the daemon in the host's PID namespace")]
    Invisible,
    /// There are wires in more than one of its network namespaces.
    #[error(
        "its processes are in several network namespaces with interfaces, of which only one can be fenced; match each container by itself"
    )]
    SeveralNetworks,
    /// Nobody could look at them all in time.
    #[error("it has more than {PROCESSES_MAX} processes, which is more than can be examined")]
    TooMany,
    /// It could undo its own government.
    #[error("{}", in_words(.0))]
    Objections(Vec<Objection>),
    /// The kernel does not say what a process may do.
    #[error("process {pid} cannot be examined")]
    Process {
        /// In the host's PID namespace.
        pid: Pid,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel does not say.
    #[error(transparent)]
    Cgroup(#[from] capture::CgroupError),
    /// The kernel does not say.
    #[error(transparent)]
    Netlink(#[from] capture::NetlinkError),
    /// The kernel does not say.
    #[error(transparent)]
    Namespace(#[from] capture::NamespaceError),
}

struct Candidate {
    namespace: Namespace,
    inode: u64,
    started: u64,
    pid: Pid,
}

/// Processes that are looked at: a workload with more stays closed, as looking at them would hold up all others.
const PROCESSES_MAX: usize = 4_096;

/// The network namespace of a cgroup's processes: the only one that has a wire, or else that of the process that was
/// first, as namespaces that a workload makes for itself are made later. `None` when there is no process.
pub(super) fn network_of(cgroup: &Cgroup) -> Result<Option<Namespace>, Unfit> {
    let hosts = hosts()?;
    let mut candidates = networks(cgroup)?;
    if candidates.is_empty() {
        return Ok(None);
    }
    candidates.retain(|candidate| !hosts.contains(&candidate.inode));
    candidates.sort_by_key(|candidate| (candidate.started, candidate.pid));
    if candidates.len() > 1 {
        let mut wired = Vec::new();
        for (index, candidate) in candidates.iter().enumerate() {
            if capture::reaches_out(&candidate.namespace)? {
                wired.push(index);
            }
        }
        match wired.as_slice() {
            [] => {}
            [index] => return Ok(Some(candidates.swap_remove(*index).namespace)),
            _several => return Err(Unfit::SeveralNetworks),
        }
    }
    candidates.into_iter().next().map(|first| Some(first.namespace)).ok_or(Unfit::HostNetwork)
}

/// Every network namespace of a cgroup's processes, with the first process in it.
fn networks(cgroup: &Cgroup) -> Result<Vec<Candidate>, Unfit> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for pid in processes(cgroup)? {
        let Some(process) = HeldProcess::hold(pid)? else { continue };
        let Some(started) = process.started() else { continue };
        for (inode, namespace) in process.networks()? {
            match candidates.iter_mut().find(|known| known.inode == inode) {
                Some(known) if (known.started, known.pid) > (started, pid) => {
                    (known.started, known.pid) = (started, pid);
                }
                Some(_known) => {}
                None => candidates.push(Candidate { namespace, inode, started, pid }),
            }
        }
    }
    // A number that was given to another process in between names one that started later, or elsewhere.
    let still = processes(cgroup)?;
    candidates.retain(|candidate| {
        let started = HeldProcess::of(candidate.pid).and_then(|process| process.started());
        still.contains(&candidate.pid) && started == Some(candidate.started)
    });
    Ok(candidates)
}

fn processes(cgroup: &Cgroup) -> Result<Vec<Pid>, Unfit> {
    let found = cgroup.processes()?;
    if found.len() > PROCESSES_MAX {
        return Err(Unfit::TooMany);
    }
    if found.iter().any(|pid| pid.as_raw() == 0) {
        return Err(Unfit::Invisible);
    }
    Ok(found)
}

/// The network namespaces that are no workload's.
fn hosts() -> Result<Vec<u64>, Unfit> {
    let mut hosts = vec![Namespace::own()?.inode()?];
    hosts.extend(machines_own());
    Ok(hosts)
}

/// The network namespace of the machine's first process, where that may be looked at: the daemon may live in another.
fn machines_own() -> Option<u64> {
    HeldProcess::of(Pid::from_raw(1))?.network().ok()??.inode().ok()
}

/// Whether a process of the cgroup is in this network namespace, which somebody holds: its number is not another's.
pub(super) fn lives_in(cgroup: &Cgroup, inode: u64) -> bool {
    let is_there = |pid| {
        let networks = HeldProcess::of(pid).and_then(|process| process.networks().ok());
        networks.is_some_and(|networks| networks.iter().any(|(found, _)| *found == inode))
    };
    cgroup
        .processes()
        .is_ok_and(|processes| processes.into_iter().take(PROCESSES_MAX).any(is_there))
}

/// Refuses a workload of which a process has a wire in another network namespace than the one that is fenced.
pub(super) fn refuse_another_wire(cgroup: &Cgroup, fenced: u64) -> Result<(), Unfit> {
    let hosts = hosts()?;
    for candidate in networks(cgroup)? {
        let is_other = candidate.inode != fenced && !hosts.contains(&candidate.inode);
        if is_other && capture::reaches_out(&candidate.namespace)? {
            return Err(Unfit::SeveralNetworks);
        }
    }
    Ok(())
}

/// Refuses a workload of which a process could undo its government, but for what the operator waives.
pub(super) fn refuse_what_cannot_be_held(cgroup: &Cgroup, permit: &[Waiver]) -> Result<(), Unfit> {
    let mut objections: Vec<Objection> = Vec::new();
    for pid in processes(cgroup)? {
        match discover::examine(pid) {
            Ok(found) => objections.extend(found),
            Err(source) if is_still_in(cgroup, pid)? => return Err(Unfit::Process { pid, source }),
            // It has ended meanwhile, and does nothing any more.
            Err(_gone) => {}
        }
    }
    objections.retain(|objection| match objection {
        // A process that has gone over to the host's network is refused everything there.
        Objection::HostNetwork => false,
        Objection::Waivable(waiver, _) => !permit.contains(waiver),
    });
    objections.sort();
    objections.dedup();
    if objections.is_empty() { Ok(()) } else { Err(Unfit::Objections(objections)) }
}

/// Whether a process is still there, by the kernel's own list: one that has ended is not on it, and one that cannot be
/// looked at for another reason is.
fn is_still_in(cgroup: &Cgroup, pid: Pid) -> Result<bool, Unfit> {
    for _try in 0..ENDING_TRIES {
        if !cgroup.processes()?.contains(&pid) {
            return Ok(false);
        }
        // It gives up its namespaces a moment before it leaves the list.
        std::thread::yield_now();
    }
    Ok(true)
}

/// How often a process that seems to end is looked for.
const ENDING_TRIES: u8 = 10;

fn in_words(objections: &[Objection]) -> String {
    objections.iter().map(ToString::to_string).collect::<Vec<_>>().join("; and ")
}
