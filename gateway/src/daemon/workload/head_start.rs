//! What a workload did before it was closed: told, and cut.

use super::super::{Context, examine, window};
use super::Workload;
use crate::audit::Reason;
use crate::capture::{Closed, SLICE};

impl Workload {
    /// Says for how long it had the open net, if it had.
    pub(super) fn was_open(&mut self, context: &Context, closed: &Closed) {
        let first = self.first_process();
        self.open_for = window::open_for(&self.cgroup, first, closed.gated_since());
        let Some(open_for) = self.open_for else { return };
        self.is_uncut = true;
        let ms = open_for.as_millis();
        tracing::warn!(agent = %self.agent, workload = self.name, open_ms = ms, "it had started before it was closed");
        let detail = format!(
            "it had started before it was closed, and had the open net for at most {ms} ms; start it with --cgroup-parent={SLICE}, or its engine's way of writing that, and it is closed from its creation"
        );
        context.record(&self.as_agent(0), Reason::WorkloadWasOpen, &detail);
    }

    /// Ends what it has opened before it was closed, once it is known in which networks.
    pub(super) fn cut(&mut self, context: &Context) {
        if self.is_uncut
            && let Ok(networks) = examine::all_networks_of(&self.cgroup)
        {
            self.is_uncut = false;
            if let Some(cut) = window::cut(&networks, &self.cgroup) {
                tracing::warn!(agent = %self.agent, workload = self.name, "{cut}");
                context.record(&self.as_agent(0), Reason::WorkloadWasOpen, &cut);
            }
        }
    }
}
