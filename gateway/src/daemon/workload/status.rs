//! What `tollgate status` shows of a workload.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Workload;
use crate::admin::{Connections, NetworkReport, State, TrustReport, WorkloadReport};
use crate::trust;

/// What is known of a workload's trust; whoever finds out more says so.
#[derive(Clone, Default)]
pub(in crate::daemon) struct TrustNote(Arc<Mutex<Option<TrustReport>>>);

impl TrustNote {
    /// Takes down what was found when the stores were covered.
    pub(in crate::daemon) fn covered(&self, report: &trust::Report) {
        let uncovered = report.stores.iter().filter_map(|store| {
            Some(format!("{}: {}", store.path.display(), store.problem.as_ref()?))
        });
        let mut why: Vec<String> = uncovered.collect();
        if !report.is_complete {
            why.push("not everything was looked at".to_owned());
        }
        self.set(if why.is_empty() {
            TrustReport::Covered { stores: report.stores.len() }
        } else {
            TrustReport::Incomplete { why }
        });
    }

    /// Takes down why they could not be covered.
    pub(in crate::daemon) fn failed(&self, why: String) {
        self.set(TrustReport::Incomplete { why: vec![why] });
    }

    fn set(&self, report: TrustReport) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    fn report(&self) -> TrustReport {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone().unwrap_or(TrustReport::Unknown)
    }
}

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
            trust: self.trust.report(),
            connections: Connections { open: self.tally.open(), total: self.tally.connections() },
            refusals: self.tally.refusals(),
            governed_s: self.found.elapsed().as_secs(),
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
