//! A workload that is served, and the end of it.

use std::time::Duration;

use tokio::time::timeout;

use super::Lifecycle;

/// A workload that is served. Dropping it cuts everything; [`Serving::stop`] lets requests end.
pub struct Serving {
    lifecycle: Lifecycle,
}

impl Serving {
    pub(super) fn new(lifecycle: Lifecycle) -> Self {
        Self { lifecycle }
    }

    /// Accepts nothing more, lets what is in flight go on for at most `deadline`, and cuts the rest.
    /// Says whether everything ended by itself.
    pub async fn stop(self, deadline: Duration) -> bool {
        let Lifecycle { draining, killed, tasks } = self.lifecycle.clone();
        draining.cancel();
        tasks.close();
        let ended_by_itself = timeout(deadline, tasks.wait()).await.is_ok();
        killed.cancel();
        // Killed tasks end at their next poll and write their records while they do.
        tasks.wait().await;
        ended_by_itself
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.lifecycle.draining.cancel();
        self.lifecycle.killed.cancel();
        self.lifecycle.tasks.close();
    }
}
