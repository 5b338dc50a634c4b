//! One governed cgroup.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::unistd::Pid;

use super::Daemon;
use super::discover::Found;
use crate::agent::Agent;
use crate::audit;
use crate::capture::{self, Captured, Cgroup, Closed, Namespace, Pins, Wires};
use crate::dns::Search;
use crate::gateway::Serving;

/// How long open exchanges may take to end when the daemon ends.
const DRAIN: Duration = Duration::from_millis(500);

/// A cgroup that is closed, and served unless its examination failed.
pub(super) struct Workload {
    agent: Arc<Agent>,
    cgroup: Cgroup,
    pins: Pins,
    serving: Serving,
    wires: Wires,
}

impl Daemon {
    /// Closes the cgroup, examines it, opens the way to the gateway.
    pub(super) fn govern(&self, found: Found) -> anyhow::Result<Workload> {
        let Found { agent, cgroup, path } = found;
        let processes = cgroup.processes()?;
        let first = processes.first().copied().context("no process in it yet")?;
        let pins = self.bpf.create(&format!("cg-{}", cgroup.id()))?;
        let mut closed = Closed::close(&cgroup, &pins, self.kernel_log)?;
        let namespace = namespace_of(first)?;
        let spec = self.config.policy.agents().find(|spec| spec.name == agent);
        let openings = spec.map(|spec| spec.openings.clone()).unwrap_or_default();
        let fenced = closed.fence(&namespace, &pins, &openings, &self.gate)?;
        let captured = closed.open(&namespace, self.config.gateway.port)?;
        let mut wires = fenced.watch(captured.netns_cookie)?;
        let Captured { listeners, flows, refusals, log, netns_cookie } = captured;
        let agent = Arc::new(Agent {
            name: agent,
            workload: path.display().to_string(),
            cgroup_id: cgroup.id(),
            netns_cookie,
        });
        // What engines give their containers. The workload's own file is the agent's to write, and is not looked at.
        let search = Search::of_this_machine();
        let flows = Arc::new(flows);
        let serving = self.gateway.serve(Arc::clone(&agent), listeners, flows, &search)?;
        tokio::spawn(audit::audit_refusals(refusals, self.audit.clone(), Arc::clone(&agent)));
        tokio::spawn(audit::audit_wires(
            wires.take_events(),
            self.audit.clone(),
            Arc::clone(&agent),
        ));
        if let Some(log) = log {
            tokio::spawn(capture::relay_log(log));
        }
        tracing::info!(agent = %agent.name, workload = agent.workload, "governed");
        Ok(Workload { agent, cgroup, pins, serving, wires })
    }
}

impl Workload {
    pub(super) fn cgroup_id(&self) -> u64 {
        self.cgroup.id()
    }

    pub(super) fn cgroup_is_there(&self) -> bool {
        self.cgroup.is_there()
    }

    /// The cgroup is gone: nothing of it stays.
    pub(super) fn release(self) {
        tracing::info!(agent = %self.agent.name, workload = self.agent.workload, "released");
        drop(self.serving);
        self.wires.release();
        if let Err(error) = self.pins.remove() {
            tracing::error!(%error, "the pins of a workload that is gone stay");
        }
    }

    /// The daemon ends: what is in flight may end, the cgroup stays closed.
    pub(super) async fn stop(self) {
        self.serving.stop(DRAIN).await;
    }
}

/// The network namespace of a workload's process: one of its own.
fn namespace_of(process: Pid) -> anyhow::Result<Namespace> {
    let namespace = Namespace::of_process(process)?;
    if namespace.inode()? == Namespace::own()?.inode()? {
        anyhow::bail!("it shares the host's network namespace; give it one of its own");
    }
    Ok(namespace)
}
