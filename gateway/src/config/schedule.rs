//! `expires`, `hours`, `days` and `time_zone` of a `[[rule]]`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use toml::de::DeValue;

use super::diagnostic::{Findings, Located};
use super::reader::{Table, nearest, shown, wrong_type};
use crate::policy::{Days, Hours, HoursError, Schedule, Weekly, time_zone, time_zone_names};

/// Reads when a rule is in force; none where nothing limits it.
pub(super) fn schedule(findings: &mut Findings, table: &mut Table<'_>) -> Option<Schedule> {
    let expires = expires(findings, table);
    let (has_hours, has_days) = (table.has("hours"), table.has("days"));
    let hours = hours(findings, table);
    let days = days(findings, table);
    let zone_place = table.place_of("time_zone");
    let zone = zone(findings, table);
    let weekly = (has_hours || has_days).then(|| Weekly {
        days: days.unwrap_or(Days::ALL),
        hours: hours.unwrap_or_else(|| vec![Hours::ALL]),
        zone: zone.unwrap_or(TimeZone::UTC),
    });
    if let (None, Some(place)) = (&weekly, zone_place) {
        let help = "add `hours` or `days`, or remove it";
        findings.add(place, "`time_zone` has no effect without `hours` or `days`", help);
    }
    (expires.is_some() || weekly.is_some()).then_some(Schedule { expires, weekly })
}

/// An instant, as a string or as TOML's own date and time.
fn expires(findings: &mut Findings, table: &mut Table<'_>) -> Option<Timestamp> {
    const HELP: &str =
        "write it with its offset from UTC, for example `expires = 2027-01-31T18:00:00Z`";
    let value = table.take("expires")?;
    let text = match value.value {
        DeValue::String(text) => text.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        other => {
            wrong_type(findings, value.place, "expires", "a date and time", other);
            return None;
        }
    };
    // RFC 3339 has nothing behind the offset; what else the parser takes is not asked for.
    let is_rfc_3339 = !text.contains('[') && !text.starts_with(['+', '-']);
    let parsed = text.parse().ok().filter(|_instant| is_rfc_3339);
    if parsed.is_none() {
        let message = format!("`{}` is not a date and time of RFC 3339", shown(&text));
        findings.add(value.place, message, HELP);
    }
    parsed
}

fn hours(findings: &mut Findings, table: &mut Table<'_>) -> Option<Vec<Hours>> {
    let texts = table.strings(findings, "hours", Some("leave `hours` out for the whole day"))?;
    let mut hours = Vec::new();
    for text in texts {
        match Hours::parse(text.value) {
            Ok(span) => hours.push(span),
            Err(error) => {
                let help = match error {
                    HoursError::Malformed => {
                        "write like \"09:00-17:30\"; \"22:00-06:00\" ends on the next day"
                    }
                    HoursError::Empty => "write \"00:00-24:00\" for the whole day",
                };
                let message = format!("`{}` is not a span of hours: {error}", shown(text.value));
                findings.add(text.place, message, help);
            }
        }
    }
    Some(hours)
}

fn days(findings: &mut Findings, table: &mut Table<'_>) -> Option<Days> {
    let texts = table.strings(findings, "days", Some("leave `days` out for the whole week"))?;
    let mut days = Days::NONE;
    for text in texts {
        match Days::parse(text.value) {
            Ok(span) => days = days.and(span),
            Err(error) => {
                let help = "write mon, tue, wed, thu, fri, sat or sun, or a span like \"mon-fri\"";
                findings.add(text.place, format!("`{}` is {error}", shown(text.value)), help);
            }
        }
    }
    Some(days)
}

fn zone(findings: &mut Findings, table: &mut Table<'_>) -> Option<TimeZone> {
    let text: Located<&str> = table.string(findings, "time_zone")?;
    let zone = time_zone(text.value);
    if zone.is_none() {
        let names = time_zone_names();
        let help = match nearest(text.value, names.iter().map(String::as_str)) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "use a name of the IANA database, for example \"Europe/Berlin\"".to_owned(),
        };
        let message = format!("there is no time zone `{}`", shown(text.value));
        findings.add(text.place, message, help);
    }
    zone
}
