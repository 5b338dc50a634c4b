//! When a rule is in force.

use super::*;

fn instant(text: &str) -> SystemTime {
    SystemTime::from(text.parse::<jiff::Timestamp>().unwrap())
}

/// What a rule with these keys does at an instant: as one that allows, and as one that blocks.
fn does(keys: &str, now: SystemTime) -> (bool, bool) {
    let rule = |default: &str, action: &str| {
        policy(&format!(
            "[[agent]]\nname = 'a'\ndefault = '{default}'\n\
             [[rule]]\nname = 'r'\naction = '{action}'\nhosts = ['a.example.com']\n{keys}\n"
        ))
    };
    let head = request("GET https://a.example.com/", &[]);
    let host = HostName::parse("a.example.com").unwrap();
    let (allowing, blocking) = (rule("deny", "allow"), rule("allow", "block"));
    let allows = said(decide(&allowing, &agent("a"), &head, now)) == "allow r";
    let blocks = said(decide(&blocking, &agent("a"), &head, now)) == "block r";
    // A name is open as long as some request to it is.
    let names = |policy| decide_name(policy, &agent("a"), &host, now) == NameVerdict::Permitted;
    assert_eq!((names(&allowing), names(&blocking)), (allows, !blocks), "{keys}");
    (allows, blocks)
}

#[test]
fn a_rule_is_in_force_at_its_hours_on_its_days_until_its_end() {
    let rows = [
        ("", "2026-11-22T12:00:00Z", true),
        // The end: the instant itself is not part of it, in whatever offset it is written.
        ("expires = 2026-11-22T12:00:00Z", "2026-11-22T11:59:59.999Z", true),
        ("expires = 2026-11-22T12:00:00Z", "2026-11-22T12:00:00Z", false),
        ("expires = '2026-11-22T13:00:00+01:00'", "2026-11-22T11:59:59Z", true),
        ("expires = '2026-11-22T13:00:00+01:00'", "2026-11-22T12:00:00Z", false),
        ("expires = '2026-11-22t12:00:00z'", "2026-11-22T12:00:00Z", false),
        // Hours: from the first minute to before the last.
        ("hours = ['09:00-17:30']", "2026-11-22T08:59:59Z", false),
        ("hours = ['09:00-17:30']", "2026-11-22T09:00:00Z", true),
        ("hours = ['09:00-17:30']", "2026-11-22T17:29:59.999999999Z", true),
        ("hours = ['09:00-17:30']", "2026-11-22T17:30:00Z", false),
        ("hours = ['00:00-24:00']", "2026-11-22T23:59:59Z", true),
        ("hours = ['08:00-09:00', '12:00-13:00']", "2026-11-22T12:30:00Z", true),
        ("hours = ['08:00-09:00', '12:00-13:00']", "2026-11-22T10:30:00Z", false),
        // Past midnight.
        ("hours = ['22:00-06:00']", "2026-11-22T23:00:00Z", true),
        ("hours = ['22:00-06:00']", "2026-11-22T05:59:00Z", true),
        ("hours = ['22:00-06:00']", "2026-11-22T06:00:00Z", false),
        ("hours = ['22:00-00:00']", "2026-11-22T23:59:59Z", true),
        ("hours = ['22:00-00:00']", "2026-11-22T00:00:00Z", false),
        // Days: 2026-11-20 is a Friday.
        ("days = ['fri']", "2026-11-20T00:00:00Z", true),
        ("days = ['fri']", "2026-11-19T23:59:59Z", false),
        ("days = ['FRI']", "2026-11-21T00:00:00Z", false),
        ("days = ['mon-fri']", "2026-11-20T12:00:00Z", true),
        ("days = ['mon-fri']", "2026-11-21T12:00:00Z", false),
        ("days = ['sat-mon']", "2026-11-22T12:00:00Z", true),
        ("days = ['sat-mon']", "2026-11-23T12:00:00Z", true),
        ("days = ['sat-mon']", "2026-11-24T12:00:00Z", false),
        ("days = ['mon', 'fri-sun']", "2026-11-21T12:00:00Z", true),
        // The night of a Friday ends on Saturday morning, that of a Saturday is none.
        ("days = ['fri']\nhours = ['22:00-06:00']", "2026-11-20T22:00:00Z", true),
        ("days = ['fri']\nhours = ['22:00-06:00']", "2026-11-21T05:59:59Z", true),
        ("days = ['fri']\nhours = ['22:00-06:00']", "2026-11-20T05:00:00Z", false),
        ("days = ['fri']\nhours = ['22:00-06:00']", "2026-11-21T22:00:00Z", false),
        // The clock on the wall: Berlin is an hour ahead in winter, two in summer.
        ("hours = ['09:00-10:00']\ntime_zone = 'Europe/Berlin'", "2026-01-15T08:30:00Z", true),
        ("hours = ['09:00-10:00']\ntime_zone = 'Europe/Berlin'", "2026-07-15T08:30:00Z", false),
        ("hours = ['09:00-10:00']\ntime_zone = 'Europe/Berlin'", "2026-07-15T07:30:00Z", true),
        ("hours = ['09:00-10:00']\ntime_zone = 'europe/berlin'", "2026-07-15T07:30:00Z", true),
        ("days = ['mon']\ntime_zone = 'Pacific/Auckland'", "2026-11-22T11:30:00Z", true),
        ("days = ['sun']\ntime_zone = 'Pacific/Auckland'", "2026-11-22T11:30:00Z", false),
        ("hours = ['05:45-06:00']\ntime_zone = 'Asia/Kathmandu'", "2026-11-22T00:00:00Z", true),
        // 2026-03-29 has no 02:30 in Berlin: what would be 02:30 is 03:30.
        ("hours = ['02:00-03:00']\ntime_zone = 'Europe/Berlin'", "2026-03-29T00:59:59Z", false),
        ("hours = ['02:00-03:00']\ntime_zone = 'Europe/Berlin'", "2026-03-29T01:00:00Z", false),
        ("hours = ['01:00-02:00']\ntime_zone = 'Europe/Berlin'", "2026-03-29T00:59:59Z", true),
        ("hours = ['03:00-04:00']\ntime_zone = 'Europe/Berlin'", "2026-03-29T01:30:00Z", true),
        // 2026-10-25 has 02:30 twice.
        ("hours = ['02:00-03:00']\ntime_zone = 'Europe/Berlin'", "2026-10-25T00:30:00Z", true),
        ("hours = ['02:00-03:00']\ntime_zone = 'Europe/Berlin'", "2026-10-25T01:30:00Z", true),
        ("hours = ['02:00-03:00']\ntime_zone = 'Europe/Berlin'", "2026-10-25T02:00:00Z", false),
        // Far beyond what the database lists, its rules go on.
        ("hours = ['09:00-10:00']\ntime_zone = 'Europe/Berlin'", "2099-07-15T07:30:00Z", true),
        // All parts hold together.
        ("hours = ['09:00-10:00']\nexpires = 2026-11-01T00:00:00Z", "2026-11-22T09:30:00Z", false),
        ("hours = ['09:00-10:00']\ndays = ['mon']", "2026-11-22T09:30:00Z", false),
    ];
    for (keys, now, expected) in rows {
        assert_eq!(does(keys, instant(now)), (expected, expected), "{keys} at {now}");
    }
}

