//! How long a workload ran before it was closed, and what it had opened by then.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::capture::{Cgroup, Cut, CutError, HeldProcess, Namespace, cut_connections};

/// For how long at most a process of the cgroup may have had the open net until now: since the first one of those that
/// live started, or the one that the engine calls the container's. `None` where there is none, or where the gate of the
/// slice has been closed all the time.
pub(super) fn open_for(
    cgroup: &Cgroup,
    first: Option<Pid>,
    gated_since: Option<Duration>,
) -> Option<Duration> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    let closed = gated_since.map_or(now, |gated| gated.min(now));
    let processes = cgroup.processes().unwrap_or_default().into_iter().chain(first);
    let started = processes.filter_map(|pid| HeldProcess::of(pid)?.started()).min()?;
    let ticks = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let started = Duration::from_millis(started.saturating_mul(1000).checked_div(ticks)?);
    closed.checked_sub(started).filter(|open| !open.is_zero())
}

/// Ends what the workload has opened towards the outside. Returns what is to be said of it, if anything.
pub(super) fn cut(networks: &[Namespace], cgroup: &Cgroup) -> Option<String> {
    let mut all = Cut::default();
    for network in networks {
        match cut_connections(network, cgroup) {
            Ok(cut) => {
                all.ended += cut.ended;
                all.silent += cut.silent;
            }
            // It went away, or the kernel cannot: nothing of them gets through the programs.
            Err(error) => return Some(in_words(error)),
        }
    }
    let Cut { ended, silent } = all;
    let said = format!("connections that it had opened before it was closed were cut: {ended}");
    match (ended, silent) {
        (0, 0) => None,
        (_, 0) => Some(said),
        _silent => Some(format!(
            "{said}; nothing gets through others that the kernel does not end: {silent}"
        )),
    }
}

fn in_words(error: CutError) -> String {
    let error = anyhow::Error::from(error);
    format!(
        "nothing gets through connections from before it was closed, but they were not ended: {error:#}"
    )
}
