//! How many wires a workload has.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The wires of a workload as they were when they were looked at last.
#[derive(Debug, Default)]
pub struct Census {
    fenced: AtomicUsize,
    unfenceable: AtomicUsize,
}

impl Census {
    /// Interfaces that are fenced.
    #[must_use]
    pub fn fenced(&self) -> usize {
        self.fenced.load(Ordering::Relaxed)
    }

    /// Interfaces that cannot be fenced.
    #[must_use]
    pub fn unfenceable(&self) -> usize {
        self.unfenceable.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, fenced: usize, unfenceable: usize) {
        self.fenced.store(fenced, Ordering::Relaxed);
        self.unfenceable.store(unfenceable, Ordering::Relaxed);
    }
}
