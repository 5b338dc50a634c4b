//! One line of the audit log → what is read of it. Pure functions over bytes.

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit::{Reason, is_deceptive};

/// A record, as far as it is looked at here. Fields of other versions are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    pub(super) ts: String,
    pub(super) kind: String,
    pub(super) reason: String,
    #[serde(default)]
    pub(super) agent: String,
    #[serde(default)]
    pub(super) workload: String,
    pub(super) process: Option<Process>,
    pub(super) scheme: Option<String>,
    pub(super) method: Option<String>,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) path: Option<String>,
    pub(super) vector: Option<String>,
    pub(super) count: Option<u64>,
    pub(super) rule: Option<String>,
    pub(super) detail: Option<String>,
}

/// Who did it, as the workload calls itself.
#[derive(Debug, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    #[serde(default)]
    pub(super) comm: String,
}

impl Line {
    /// `None` for what is no record: a line that a full disk or a crash has torn.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    pub(super) fn time(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(&self.ts, &Rfc3339).ok()
    }

    /// A reason that this version does not know is shown: a reader of warnings should rather see too much.
    pub(super) fn is_security(&self) -> bool {
        let reason: Result<Reason, serde::de::value::Error> =
            Reason::deserialize(serde::de::value::StrDeserializer::new(&self.reason));
        matches!(self.kind.as_str(), "kernel" | "operator")
            || reason.map_or(true, Reason::is_security)
    }
}

/// A whole record as it stands in the log; what a terminal would obey is escaped, should anybody else have written it.
pub(super) fn as_it_stands(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(bytes).chars() {
        match character {
            // In JSON they stand between values only.
            '\t' | '\r' => text.push(' '),
            other if is_deceptive(other) => text.push_str(&format!("\\u{:04x}", u32::from(other))),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, reason: &str) -> Line {
        let text =
            format!(r#"{{"ts":"2026-01-31T12:00:00Z","kind":"{kind}","reason":"{reason}"}}"#);
        Line::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn refusals_deceptions_and_warnings_are_security_and_everyday_decisions_are_not() {
        let rows = [
            ("kernel", "kernel_refused", true),
            ("operator", "allowed_by_rule", true),
            ("connection", "no_flow_record", true),
            ("connection", "unknown_protocol", true),
            ("request", "destination_mismatch", true),
            ("request", "blocked_address", true),
            ("request", "bad_request", true),
            ("request", "upstream_untrusted", true),
            ("request", "a_word_of_a_later_version", true),
            ("request", "allowed_by_rule", false),
            ("request", "blocked_by_default_policy", false),
            ("dns", "dns_answered", false),
            ("connection", "client_closed", false),
        ];
        for (kind, reason, expected) in rows {
            assert_eq!(line(kind, reason).is_security(), expected, "{kind} {reason}");
        }
    }

    #[test]
    fn no_part_of_a_record_is_a_record() {
        let whole = br#"{"ts":"t","kind":"dns","reason":"dns_answered","process":{"pid":1}}"#;
        assert!(Line::parse(whole).is_some());
        for length in 0..whole.len() {
            assert!(Line::parse(&whole[..length]).is_none(), "{length}");
            assert!(Line::parse(&whole[length + 1..]).is_none(), "{length}");
        }
        for other in ["[]", "1", "{}", "null", "\"x\"", "{\"ts\":1,\"kind\":\"dns\"}", "\u{0}"] {
            assert!(Line::parse(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn a_line_stays_the_same_json_when_what_terminals_obey_is_escaped() {
        let raw = "{\"ts\":\t\"\u{9b}2J\u{202e}\",\"kind\":\"é\",\"reason\":\"\"}\r";
        let said = as_it_stands(raw.as_bytes());
        assert!(!said.chars().any(is_deceptive), "{said:?}");
        let (before, after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(raw).unwrap(), serde_json::from_str(&said).unwrap());
        assert_eq!(before, after);
    }
}
