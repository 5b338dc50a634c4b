//! Programs that are loaded before there is a cgroup for them, so that a new one is closed at once.

use tokio::task::{JoinHandle, spawn_blocking};

use crate::capture::Spare;

/// One, loaded on a thread of its own.
#[derive(Default)]
pub(super) struct Spares {
    coming: Option<JoinHandle<Option<Spare>>>,
}

impl Spares {
    /// Starts to load one, unless there is one or it is on its way. Must be called inside a tokio runtime.
    pub(super) fn refill(&mut self, kernel_log: u8) {
        if self.coming.is_none() {
            self.coming = Some(spawn_blocking(move || {
                let loaded = Spare::load(kernel_log);
                // Whoever needs one loads it then, and says what is wrong.
                loaded.inspect_err(|error| tracing::debug!(%error, "no spare programs")).ok()
            }));
        }
    }

    /// The one that is ready, or that will be sooner than a new one.
    pub(super) async fn take(&mut self) -> Option<Spare> {
        self.coming.take()?.await.ok().flatten()
    }
}
