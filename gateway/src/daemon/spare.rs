//! Programs that are loaded before there is a cgroup for them, so that a new one is closed at once.

use std::collections::VecDeque;
use std::thread::available_parallelism;

use tokio::task::{JoinHandle, spawn_blocking};

use crate::capture::Spare;

/// Those that are ready or on their way, each loaded on a thread of its own.
#[derive(Default)]
pub(super) struct Spares {
    coming: VecDeque<JoinHandle<Option<Spare>>>,
}

/// Most that there are at a time: each holds the memory of a workload's maps.
const SPARES_MAX: usize = 8;

impl Spares {
    /// Starts to load as many as are `wanted`, and one at least: not more at a time than there are processors to check
    /// them. Must be called inside a tokio runtime.
    pub(super) fn refill(&mut self, wanted: usize, kernel_log: u8) {
        let most = available_parallelism().map_or(1, usize::from).min(SPARES_MAX);
        while self.coming.len() < wanted.clamp(1, most) {
            self.coming.push_back(spawn_blocking(move || {
                let loaded = Spare::load(kernel_log);
                // Whoever needs one loads it then, and says what is wrong.
                loaded.inspect_err(|error| tracing::debug!(%error, "no spare programs")).ok()
            }));
        }
    }

    /// The one that is ready first, or that will be sooner than a new one.
    pub(super) async fn take(&mut self) -> Option<Spare> {
        self.coming.pop_front()?.await.ok().flatten()
    }
}