#[test]
fn where_the_clock_is_no_time_a_rule_with_a_schedule_forbids_and_does_not_allow() {
    let beyond = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1 << 60);
    for keys in ["expires = 2026-11-22T12:00:00Z", "hours = ['09:00-10:00']", "days = ['mon']"] {
        assert_eq!(does(keys, beyond), (false, true), "{keys}");
    }
    assert_eq!(does("", beyond), (true, true), "without a schedule no clock is asked");
}

#[test]
fn what_sleeps_is_told() {
    let policy = policy(
        "[[agent]]\nname = 'a'\n\
         [[rule]]\nname = 'over'\naction = 'block'\nexpires = 2026-01-01T00:00:00Z\n\
         [[rule]]\nname = 'night'\naction = 'allow'\nhours = ['22:00-06:00']\n\
         [[rule]]\nname = 'elsewhere'\nhosts = ['b.example']\naction = 'allow'\nhours = ['22:00-06:00']\n\
         [[rule]]\nname = 'always'\naction = 'allow'\n",
    );
    let now = instant("2026-11-22T12:00:00Z");
    let asleep = dormant(&policy, &agent("a"), &request("GET https://a.example/", &[]), now);
    let asleep: Vec<_> = asleep.iter().map(|(name, standing)| (name.as_str(), *standing)).collect();
    assert_eq!(asleep, [("over", Standing::Expired), ("night", Standing::OutsideHours)]);
    let expired: Vec<_> = policy.expired_rules(now).map(RuleName::as_str).collect();
    assert_eq!(expired, ["over"]);
    assert_eq!(policy.expired_rules(instant("2025-12-31T00:00:00Z")).count(), 0);
}

proptest! {
    #[test]
    fn hours_in_utc_are_those_of_the_day(
        begin in 0u64..1440,
        end in 0u64..1440,
        day in 0u64..20_000,
        minute in 0u64..1440,
    ) {
        prop_assume!(begin != end);
        let text = |minute: u64| format!("{:02}:{:02}", minute / 60, minute % 60);
        let hours = Hours::parse(&format!("{}-{}", text(begin), text(end))).unwrap();
        let weekly = Weekly { days: Days::ALL, hours: vec![hours], zone: jiff::tz::TimeZone::UTC };
        let schedule = Schedule { expires: None, weekly: Some(weekly) };
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs((day * 1440 + minute) * 60);
        let length = (end + 1440 - begin) % 1440;
        let expected = (minute + 1440 - begin) % 1440 < length;
        prop_assert_eq!(schedule.standing(now) == Standing::InForce, expected);
    }

    #[test]
    fn what_is_no_span_is_refused(text in "\\PC{0,20}|[0-9:-]{0,14}|[a-z-]{0,10}") {
        prop_assert!(Hours::parse(&text).is_err() || text.len() == "09:00-17:30".len());
        prop_assert!(Days::parse(&text).is_err() || [3, 7].contains(&text.len()));
    }
}
