//! How often something may happen: a token bucket in the form of one point in time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets `burst` events through at once and then one every `interval`.
#[derive(Debug)]
pub(crate) struct Bucket {
    interval: Duration,
    /// How far the point below may lie ahead of now.
    slack: Duration,
    /// When everything let through so far would be paid for, at one `interval` each (GCRA's "theoretical arrival
    /// time"); `None` before the first event.
    paid_until: Mutex<Option<Instant>>,
}

impl Bucket {
    pub(crate) fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, slack: interval.saturating_mul(burst), paid_until: Mutex::new(None) }
    }

    /// Takes one token, if there is one at `now`.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let start = paid_until.map_or(now, |until| until.max(now));
        let Some(end) = start.checked_add(self.interval) else {
            return false;
        };
        if end.saturating_duration_since(now) > self.slack {
            return false;
        }
        *paid_until = Some(end);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(10);

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        let bucket = Bucket::new(INTERVAL, 5);
        let start = Instant::now();
        assert_eq!((0..20).filter(|_| bucket.take(start)).count(), 5);
        assert!(!bucket.take(start + INTERVAL / 2));
        assert!(bucket.take(start + INTERVAL));
        assert!(!bucket.take(start + INTERVAL));
        assert_eq!((0..20).filter(|_| bucket.take(start + INTERVAL * 4)).count(), 3);
    }

    #[test]
    fn a_long_rest_earns_no_more_than_the_burst() {
        let bucket = Bucket::new(INTERVAL, 5);
        let start = Instant::now();
        assert!(bucket.take(start));
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..20).filter(|_| bucket.take(later)).count(), 5);
    }

    #[test]
    fn time_that_goes_backwards_earns_nothing() {
        let bucket = Bucket::new(INTERVAL, 1);
        let now = Instant::now() + Duration::from_secs(10);
        assert!(bucket.take(now));
        assert!(!bucket.take(now - Duration::from_secs(5)));
    }
}
