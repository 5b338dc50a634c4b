//! What one workload has done so far, in numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::record::Record;
use super::{Decision, Kind};

/// Counts connections to the gateway and refusals of one workload, for as long as the gateway knows it. The audit log
/// is the account; this is what one looks at.
#[derive(Debug, Default)]
pub struct Tally {
    open: AtomicU64,
    connections: AtomicU64,
    refusals: AtomicU64,
}

/// A connection that is counted as open while this lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Tally>);

impl Tally {
    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections that were accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// What was refused so far: requests, connections, queries, and what the kernel programs refused. Those of the
    /// kernel that have no record of their own are counted when the record that sums them up is written.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Counts one more connection.
    pub(crate) fn connection(self: &Arc<Self>) -> Counted {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(self))
    }

    /// Counts what `record` is about, where that is a refusal.
    pub(super) fn note(&self, record: &Record) {
        let is_refusal = record.decision == Decision::Block
            && match record.kind {
                Kind::Request | Kind::Connection | Kind::Dns => true,
                // Others are about a wire.
                Kind::Kernel => record.vector.is_some(),
                Kind::Operator => false,
            };
        if is_refusal {
            self.refusals.fetch_add(record.count.unwrap_or(1), Ordering::Relaxed);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{Agent, AgentName};
    use crate::audit::{Reason, Sink, Vector};

    fn agent() -> Arc<Agent> {
        Arc::new(Agent {
            name: AgentName::parse("worker").unwrap(),
            workload: "run-1".to_owned(),
            container: None,
            cgroup_id: 1,
            netns_cookie: 1,
            tally: Arc::default(),
        })
    }

    #[test]
    fn every_refusal_is_counted_once_whether_it_has_a_record_of_its_own_or_not() {
        let (agent, other) = (agent(), agent());
        let sink = Sink::to_writer(Box::new(std::io::sink()));
        let metered = sink.metered(&agent);
        for _ in 0..10_000 {
            drop(metered.open(Kind::Request, &agent, Reason::BlockedByPolicy));
        }
        metered.settle();
        drop(metered.open(Kind::Dns, &agent, Reason::DnsRefused));
        assert_eq!(agent.tally.refusals(), 10_001);
        let mut summary = sink.open(Kind::Kernel, &agent, Reason::KernelRefused);
        summary.vector = Some(Vector::Udp);
        summary.count = Some(40);
        drop(summary);
        assert_eq!(agent.tally.refusals(), 10_041);
        // None of these is one.
        metered.open(Kind::Request, &agent, Reason::AllowedByRule).decision = Decision::Allow;
        drop(sink.open(Kind::Operator, &agent, Reason::WorkloadRefused));
        drop(sink.open(Kind::Kernel, &agent, Reason::WireWasOpen));
        sink.open(Kind::Connection, &agent, Reason::ClientClosed).discard();
        assert_eq!(agent.tally.refusals(), 10_041);
        assert_eq!(other.tally.refusals(), 0);
    }

    #[test]
    fn a_connection_is_open_until_it_ends_and_counted_for_good() {
        let tally = Arc::new(Tally::default());
        let (first, second) = (tally.connection(), tally.connection());
        assert_eq!((tally.open(), tally.connections()), (2, 2));
        drop(first);
        assert_eq!((tally.open(), tally.connections()), (1, 2));
        drop(second);
        assert_eq!((tally.open(), tally.connections()), (0, 2));
    }
}
