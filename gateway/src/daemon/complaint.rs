//! What is wrong with a workload is said once, and tried again less and less often.

use std::time::{Duration, Instant};

/// The trouble with one workload.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    reason: String,
    said: Option<String>,
    delay: Duration,
    next: Instant,
}

/// How long a workload may be on its way: its first process joins the cgroup before it has its own network.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// Between the first two tries after something was said; it doubles.
const DELAY_MIN: Duration = Duration::from_secs(1);
/// Between tries at most.
const DELAY_MAX: Duration = Duration::from_secs(10);

impl Complaint {
    /// Whether it is time for another try.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.trouble.as_ref().is_none_or(|trouble| now >= trouble.next)
    }

    /// All is well.
    pub(super) fn clear(&mut self) {
        self.trouble = None;
    }

    /// Why the last try failed, said or not.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|trouble| trouble.reason.as_str())
    }

    /// A try failed for `reason`. Returns whether that is to be said: when it has gone on for `grace`, and was not said
    /// before.
    pub(super) fn note(&mut self, reason: &str, grace: Duration, now: Instant) -> bool {
        let trouble = self.trouble.get_or_insert(Trouble {
            since: now,
            reason: String::new(),
            said: None,
            delay: DELAY_MIN,
            next: now,
        });
        if trouble.reason != reason {
            reason.clone_into(&mut trouble.reason);
        }
        if now.saturating_duration_since(trouble.since) < grace {
            return false;
        }
        trouble.next = now + trouble.delay;
        trouble.delay = (trouble.delay * 2).min(DELAY_MAX);
        let is_new = trouble.said.as_deref() != Some(reason);
        if is_new {
            trouble.said = Some(reason.to_owned());
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_said_once_after_the_grace_and_tries_become_rare() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut complaint = Complaint::default();
        assert!(complaint.is_due(at(0)));
        assert!(!complaint.note("no network of its own", GRACE, at(0)), "on its way");
        assert_eq!(complaint.trouble(), Some("no network of its own"), "who asks is told");
        assert!(complaint.is_due(at(200)));
        assert!(complaint.note("no network of its own", GRACE, at(1000)));
        assert!(!complaint.is_due(at(1999)));
        assert!(complaint.is_due(at(2000)));
        assert!(!complaint.note("no network of its own", GRACE, at(2000)), "said already");
        assert!(!complaint.is_due(at(3999)));
        assert!(complaint.note("the port is taken", GRACE, at(4000)), "another reason");
        for _ in 0..9 {
            complaint.note("the port is taken", GRACE, at(5000));
        }
        assert!(!complaint.is_due(at(14_999)));
        assert!(complaint.is_due(at(15_000)), "at most every ten seconds");
        assert_eq!(complaint.trouble(), Some("the port is taken"));
        complaint.clear();
        assert_eq!(complaint.trouble(), None);
        assert!(complaint.is_due(at(5000)));
        assert!(complaint.note("at once", Duration::ZERO, at(5000)));
    }
}
