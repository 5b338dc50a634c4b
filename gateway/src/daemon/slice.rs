//! Tollgate's slice: its gate, and what is in it without being anybody's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Context;
use super::complaint::Complaint;
use super::containers::Containers;
use super::pins::pins_name;
use super::workload::Workload;
use crate::agent::{Agent, AgentName, ContainerNames};
use crate::audit::Reason;
use crate::capture::{Cgroup, SLICE, SliceGate};

/// How long a cgroup with processes may be nobody's before that is said: engines take a while to tell of a container.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Slice {
    gate: Option<SliceGate>,
    complaint: Complaint,
    /// By cgroup id.
    nobodys: BTreeMap<u64, Nobodys>,
}

/// A cgroup with processes that no agent is.
struct Nobodys {
    /// Below the mount of the hierarchy.
    path: PathBuf,
    since: Instant,
    is_told: bool,
}

impl Slice {
    /// Makes the slice and puts its gate to work, where that is not so yet or not any more.
    pub(super) fn close(&mut self, context: &Context) {
        if self.gate.as_ref().is_some_and(|gate| gate.slice().is_some()) {
            return;
        }
        let is_lost = self.gate.take().is_some();
        if is_lost {
            self.broken(
                context,
                "somebody removed it; what started in a new one before now was open",
            );
        }
        if !self.complaint.is_due(Instant::now()) {
            return;
        }
        // To learn at once when it is removed.
        context.watch.children_of(context.cgroups.mount());
        match SliceGate::close(&context.cgroups, &context.bpf) {
            Ok(gate) => {
                self.gate = Some(gate);
                self.complaint.clear();
                tracing::info!("what is started in {SLICE} is closed from its creation");
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                if self.complaint.note(&error, Duration::ZERO, Instant::now()) {
                    self.broken(context, &error);
                }
            }
        }
    }

    /// Looks whether the gate is still at work, puts it to work again when it is not, and forgets what is gone.
    pub(super) fn verify(&mut self, context: &Context) {
        let Some(gate) = &mut self.gate else { return };
        if gate.slice().is_none() {
            return;
        }
        let verified = match gate.verify() {
            Ok(()) => gate.sweep(&context.bpf),
            Err(broken) => {
                let again = gate.close_again(&context.cgroups, &context.bpf);
                let broken = format!("{:#}; it is closed again", anyhow::Error::from(broken));
                self.broken(context, &broken);
                again
            }
        };
        if let Err(error) = verified {
            let error = format!("{:#}", anyhow::Error::from(error));
            if self.complaint.note(&error, Duration::ZERO, Instant::now()) {
                self.broken(context, &error);
            }
        }
    }

    /// Says once of each cgroup in the slice that is nobody's why nothing works in it.
    pub(super) fn look(
        &mut self,
        context: &Context,
        workloads: &BTreeMap<u64, Workload>,
        containers: &Containers,
    ) {
        let Some(slice) = self.gate.as_ref().and_then(SliceGate::slice) else { return };
        let mut found = Vec::new();
        collect_nobodys(slice.path(), context, workloads, &mut found);
        self.nobodys.retain(|id, _| found.iter().any(|cgroup| cgroup.id() == *id));
        for cgroup in found {
            let below = cgroup.path().strip_prefix(context.cgroups.mount());
            let path = Path::new("/").join(below.unwrap_or_else(|_elsewhere| cgroup.path()));
            let new = Nobodys { path, since: Instant::now(), is_told: false };
            let nobodys = self.nobodys.entry(cgroup.id()).or_insert(new);
            if !nobodys.is_told && nobodys.since.elapsed() > PATIENCE {
                nobodys.is_told = true;
                let container = containers.names_at(&nobodys.path);
                report(context, cgroup.id(), &nobodys.path, container);
            }
        }
    }

    /// What `tollgate status` shows of it.
    pub(super) fn status(&self) -> Value {
        let is_closed = self.gate.as_ref().is_some_and(|gate| gate.verify().is_ok());
        let told = self.nobodys.values().filter(|nobodys| nobodys.is_told);
        let paths: Vec<_> = told.map(|nobodys| nobodys.path.display().to_string()).collect();
        json!({
            "path": format!("/{SLICE}"),
            "gate": if is_closed { "closed" } else { "open" },
            "nobodys": paths,
        })
    }

    fn broken(&self, context: &Context, what: &str) {
        let detail = format!("the gate of {SLICE} is not at work: {what}");
        tracing::error!("{detail}");
        let agent = unknown(format!("/{SLICE}"), None, 0);
        context.record(&agent, Reason::EnforcementBroken, &detail);
    }
}

/// The topmost cgroups below `directory` that have processes of their own, and are neither a workload nor closed as one.
fn collect_nobodys(
    directory: &Path,
    context: &Context,
    workloads: &BTreeMap<u64, Workload>,
    found: &mut Vec<Cgroup>,
) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(cgroup) = context.cgroups.open(&entry.path()) else { continue };
        let id = cgroup.id();
        if workloads.contains_key(&id) || context.bpf.existing(&pins_name(id)).is_some() {
            continue;
        }
        let has_own = fs::read(entry.path().join("cgroup.procs")).is_ok_and(|it| !it.is_empty());
        if has_own {
            found.push(cgroup);
        } else {
            collect_nobodys(&entry.path(), context, workloads, found);
        }
    }
}

fn report(context: &Context, id: u64, path: &Path, container: Option<Arc<ContainerNames>>) {
    let detail = format!(
        "it is in {SLICE} and is no agent's: everything is refused to it. Give it the label tollgate.agent=NAME or an agent whose `match` holds for it, or start it without --cgroup-parent"
    );
    let name = match &container {
        Some(names) => names.to_string(),
        None => path.display().to_string(),
    };
    tracing::warn!(workload = name, "{detail}");
    context.record(&unknown(name, container, id), Reason::WorkloadRefused, &detail);
}

fn unknown(workload: String, container: Option<Arc<ContainerNames>>, cgroup_id: u64) -> Arc<Agent> {
    let name = AgentName::unknown();
    let tally = Arc::default();
    Arc::new(Agent { name, workload, container, cgroup_id, netns_cookie: 0, tally })
}
