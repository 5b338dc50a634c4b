//! A container whose first instruction has not run.

use std::time::Duration;

use super::super::Context;
use super::super::examine;
use super::super::spare::Spares;
use super::super::waiting::Waiting;
use super::Workload;

impl Workload {
    /// Opens the way before the first instruction: when this returns, the container is governed, or there is a reason
    /// why it must not run.
    pub(in super::super) async fn arm(
        &mut self,
        waiting: Waiting,
        context: &Context,
        spares: &mut Spares,
    ) -> anyhow::Result<()> {
        self.waiting = Some(waiting);
        let armed = self.try_arm(context, spares).await;
        match &armed {
            Ok(()) => self.complaint.clear(),
            Err(error) => {
                self.disarm();
                self.complain(context, &format!("{error:#}"), Duration::ZERO);
            }
        }
        armed
    }

    async fn try_arm(&mut self, context: &Context, spares: &mut Spares) -> anyhow::Result<()> {
        if self.closed.is_none() {
            self.closed = Some(self.try_close(context, spares).await?.0);
            context.watch.processes_of(self.cgroup.path());
        }
        if self.served.as_ref().is_some_and(|it| !examine::lives_in(&self.cgroup, it.inode)) {
            self.suspend(context).await;
        }
        if self.served.is_none() {
            self.served = self.open(context)?;
            self.unfit_looks = 0;
        }
        anyhow::ensure!(self.served.is_some(), "it has no process");
        Ok(())
    }
}
