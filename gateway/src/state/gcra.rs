//! Sliding limits: the generic cell rate algorithm (ITU-T I.371, annex A, "virtual scheduling") in whole nanoseconds.
//! Pure.
//!
//! What was used is kept as one point in time: when all of it will have come back ("theoretical arrival time"). A unit
//! takes the window's length divided by the limit to come back, and a whole limit may be used at once.

use std::time::Duration;

use super::StateError;
use crate::policy::{Budget, Unit};

/// The rate of one sliding limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    limit: u64,
    /// Nanoseconds.
    window: u64,
    /// How far, in nanoseconds, the point in time may lie ahead.
    capacity: u64,
}

impl Rate {
    pub(super) fn of(budget: &Budget) -> Self {
        let window = u64::try_from(budget.window.length().as_nanos()).unwrap_or(u64::MAX);
        let limit = budget.limit.max(1);
        let mut rate = Self { limit, window, capacity: window };
        // Requests are charged one by one, each rounded up: so much that exactly `limit` of them fit.
        if budget.unit == Unit::Requests {
            rate.capacity = rate.cost(1).saturating_mul(limit);
        }
        rate
    }

    /// How much is left of the limit at `now`, in units.
    pub(super) fn left(&self, paid_until: i64, now: i64) -> u64 {
        let ahead = u64::try_from(paid_until.saturating_sub(now)).unwrap_or(0);
        let free = self.capacity.saturating_sub(ahead);
        // A unit that comes back in less than a nanosecond is there with its nanosecond.
        u64::try_from(u128::from(free) * u128::from(self.limit) / u128::from(self.capacity))
            .unwrap_or(u64::MAX)
    }

    /// The point in time after `amount` units more.
    pub(super) fn charged(&self, paid_until: i64, now: i64, amount: u64) -> i64 {
        let cost = i64::try_from(self.cost(amount)).unwrap_or(i64::MAX);
        paid_until.max(now).saturating_add(cost)
    }

    /// Time until `amount` units are left, at most the whole limit; zero if they are.
    pub(super) fn wait(&self, paid_until: i64, now: i64, amount: u64) -> Duration {
        let needed = self.cost(amount).min(self.capacity);
        let ahead = u64::try_from(paid_until.saturating_sub(now)).unwrap_or(0);
        Duration::from_nanos(ahead.saturating_add(needed).saturating_sub(self.capacity))
    }

    /// The time in which `amount` units come back, rounded up.
    fn cost(&self, amount: u64) -> u64 {
        let cost = (u128::from(amount) * u128::from(self.window)).div_ceil(u128::from(self.limit));
        u64::try_from(cost).unwrap_or(u64::MAX)
    }
}

/// Nanoseconds of Unix time; they fit until 2262.
pub(super) fn nanoseconds(now: Duration) -> Result<i64, StateError> {
    i64::try_from(now.as_nanos()).map_err(|_too_large| StateError::Clock)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Algorithm, Window};

    const SECOND: i64 = 1_000_000_000;

    fn rate(limit: u64, unit: Unit, window: Window) -> Rate {
        Rate::of(&Budget { limit, unit, window, algorithm: Algorithm::Sliding })
    }

    /// Admits one request where there is room, as the store does.
    fn admit(rate: Rate, paid_until: &mut i64, now: i64) -> bool {
        let fits = rate.left(*paid_until, now) > 0;
        if fits {
            *paid_until = rate.charged(*paid_until, now, 1);
        }
        fits
    }

    #[test]
    fn a_burst_of_the_whole_limit_passes_and_then_one_per_interval() {
        // 7 does not divide a minute.
        for limit in [1, 7, 60, 999_983, 1_000_000] {
            let rate = rate(limit, Unit::Requests, Window::Minute);
            let (mut paid_until, now) = (0, 1_767_225_600 * SECOND);
            let passed = (0..limit + 10).filter(|_| admit(rate, &mut paid_until, now)).count();
            assert_eq!(u64::try_from(passed).unwrap(), limit);
            let wait = i64::try_from(rate.wait(paid_until, now, 1).as_nanos()).unwrap();
            assert!(!admit(rate, &mut paid_until, now + wait - 1), "{limit}");
            assert!(admit(rate, &mut paid_until, now + wait), "{limit}");
            assert!(!admit(rate, &mut paid_until, now + wait), "{limit}");
        }
    }

    #[test]
    fn a_clock_window_gives_nothing_new_to_a_sliding_limit() {
        let rate = rate(60, Unit::Requests, Window::Minute);
        let edge = 1_767_225_660 * SECOND;
        let mut paid_until = 0;
        for _ in 0..60 {
            assert!(admit(rate, &mut paid_until, edge - SECOND / 2));
        }
        assert!(!admit(rate, &mut paid_until, edge), "a fixed window would begin anew here");
        assert!(admit(rate, &mut paid_until, edge + SECOND / 2));
    }

    #[test]
    fn what_was_used_beyond_the_limit_is_paid_back_first() {
        let rate = rate(6_000, Unit::Tokens, Window::Minute);
        let now = 1_767_225_600 * SECOND;
        let paid_until = rate.charged(0, now, 9_000);
        assert_eq!(rate.left(paid_until, now), 0);
        assert_eq!(rate.left(paid_until, now + 30 * SECOND), 0);
        assert_eq!(rate.wait(paid_until, now, 1), Duration::from_millis(30_010));
        assert_eq!(rate.left(paid_until, now + 31 * SECOND), 100);
        assert_eq!(rate.left(paid_until, now + 1_000 * SECOND), 6_000);
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_passes_more_than_the_burst_and_the_rate(
            limit in 1_u64..2_000,
            steps in proptest::collection::vec(0_i64..3_000_000_000, 1..200),
        ) {
            let rate = rate(limit, Unit::Requests, Window::Minute);
            let (mut paid_until, mut now) = (0, 1_767_225_600 * SECOND);
            let start = now;
            let mut passed = 0_u64;
            for step in steps {
                now += step;
                for _ in 0..20 {
                    passed += u64::from(admit(rate, &mut paid_until, now));
                }
                let elapsed = u128::try_from(now - start).unwrap();
                let earned = elapsed * u128::from(limit) / 60_000_000_000;
                prop_assert!(u128::from(passed) <= u128::from(limit) + earned);
            }
        }

        #[test]
        fn nothing_that_is_stored_makes_it_panic(
            limit in 1_u64..=1_000_000_000_000, paid_until: i64, now in 0_i64.., amount: u64,
        ) {
            for unit in [Unit::Requests, Unit::Bytes, Unit::Tokens] {
                let rate = rate(limit, unit, Window::Day);
                let after = rate.charged(paid_until, now, amount);
                prop_assert!(rate.left(after, now) <= rate.left(paid_until, now));
                prop_assert!(rate.left(paid_until, now) <= limit);
                let _wait: Duration = rate.wait(paid_until, now, amount);
            }
        }
    }
}
