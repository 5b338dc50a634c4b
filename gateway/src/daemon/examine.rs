//! Which network namespace is a workload's.
//!
//! By its processes, and by nothing that has a name: a process is held before it is asked, and it counts only when it
//! is still in the cgroup afterwards.

use std::collections::BTreeSet;
use std::io;

use nix::unistd::Pid;

use super::waiting::Waiting;
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
    /// Nothing is between it and the host's wires.
    #[error(
        "its process {pid} is in the host's network namespace and has CAP_NET_RAW, by which it can send frames past every rule; start it in the workload's network, or without this capability"
    )]
    RawInHostNetwork {
        /// In the host's PID namespace.
        pid: Pid,
    },
    /// Nobody could look at them all in time.
    #[error(
        "it has more than {PROCESSES_MAX} processes or {TASKS_MAX} threads, which is more than can be examined"
    )]
    TooMany,
    /// Looking at it does not end: it has too much to look at, or files that do not answer.
    #[error("its processes could not be examined in time")]
    TooLong,
    /// It could undo its own government.
    #[error("{}", in_words(.0))]
    Objections(Vec<Objection>),
    /// Who looked did not come back.
    #[error("the examination broke off")]
    BrokenOff,
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

impl Unfit {
    /// Whether it may be so for a moment only, by a process that is on its way to be another.
    pub(super) const fn may_pass(&self) -> bool {
        matches!(self, Self::Objections(_) | Self::RawInHostNetwork { .. } | Self::Process { .. })
    }
}

/// A network namespace and who is in it.
struct Candidate {
    namespace: Namespace,
    inode: u64,
    /// The first of its processes.
    started: u64,
    pid: Pid,
    others: Vec<Pid>,
}

/// Processes that are looked at: a workload with more stays closed, as looking at them would hold up all others.
const PROCESSES_MAX: usize = 4_096;
/// Their threads, all together, likewise.
const TASKS_MAX: usize = 32_768;

/// The network namespaces that a workload can send from.
pub(super) enum Networks {
    /// There is no process.
    None,
    /// The only one that has a wire, or else that of the process that was first, as namespaces that a workload makes for
    /// itself are made later.
    One(Namespace),
    /// Those with a wire, with their inode numbers: nobody can say which is the workload's.
    Several(Vec<(u64, Namespace)>),
}

/// The network namespaces of a cgroup's processes.
pub(super) fn networks_of(cgroup: &Cgroup) -> Result<Networks, Unfit> {
    let hosts = hosts()?;
    let mut candidates = networks(cgroup)?;
    if candidates.is_empty() {
        return Ok(Networks::None);
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
            [index] => return Ok(Networks::One(candidates.swap_remove(*index).namespace)),
            _several => {
                let all = candidates.into_iter().enumerate();
                let wired = all.filter(|(index, _)| wired.contains(index));
                let wired = wired.map(|(_, candidate)| (candidate.inode, candidate.namespace));
                return Ok(Networks::Several(wired.collect()));
            }
        }
    }
    let first = candidates.into_iter().next().ok_or(Unfit::HostNetwork)?;
    Ok(Networks::One(first.namespace))
}

/// All of them, the host's too where a process is in it.
pub(super) fn all_networks_of(cgroup: &Cgroup) -> Result<Vec<Namespace>, Unfit> {
    Ok(networks(cgroup)?.into_iter().map(|candidate| candidate.namespace).collect())
}

