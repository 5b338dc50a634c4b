//! Which network namespace is a workload's.
//!
//! By its processes, and by nothing that has a name: a process is held before it is asked, and it counts only when it
//! is still in the cgroup afterwards.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use nix::unistd::Pid;

use crate::capture::{Cgroup, HeldProcess, Namespace};
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
    Cgroup(#[from] crate::capture::CgroupError),
    /// The kernel does not say.
    #[error(transparent)]
    Namespace(#[from] crate::capture::NamespaceError),
}

struct Candidate {
    process: HeldProcess,
    pid: Pid,
    namespace: Namespace,
    inode: u64,
    started: u64,
}

/// The network namespace of a cgroup's processes: the one of the process that was first, as namespaces that a workload
/// makes for itself are made later. `None` when there is no process.
pub(super) fn network_of(cgroup: &Cgroup) -> Result<Option<Namespace>, Unfit> {
    let mut hosts = vec![Namespace::own()?.inode()?];
    hosts.extend(machines_own());
    let mut candidates = Vec::new();
    for pid in cgroup.processes()? {
        if pid.as_raw() == 0 {
            return Err(Unfit::Invisible);
        }
        candidates.extend(Candidate::of(pid)?);
    }
    // A number that was given to another process in between names one that started later, or elsewhere.
    let still = cgroup.processes()?;
    candidates.retain(|candidate| {
        still.contains(&candidate.pid) && candidate.process.started() == Some(candidate.started)
    });
    if candidates.is_empty() {
        return Ok(None);
    }
    candidates.retain(|candidate| !hosts.contains(&candidate.inode));
    let first = candidates.into_iter().min_by_key(|candidate| (candidate.started, candidate.pid));
    first.map(|candidate| Some(candidate.namespace)).ok_or(Unfit::HostNetwork)
}

/// The network namespace of the machine's first process, where that may be looked at: the daemon may live in another.
fn machines_own() -> Option<u64> {
    HeldProcess::of(Pid::from_raw(1))?.network().ok()??.inode().ok()
}

impl Candidate {
    /// None when the process has ended.
    fn of(pid: Pid) -> Result<Option<Self>, Unfit> {
        let Some(process) = HeldProcess::of(pid) else { return Ok(None) };
        let (Some(namespace), Some(started)) = (process.network()?, process.started()) else {
            return Ok(None);
        };
        let inode = namespace.inode()?;
        Ok(Some(Self { process, pid, namespace, inode, started }))
    }
}

/// Whether a process of the cgroup is in this network namespace, which somebody holds: its number is not another's.
pub(super) fn lives_in(cgroup: &Cgroup, inode: u64) -> bool {
    let is_there =
        |pid| Candidate::of(pid).is_ok_and(|found| found.is_some_and(|it| it.inode == inode));
    cgroup.processes().is_ok_and(|processes| processes.into_iter().any(is_there))
}

/// The first process of a container, which is its runtime's until it becomes the container's own program.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pid: Pid,
    /// Device and inode of the runtime's program.
    runtime: (u64, u64),
}

impl Waiting {
    /// The process `pid`, as long as its program is the one that it has now.
    pub(super) fn of(pid: Pid) -> io::Result<Self> {
        Ok(Self { pid, runtime: program_of(pid)? })
    }

    fn is(&self, pid: Pid) -> bool {
        self.pid == pid && program_of(pid).is_ok_and(|program| program == self.runtime)
    }
}

fn program_of(pid: Pid) -> io::Result<(u64, u64)> {
    let program = fs::metadata(format!("/proc/{pid}/exe"))?;
    Ok((program.dev(), program.ino()))
}

/// Refuses a workload of which a process could undo its government, but for what the operator waives. A process that
/// waits to become a container's has not begun to be one.
pub(super) fn refuse_what_cannot_be_held(
    cgroup: &Cgroup,
    permit: &[Waiver],
    waiting: Option<&Waiting>,
) -> Result<(), Unfit> {
    let mut objections: Vec<Objection> = Vec::new();
    let is_waiting = |pid: &Pid| waiting.is_some_and(|waiting| waiting.is(*pid));
    for pid in cgroup.processes()?.into_iter().filter(|pid| !is_waiting(pid)) {
        match discover::examine(pid) {
            Ok(found) => objections.extend(found),
            // It ends, and does nothing any more: a process that lives has namespaces to look at.
            Err(error) if is_gone(&error) => {}
            Err(source) => return Err(Unfit::Process { pid, source }),
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

fn in_words(objections: &[Objection]) -> String {
    objections.iter().map(ToString::to_string).collect::<Vec<_>>().join("; and ")
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_waits_until_it_becomes_another_program() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read line; exec sleep 1000"]).stdin(std::process::Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let is_program = |name: &str| {
            fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|exe| exe.file_name().unwrap().to_str().unwrap().contains(name))
        };
        while !is_program("sh") {
            std::thread::yield_now();
        }
        let waiting = Waiting::of(pid).unwrap();
        assert!(waiting.is(pid) && !waiting.is(nix::unistd::getpid()));
        drop(child.stdin.take());
        while !is_program("sleep") {
            std::thread::yield_now();
        }
        assert!(!waiting.is(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!waiting.is(pid) && Waiting::of(pid).is_err());
    }
}
