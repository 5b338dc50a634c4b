//! Pins without a workload: of cgroups that are gone, and of cgroups that no agent matches any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Context;
use super::pins::{PINS_PREFIX, pins_name, remove_if_dead};
use super::workload::Workload;
use crate::agent::{Agent, AgentName};
use crate::audit::Reason;

/// What was said of pins that stay.
#[derive(Default)]
pub(super) struct Sweep {
    said: BTreeSet<u64>,
}

impl Sweep {
    /// Removes the pins of cgroups that are gone with all their sockets; says once which closed cgroups nobody governs.
    pub(super) fn sweep(&mut self, context: &Context, workloads: &BTreeMap<u64, Workload>) {
        let names = match context.bpf.workloads() {
            Ok(names) => names,
            Err(error) => return tracing::warn!(%error, "pins cannot be swept"),
        };
        let ids = names.iter().filter_map(|name| name.strip_prefix(PINS_PREFIX)?.parse().ok());
        for id in ids.filter(|id| !workloads.contains_key(id)) {
            if !remove_if_dead(&context.bpf, &pins_name(id)) && self.said.insert(id) {
                report(context, id);
            }
        }
    }

    /// It is governed again: should it be left once more, that is news.
    pub(super) fn forget(&mut self, id: u64) {
        self.said.remove(&id);
    }
}

fn report(context: &Context, id: u64) {
    let Some(path) = context.cgroups.path_of(id) else {
        tracing::debug!(cgroup = id, "sockets of a cgroup that is gone live on, and stay governed");
        return;
    };
    let path = path.display().to_string();
    let reason =
        "no agent matches it any more: its sockets are refused everything until it is removed";
    tracing::warn!(workload = path, "{reason}");
    let Ok(name) = AgentName::parse(NOBODY) else { return };
    let tally = Arc::default();
    let agent =
        Agent { name, workload: path, container: None, cgroup_id: id, netns_cookie: 0, tally };
    context.record(&Arc::new(agent), Reason::WorkloadRefused, reason);
}

/// Stands for the agent where nobody knows it.
const NOBODY: &str = "unknown";
