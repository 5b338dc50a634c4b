//! When a rule is in force: until an instant, and in hours and days of a week.
//!
//! What counts is the clock on a wall of the rule's time zone. Where that clock is put forward, the hours that it
//! leaves out do not come; where it is put back, those that come twice count twice.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil::{DateTime, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};

/// When a rule is in force. Absent parts hold always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// From this instant on it is not.
    pub expires: Option<Timestamp>,
    /// The part of the week in which it is.
    pub weekly: Option<Weekly>,
}

/// A part of every week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weekly {
    /// The days.
    pub days: Days,
    /// The hours of these days; never empty. Those that go past midnight belong to the day on which they begin.
    pub hours: Vec<Hours>,
    /// Whose clock is meant.
    pub zone: TimeZone,
}

/// Days of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days(u8);

/// Hours of a day: minutes since midnight, the end excluded. An end before the begin is on the next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    begin: u16,
    end: u16,
}

/// Whether a rule is in force at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    InForce,
    /// Not in these hours, or not on this day.
    OutsideHours,
    /// Not any more.
    Expired,
    /// The clock shows a time that no calendar has: what forbids is in force then, what allows is not.
    Unknown,
}

/// Text that is no span of hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HoursError {
    /// Not of the form `09:00-17:30`.
    #[error("it is not of the form HH:MM-HH:MM")]
    Malformed,
    /// Begin and end are the same.
    #[error("it begins and ends at the same minute")]
    Empty,
}

/// Text that is no day of the week and no span of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither a day of the week nor a span of them")]
pub struct DaysError(());

// === impl Schedule ===

impl Schedule {
    /// Whether it holds at `now`.
    #[must_use]
    pub fn standing(&self, now: SystemTime) -> Standing {
        let Ok(now) = Timestamp::try_from(now) else { return Standing::Unknown };
        if self.expires.is_some_and(|end| now >= end) {
            return Standing::Expired;
        }
        match &self.weekly {
            Some(weekly) if !weekly.holds(weekly.zone.to_datetime(now)) => Standing::OutsideHours,
            Some(_) | None => Standing::InForce,
        }
    }
}

// === impl Weekly ===

impl Weekly {
    fn holds(&self, clock: DateTime) -> bool {
        // Both are within a day, so that neither is negative nor too large.
        let minute = u16::from(clock.hour().unsigned_abs()) * MINUTES_PER_HOUR
            + u16::from(clock.minute().unsigned_abs());
        let today = self.days.has(clock.weekday());
        let yesterday = self.days.has(clock.weekday().previous());
        self.hours.iter().any(|hours| {
            if hours.begin < hours.end {
                today && (hours.begin..hours.end).contains(&minute)
            } else {
                today && minute >= hours.begin || yesterday && minute < hours.end
            }
        })
    }
}

// === impl Days ===

impl Days {
    /// No day.
    pub const NONE: Self = Self(0);
    /// The whole week.
    pub const ALL: Self = Self(0b111_1111);

    /// Parses `mon` or `mon-fri`. A span may go past the end of the week.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, DaysError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (day(first)?, day(last)?);
        let count = first.until(last).unsigned_abs() + 1;
        let span = first.cycle_forward().take(usize::from(count));
        Ok(span.fold(Self::NONE, |days, day| days.and(Self(bit(day)))))
    }

    /// The days of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn has(self, day: Weekday) -> bool {
        self.0 & bit(day) != 0
    }
}

fn bit(day: Weekday) -> u8 {
    1 << day.to_monday_zero_offset()
}

fn day(word: &str) -> Result<Weekday, DaysError> {
    let known = DAYS.iter().find(|(known, _day)| known.eq_ignore_ascii_case(word));
    known.map(|(_word, day)| *day).ok_or(DaysError(()))
}

/// The words for days.
const DAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

// === impl Hours ===

impl Hours {
    /// Midnight to midnight.
    pub const ALL: Self = Self { begin: 0, end: MINUTES_PER_DAY };

    /// Parses `09:00-17:30`. `24:00` is the end of the day.
    ///
    /// # Errors
    /// When it has another form, or no length.
    pub fn parse(text: &str) -> Result<Self, HoursError> {
        let (begin, end) = text.split_once('-').ok_or(HoursError::Malformed)?;
        let (begin, end) = (minute_of_day(begin)?, minute_of_day(end)?);
        match (begin, end) {
            (MINUTES_PER_DAY, _) => Err(HoursError::Malformed),
            (begin, end) if begin == end => Err(HoursError::Empty),
            (begin, end) => Ok(Self { begin, end }),
        }
    }
}

fn minute_of_day(text: &str) -> Result<u16, HoursError> {
    let two_digits = |digits: &str| -> Option<u16> {
        let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|_number| plain)
    };
    let (hour, minute) = text.split_once(':').ok_or(HoursError::Malformed)?;
    match (two_digits(hour), two_digits(minute)) {
        (Some(24), Some(0)) => Ok(MINUTES_PER_DAY),
        (Some(hour @ 0..24), Some(minute @ 0..60)) => Ok(hour * MINUTES_PER_HOUR + minute),
        _ => Err(HoursError::Malformed),
    }
}

const MINUTES_PER_HOUR: u16 = 60;
const MINUTES_PER_DAY: u16 = 24 * MINUTES_PER_HOUR;

// === time zones ===

/// The time zone of the IANA database with this name, in whatever case. The database is part of the program.
pub(crate) fn time_zone(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

/// Their names.
pub(crate) fn time_zone_names() -> Vec<String> {
    TimeZoneDatabase::bundled().available().map(|name| name.as_str().to_owned()).collect()
}
