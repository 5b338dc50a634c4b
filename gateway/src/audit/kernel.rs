//! What the kernel programs refused, as records: one each, or one for many that are only counted.
//!
//! Records and counts add up to the number of refusals, whatever is limited where.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::executable::executable_of;
use super::{Kind, Reason, Sink, Vector};
use crate::agent::Agent;
use crate::capture::{KernelRefusal, Refusals, Watch};

/// The task that writes the records of one workload's refusals. When this is dropped, it writes what is left and ends.
pub struct RefusalAudit {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl RefusalAudit {
    /// Writes what is left, and waits until it is written.
    pub async fn finish(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the last refusals of the kernel are not in the audit log");
        }
    }
}

/// Starts writing records of the refusals of the kernel programs. Must be called inside a runtime.
#[must_use]
pub fn audit_refusals(refusals: Refusals, audit: Sink, agent: Arc<Agent>) -> RefusalAudit {
    let (stop, stopped) = oneshot::channel();
    let writer = Writer { audit, agent, limit: Limit::default(), over: BTreeMap::new() };
    let task = tokio::spawn(async move {
        if let Err(error) = writer.watch(refusals, stopped).await {
            tracing::error!(%error, "refusals of the kernel are no longer written to the audit log");
        }
    });
    RefusalAudit { stop, task }
}

/// How often one record speaks for all that were only counted, per class.
const SUMMARY_EVERY: Duration = Duration::from_secs(10);
/// Records of one class that a workload may have at once, each with its process. The kernel lets through
/// [`EVENTS_PER_WINDOW`](gateway_ebpf::abi::EVENTS_PER_WINDOW) a second.
const RECORDS_AT_ONCE: u32 = 60;
/// How soon a class may have one more after that. A workload that floods for days must not fill the disk: a full disk
/// stops every agent.
const RECORD_EVERY: Duration = Duration::from_secs(5);

struct Writer {
    audit: Sink,
    agent: Arc<Agent>,
    limit: Limit,
    /// Events over the limit, by class.
    over: BTreeMap<Vector, u64>,
}

impl Writer {
    async fn watch(
        mut self,
        refusals: Refusals,
        mut stopped: oneshot::Receiver<()>,
    ) -> std::io::Result<()> {
        let mut watch = refusals.watch()?;
        let mut ticks = tokio::time::interval(SUMMARY_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_due = tokio::select! {
                ready = watch.ready() => ready.map(|()| false)?,
                _ = ticks.tick() => true,
                _ = &mut stopped => break,
            };
            // Those that have a record of their own come before the sum of those that have none.
            watch.drain(|refusal| self.record(refusal));
            if is_due {
                self.summarize(&mut watch)?;
            }
        }
        watch.drain(|refusal| self.record(refusal));
        self.summarize(&mut watch)
    }

    fn record(&mut self, refusal: KernelRefusal) {
        let vector = refusal.vector;
        if !self.limit.admits(vector, Instant::now()) {
            let over = self.over.entry(vector).or_default();
            *over = over.saturating_add(1);
            return;
        }
        let mut record = self.audit.open(Kind::Kernel, &self.agent, Reason::KernelRefused);
        record.vector = Some(vector);
        record.process = refusal.process.map(|mut process| {
            process.exe = executable_of(process.pid, refusal.at_ns);
            process
        });
        record.scheme = Some(refusal.protocol);
        record.host = refusal.destination.map(|to| to.ip().to_string());
        record.port = refusal.destination.map(|to| to.port()).filter(|port| *port != 0);
        record.cgroup = refusal.cgroup_id;
        record.device = refusal.device;
        record.detail = Some(match refusal.source {
            None => vector.words().to_owned(),
            Some(from) if from.port() == 0 => format!("{}, from {}", vector.words(), from.ip()),
            Some(from) => format!("{}, from {from}", vector.words()),
        });
    }

    /// One record per class for what was only counted since the last one.
    fn summarize(&mut self, watch: &mut Watch) -> std::io::Result<()> {
        let mut over = std::mem::take(&mut self.over);
        for counted in watch.untold()? {
            let here = over.remove(&counted.vector).unwrap_or_default();
            let suppressed = counted.suppressed.saturating_add(here);
            if self.record_many(counted.vector, suppressed, counted.lost) {
                watch.told(&counted)?;
            } else {
                self.over.insert(counted.vector, here);
            }
        }
        for (vector, suppressed) in over {
            if suppressed > 0 && !self.record_many(vector, suppressed, 0) {
                self.over.insert(vector, suppressed);
            }
        }
        Ok(())
    }

    /// Whether the record is written.
    fn record_many(&self, vector: Vector, suppressed: u64, lost: u64) -> bool {
        let count = suppressed.saturating_add(lost);
        let mut record = self.audit.open(Kind::Kernel, &self.agent, Reason::KernelRefused);
        record.vector = Some(vector);
        record.count = Some(count);
        let full = if lost == 0 {
            String::new()
        } else {
            format!(", {lost} of them because the kernel's buffer was full")
        };
        record.detail = Some(format!(
            "{}: {count} more refusals not recorded one by one{full}",
            vector.words()
        ));
        drop(record);
        !self.audit.is_failing()
    }
}

/// How many records a workload may have, class by class: none hides another.
#[derive(Default)]
struct Limit {
    classes: BTreeMap<Vector, Bucket>,
}

struct Bucket {
    left: u32,
    /// When the last records were put in.
    filled: Instant,
}

impl Limit {
    fn admits(&mut self, vector: Vector, now: Instant) -> bool {
        let full = Bucket { left: RECORDS_AT_ONCE, filled: now };
        let bucket = self.classes.entry(vector).or_insert(full);
        let more = now.duration_since(bucket.filled).as_nanos() / RECORD_EVERY.as_nanos();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            bucket.left = bucket.left.saturating_add(more).min(RECORDS_AT_ONCE);
            // Parts of an interval are given up: the limit is never exceeded.
            bucket.filled = now;
        }
        let admitted = bucket.left > 0;
        bucket.left = bucket.left.saturating_sub(1);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_that_floods_has_few_records_and_takes_none_from_another() {
        let mut limit = Limit::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut admitted =
            |vector, seconds| (0..1000).filter(|_| limit.admits(vector, at(seconds))).count();
        assert_eq!(admitted(Vector::Udp, 0), 60);
        assert_eq!(admitted(Vector::WireOut, 0), 60);
        assert_eq!(admitted(Vector::Udp, 4), 0);
        assert_eq!(admitted(Vector::Udp, 5), 1);
        assert_eq!(admitted(Vector::Udp, 16), 2);
        assert_eq!(admitted(Vector::Udp, 10_000), 60);
        // All day long.
        let mut limit = Limit::default();
        let day = (0..86_400).filter(|second| limit.admits(Vector::Udp, at(*second))).count();
        assert!(day <= 60 + 86_400 / 5, "{day}");
    }
}
