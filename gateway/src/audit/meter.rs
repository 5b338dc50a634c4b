//! Refusals of one workload: recorded one by one up to a rate, counted beyond it.
//!
//! A workload can be refused far faster than a disk is filled sensibly. What goes on is always recorded.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::record::Record;
use super::{Decision, Kind, Reason, Sink};
use crate::agent::Agent;
use crate::bucket::Bucket;

/// Counts the refusals of one workload.
pub(super) struct Meter {
    bucket: Bucket,
    suppressed: Mutex<Suppressed>,
    agent: Arc<Agent>,
    sink: Sink,
}

/// What was not recorded since the last record that was.
#[derive(Default)]
struct Suppressed {
    count: u64,
    last: Option<(Kind, Reason)>,
}

impl Meter {
    /// A meter for `agent`, whose last count goes to `sink`.
    pub(super) fn new(agent: Arc<Agent>, sink: Sink) -> Self {
        Self {
            bucket: Bucket::new(REFUSAL_INTERVAL, REFUSAL_BURST),
            suppressed: Mutex::default(),
            agent,
            sink,
        }
    }

    /// Whether `record` is to be written; if so, it says how many before it were not.
    pub(super) fn admits(&self, record: &mut Record, now: Instant) -> bool {
        let is_metered = match (record.decision, record.kind) {
            (Decision::Block, Kind::Request | Kind::Connection) => true,
            // Queries and refusals of the kernel are counted where they arise.
            (Decision::Block, Kind::Dns | Kind::Kernel | Kind::Operator) | (Decision::Allow, _) => {
                false
            }
        };
        if !is_metered {
            return true;
        }
        let mut suppressed = self.suppressed.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.bucket.take(now) {
            suppressed.count += 1;
            suppressed.last = Some((record.kind, record.reason));
            return false;
        }
        if let Some(words) = std::mem::take(&mut *suppressed).words() {
            record.detail = Some(match record.detail.take() {
                Some(detail) => format!("{detail} ({words})"),
                None => words,
            });
        }
        true
    }
}

impl Suppressed {
    fn words(&self) -> Option<String> {
        (self.count > 0).then(|| format!("{} earlier refusals not recorded one by one", self.count))
    }
}

impl Meter {
    /// Writes what was counted and has no later record to stand in.
    pub(super) fn settle(&self) {
        let suppressed =
            std::mem::take(&mut *self.suppressed.lock().unwrap_or_else(PoisonError::into_inner));
        if let (Some(words), Some((kind, reason))) = (suppressed.words(), suppressed.last) {
            // Each of them was counted when it was refused.
            let mut record = Record::new(kind, &self.agent, reason);
            record.detail = Some(words);
            self.sink.write(&mut record);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Refusals in a row that are recorded one by one: a program that tries every door.
const REFUSAL_BURST: u32 = 4096;
/// Then 100 a second.
const REFUSAL_INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::AgentName;

    #[test]
    fn refusals_beyond_the_rate_are_counted_in_the_next_record_and_what_goes_on_is_always_written()
    {
        let file = tempfile::NamedTempFile::new().unwrap();
        let agent = Arc::new(Agent {
            name: AgentName::parse("worker").unwrap(),
            workload: "run-1".to_owned(),
            container: None,
            cgroup_id: 1,
            netns_cookie: 1,
            tally: Arc::default(),
        });
        let sink = Sink::open_file(file.path()).unwrap();
        let metered = sink.metered(&agent);
        let refused = u64::from(REFUSAL_BURST) * 2;
        for _ in 0..refused {
            drop(metered.open(Kind::Request, &agent, Reason::BlockedByPolicy));
        }
        metered.open(Kind::Request, &agent, Reason::AllowedByRule).decision = Decision::Allow;
        drop(metered.open(Kind::Dns, &agent, Reason::DnsRefused));
        drop(metered);
        let text = std::fs::read_to_string(file.path()).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |reason: &str| lines.iter().filter(|line| line["reason"] == reason).count();
        assert_eq!((of("allowed_by_rule"), of("dns_refused")), (1, 1));
        let counted = |line: &serde_json::Value| -> Option<u64> {
            let words = line["detail"].as_str()?.trim_start_matches('(');
            words.split(' ').next()?.parse().ok()
        };
        let written = of("blocked_by_policy") as u64;
        let suppressed: u64 = lines.iter().filter_map(counted).sum();
        // The last line is about the others, and no refusal of its own.
        assert_eq!(written - 1 + suppressed, refused);
        assert!(suppressed > 0 && written >= u64::from(REFUSAL_BURST), "{written} written");
        // The control: without a meter each has its line.
        let before = std::fs::read_to_string(file.path()).unwrap().lines().count();
        for _ in 0..refused {
            drop(sink.open(Kind::Request, &agent, Reason::BlockedByPolicy));
        }
        let after = std::fs::read_to_string(file.path()).unwrap().lines().count();
        assert_eq!((after - before) as u64, refused);
    }
}
