//! What `tollgate status` shows of a workload.

use std::time::Duration;

use super::Workload;
use crate::admin::{Connections, NetworkReport, State, WorkloadReport};

impl Workload {
    /// What `tollgate status` shows of it.
    pub(in crate::daemon) fn status(&self) -> WorkloadReport {
        let state = match (&self.served, &self.closed) {
            (Some(_), _) => State::Served,
            (None, Some(_)) => State::Closed,
            (None, None) => State::NotClosed,
        };
        let network = self.served.as_ref().map(|served| NetworkReport {
            fenced: served.wires.census().fenced(),
            unfenceable: served.wires.census().unfenceable(),
            neighbours: self.openings.neighbours.iter().map(ToString::to_string).collect(),
            inbound: self.openings.inbound.clone(),
        });
        WorkloadReport {
            agent: self.agent.to_string(),
            is_known: self.is_known,
            workload: self.name.clone(),
            container: self.container.as_deref().map(|container| (*container.names).clone()),
            cgroup: self.cgroup.path().to_owned(),
            cgroup_id: self.cgroup.id(),
            way_in: self.way_in,
            state,
            why: (state != State::Served).then(|| self.why_not()),
            network,
            trust: self.told.report(),
            connections: Connections { open: self.tally.open(), total: self.tally.connections() },
            refusals: self.tally.refusals(),
            governed_s: self.found.elapsed().as_secs(),
            open_ms: self.open_for.map(in_millis),
            armed_ms: self.served.as_ref().map(|served| in_millis(served.after)),
        }
    }

    fn why_not(&self) -> String {
        match self.complaint.trouble() {
            Some(trouble) => trouble.to_owned(),
            None if self.closed.is_some() => NO_PROCESS.to_owned(),
            None => "its programs are being attached".to_owned(),
        }
    }
}

fn in_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const NO_PROCESS: &str = "no process is in it";
