//! Whether one more event fits a bucket: a pure function, the same code in kernel and tests.

/// What becomes of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Take {
    /// It passes; nothing was owed. The bucket is paid for until this point, in nanoseconds.
    Rested(u64),
    /// It passes, and one interval is added to what is owed.
    Owed,
    /// It does not pass, and costs nothing.
    Refused,
}

/// Decides at `now_ns` about a bucket that is paid for until `paid_until_ns` (GCRA).
#[must_use]
#[inline(always)]
pub const fn take(paid_until_ns: u64, slack_ns: u64, interval_ns: u32, now_ns: u64) -> Take {
    if paid_until_ns <= now_ns {
        return Take::Rested(now_ns.wrapping_add(interval_ns as u64));
    }
    if paid_until_ns.wrapping_sub(now_ns).wrapping_add(interval_ns as u64) > slack_ns {
        return Take::Refused;
    }
    Take::Owed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Bucket;

    const INTERVAL: u32 = 1_000;

    /// How many of `asked` pass at `now`.
    fn passed(bucket: &mut Bucket, now: u64, asked: usize) -> usize {
        let mut passes = || {
            match take(bucket.paid_until_ns, bucket.slack_ns, bucket.interval_ns, now) {
                Take::Rested(until) => bucket.paid_until_ns = until,
                Take::Owed => bucket.paid_until_ns += u64::from(bucket.interval_ns),
                Take::Refused => return false,
            }
            true
        };
        (0..asked).filter(|_| passes()).count()
    }

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        let mut bucket = Bucket::new(INTERVAL, 5, 0);
        assert_eq!(passed(&mut bucket, 50_000, 20), 5);
        assert_eq!(passed(&mut bucket, 50_500, 20), 0);
        assert_eq!(passed(&mut bucket, 51_000, 20), 1);
        assert_eq!(passed(&mut bucket, 54_000, 20), 3);
    }

    #[test]
    fn a_long_rest_earns_no_more_than_the_burst() {
        let mut bucket = Bucket::new(INTERVAL, 5, 0);
        assert_eq!(passed(&mut bucket, 1, 1), 1);
        assert_eq!(passed(&mut bucket, u64::MAX / 2, 20), 5);
    }

    #[test]
    fn refusals_cost_nothing_and_time_that_goes_backwards_earns_nothing() {
        let mut bucket = Bucket::new(INTERVAL, 2, 0);
        assert_eq!(passed(&mut bucket, 90_000, 1_000), 2);
        assert_eq!(passed(&mut bucket, 80_000, 1_000), 0);
        assert_eq!(passed(&mut bucket, 92_000, 1_000), 2);
    }
}
