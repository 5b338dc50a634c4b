//! Which network namespaces are served, and for whom.
//!
//! A network namespace is one trust domain: it has one gateway, whose listener is the identity of all that connects to
//! it, and one fence. A second workload in it (`docker run --network container:…`) is not served but refused
//! everything, whoever its agent is, until the first one is gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The networks that are served, by their inode numbers, with what people know their workloads by.
#[derive(Clone, Default)]
pub(super) struct Networks(Arc<Mutex<BTreeMap<u64, String>>>);

/// A network that is one workload's as long as this lives.
pub(super) struct Tenure {
    networks: Networks,
    inode: u64,
}

/// Another workload has the network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it shares the network namespace of {holder}, which is served there: a network is one trust domain with one agent; give it a network of its own, or run both programs in one container"
)]
pub(super) struct Taken {
    /// Which one.
    pub(super) inode: u64,
    holder: String,
}

impl Networks {
    /// Takes a network, which the caller keeps from going, for the workload that is called `name`.
    pub(super) fn take(&self, inode: u64, name: &str) -> Result<Tenure, Taken> {
        let mut held = self.held();
        if let Some(holder) = held.get(&inode) {
            return Err(Taken { inode, holder: holder.clone() });
        }
        held.insert(inode, name.to_owned());
        drop(held);
        Ok(Tenure { networks: self.clone(), inode })
    }

    /// Whether nobody is served there.
    pub(super) fn is_free(&self, inode: u64) -> bool {
        !self.held().contains_key(&inode)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        self.networks.held().remove(&self.inode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_one_workloads_until_that_lets_it_go() {
        let networks = Networks::default();
        let first = networks.take(7, "first").ok().unwrap();
        let other = networks.take(8, "other");
        assert!(other.is_ok() && !networks.is_free(7));
        let taken = networks.take(7, "second").err().unwrap();
        assert!(taken.to_string().contains("of first, which is served"), "{taken}");
        drop(first);
        assert!(networks.is_free(7) && !networks.is_free(8));
        assert!(networks.take(7, "second").is_ok());
    }
}