/// Every network namespace of a cgroup's processes, with the first process in it.
fn networks(cgroup: &Cgroup) -> Result<Vec<Candidate>, Unfit> {
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut tasks = 0;
    for pid in processes(cgroup)? {
        let Some(process) = HeldProcess::hold(pid)? else { continue };
        let Some(started) = process.started() else { continue };
        tasks += process.threads().unwrap_or_default();
        if tasks > TASKS_MAX {
            return Err(Unfit::TooMany);
        }
        for (inode, namespace) in process.networks()? {
            match candidates.iter_mut().find(|known| known.inode == inode) {
                Some(known) if (known.started, known.pid) > (started, pid) => {
                    known.others.push(known.pid);
                    (known.started, known.pid) = (started, pid);
                }
                Some(known) => known.others.push(pid),
                None => {
                    let others = Vec::new();
                    candidates.push(Candidate { namespace, inode, started, pid, others });
                }
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
    let Ok(mut processes) = cgroup.processes() else { return false };
    processes.truncate(PROCESSES_MAX);
    // Mostly the first thread of the first process says so; each of all threads is looked at only where none does.
    let begins_there = |pid: &Pid| {
        let network = HeldProcess::of(*pid).and_then(|process| process.network().ok()?);
        network.is_some_and(|network| network.inode().is_ok_and(|found| found == inode))
    };
    if processes.iter().any(begins_there) {
        return true;
    }
    let mut tasks = 0;
    let held = processes.into_iter().filter_map(HeldProcess::of);
    let examined = held.take_while(|process| {
        tasks += process.threads().unwrap_or_default();
        tasks <= TASKS_MAX
    });
    examined
        .filter_map(|process| process.networks().ok())
        .any(|networks| networks.iter().any(|(found, _)| *found == inode))
}

/// Refuses a workload that could get past its rules, but for what the operator waives. `fenced` is the network whose
/// wires are fenced; a process that waits to become a container's has not begun to be one.
pub(super) fn refuse_what_cannot_be_held(
    cgroup: &Cgroup,
    permit: &[Waiver],
    fenced: u64,
    waiting: Option<&Waiting>,
) -> Result<(), Unfit> {
    refuse_rights(cgroup, permit, waiting)?;
    refuse_other_wires(cgroup, fenced)
}

/// A process could undo its government.
fn refuse_rights(
    cgroup: &Cgroup,
    permit: &[Waiver],
    waiting: Option<&Waiting>,
) -> Result<(), Unfit> {
    let mut objections = BTreeSet::new();
    let counts = |objection: &Objection| match objection {
        // Its sockets are refused everything there; for what is no socket's see below.
        Objection::HostNetwork => false,
        Objection::Waivable(waiver, _) => !permit.contains(waiver),
    };
    for pid in processes(cgroup)? {
        let found = discover::examine(pid);
        if let Some(waiting) = waiting.filter(|waiting| waiting.is(pid)) {
            if found.is_ok_and(|found| !found.iter().any(counts)) {
                waiting.end();
            }
            continue;
        }
        let found = asked_of(cgroup, pid, found)?.unwrap_or_default();
        objections.extend(found.into_iter().filter(counts));
        if objections.len() > OBJECTIONS_MAX {
            break;
        }
    }
    if objections.is_empty() {
        Ok(())
    } else {
        Err(Unfit::Objections(objections.into_iter().collect()))
    }
}

/// A process has a wire in another network namespace than the one that is fenced.
fn refuse_other_wires(cgroup: &Cgroup, fenced: u64) -> Result<(), Unfit> {
    let hosts = hosts()?;
    for candidate in networks(cgroup)?.into_iter().filter(|candidate| candidate.inode != fenced) {
        if !hosts.contains(&candidate.inode) {
            if capture::reaches_out(&candidate.namespace)? {
                return Err(Unfit::SeveralNetworks);
            }
            continue;
        }
        for pid in candidate.others.into_iter().chain([candidate.pid]) {
            if asked_of(cgroup, pid, discover::can_send_raw(pid))? == Some(true) {
                return Err(Unfit::RawInHostNetwork { pid });
            }
        }
    }
    Ok(())
}

/// What was found of a process; none of one that has ended meanwhile, and does nothing any more.
fn asked_of<T>(cgroup: &Cgroup, pid: Pid, found: io::Result<T>) -> Result<Option<T>, Unfit> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(source) if is_still_in(cgroup, pid)? => Err(Unfit::Process { pid, source }),
        Err(_gone) => Ok(None),
    }
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

/// Some of them: a workload can make any number of mounts, with any names.
fn in_words(objections: &[Objection]) -> String {
    let shown = |objection: &Objection| {
        let words: String = objection.to_string().chars().take(OBJECTION_CHARS_MAX).collect();
        words
    };
    let mut words: Vec<String> = objections.iter().take(OBJECTIONS_SAID).map(shown).collect();
    let more = objections.len().saturating_sub(OBJECTIONS_SAID);
    if more > 0 {
        words.push(format!("{more} more"));
    }
    words.join("; and ")
}

/// Enough to be sure; one process can add as many as it has mounts.
const OBJECTIONS_MAX: usize = 1_000;
/// More than there are kinds.
const OBJECTIONS_SAID: usize = 24;
/// With a path of usual length.
const OBJECTION_CHARS_MAX: usize = 600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_workload_is_bounded_however_many_mounts_it_makes_and_whatever_their_names()
    {
        let mount = |number: usize| {
            let seen =
                format!("a cgroup2 file system can be written at /{number}/{}", "x".repeat(4_000));
            Objection::Waivable(Waiver::KernelMounts, seen)
        };
        let said = |count| Unfit::Objections((0..count).map(mount).collect()).to_string();
        assert!(said(2).contains("/1/x") && !said(2).contains("more"), "the control");
        let many = said(50_000);
        assert!(many.len() < 20_000, "{} bytes", many.len());
        assert!(many.ends_with("49976 more"), "{many}");
    }
}
