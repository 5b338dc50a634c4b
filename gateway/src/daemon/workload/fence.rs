//! The wires of a workload: fenced before anything of it is opened, and while nothing is.

use anyhow::Context as _;

use super::super::Context;
use super::super::pins::pins_name;
use super::Workload;
use crate::audit::{self, Reason};
use crate::capture::{Fenced, Namespace, Wires};

/// The wires of a network of a workload that is not served: fenced as they come, and nothing open.
pub(super) struct Held {
    pub(super) wires: Wires,
    pub(super) inode: u64,
}

impl Workload {
    pub(super) fn fence(
        &mut self,
        network: &Namespace,
        context: &Context,
    ) -> anyhow::Result<Fenced> {
        // Kept until the new fence stands, so that the gate goes on closing what comes.
        let former: Vec<_> =
            self.held.drain(..).map(|held| (held.inode, held.wires.rest())).collect();
        let fenced = self.try_fence(network, context);
        if fenced.is_err() {
            for (inode, former) in former {
                self.hold(former, inode, context);
            }
        }
        fenced
    }

    /// Fences the wires of several networks, of which none is to be opened.
    pub(super) fn hold_all(
        &mut self,
        networks: Vec<(u64, Namespace)>,
        context: &Context,
    ) -> anyhow::Result<()> {
        for (inode, network) in networks {
            if !self.held.iter().any(|held| held.inode == inode) {
                let fenced = self.try_fence(&network, context)?;
                self.hold(Some(fenced), inode, context);
            }
        }
        Ok(())
    }

    fn try_fence(&mut self, network: &Namespace, context: &Context) -> anyhow::Result<Fenced> {
        let closed = self.closed.as_mut().context("it is not closed")?;
        let pins = context.bpf.open_or_create(&pins_name(self.cgroup.id()))?;
        Ok(closed.fence(network, &pins, &self.openings, &context.gate)?)
    }

    /// Keeps the wires of a workload fenced that is not served.
    pub(super) fn hold(&mut self, fenced: Option<Fenced>, inode: u64, context: &Context) {
        let Some(fenced) = fenced else { return };
        match fenced.hold() {
            Ok(mut wires) => {
                let (audit, agent) = (context.audit.clone(), self.as_agent(0));
                // It ends with the watch.
                tokio::spawn(audit::audit_wires(wires.take_events(), audit, agent));
                self.held.push(Held { wires, inode });
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(workload = self.name, "its interfaces are not watched: {error}");
                context.record(&self.as_agent(0), Reason::EnforcementBroken, &error);
            }
        }
    }
}
