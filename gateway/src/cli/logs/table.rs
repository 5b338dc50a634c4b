//! A record → one row for people. Whatever an agent put into a record comes out as text that cannot move a cursor,
//! end a line or pass for another column.

use super::line::Line;

const COLUMNS: [(&str, usize); 8] = [
    ("TIME", 24),
    ("AGENT", 12),
    ("WORKLOAD", 16),
    ("PROCESS", 20),
    ("WHAT", 20),
    ("DESTINATION", 32),
    ("REASON", 24),
    ("COUNT", 6),
];

pub(super) fn header() -> String {
    join(&COLUMNS.map(|(name, _width)| name.to_owned()), "DETAIL")
}

pub(super) fn row(line: &Line) -> String {
    let process = line.process.as_ref().map_or_else(
        || NOTHING.to_owned(),
        |process| format!("{}[{}]", cell(&process.comm), process.pid),
    );
    let reason = line.rule.as_ref().map_or_else(
        || cell(&line.reason),
        |rule| format!("{}({})", cell(&line.reason), cell(rule)),
    );
    // The last, so that nothing can stand behind it.
    let detail =
        line.detail.as_deref().map(|detail| escaped(detail, DETAIL_MAX)).unwrap_or_default();
    let cells = [
        time(&line.ts),
        cell(&line.agent),
        cell(&line.workload),
        process,
        what(line),
        destination(line),
        reason,
        line.count.unwrap_or(1).to_string(),
    ];
    join(&cells, &detail)
}

const NOTHING: &str = "-";

fn join(cells: &[String; COLUMNS.len()], last: &str) -> String {
    let mut row = String::new();
    for (cell, (_name, width)) in cells.iter().zip(COLUMNS) {
        row.push_str(&format!("{cell:<width$} "));
    }
    row.push_str(last);
    row.truncate(row.trim_end().len());
    row
}

/// Milliseconds are as fine as people read.
fn time(ts: &str) -> String {
    match ts.split_once('.') {
        Some((seconds, fraction)) if fraction.ends_with('Z') && fraction.is_ascii() => {
            let digits = fraction.trim_end_matches('Z');
            format!("{}.{:0<3}Z", cell(seconds), cell(digits.get(..3).unwrap_or(digits)))
        }
        _ => cell(ts),
    }
}

/// The way out of a refusal, the method of a request, the type of a query; else the kind.
fn what(line: &Line) -> String {
    match (&line.vector, &line.method) {
        (Some(vector), _) => cell(vector),
        (None, Some(method)) if line.kind == "dns" => format!("dns/{}", cell(method)),
        (None, Some(method)) => cell(method),
        (None, None) => cell(&line.kind),
    }
}

fn destination(line: &Line) -> String {
    let scheme = line.scheme.as_deref().map(|scheme| format!("{}:", cell(scheme)));
    let scheme = scheme.unwrap_or_default();
    let Some(host) = &line.host else {
        return if scheme.is_empty() { NOTHING.to_owned() } else { scheme };
    };
    let host = if host.contains(':') { format!("[{}]", cell(host)) } else { cell(host) };
    let port = line.port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = line.path.as_deref().map(cell).unwrap_or_default();
    let slashes = if line.kind == "request" { "//" } else { "" };
    format!("{scheme}{slashes}{host}{port}{path}")
}

/// How much of one value is shown: a path may fill a screen.
const CELL_MAX: usize = 120;
const DETAIL_MAX: usize = 200;

/// One value; in quotes where it could be taken for two.
fn cell(text: &str) -> String {
    if text.is_empty() {
        return NOTHING.to_owned();
    }
    let cell = escaped(text, CELL_MAX);
    if cell.contains(' ') { format!("\"{cell}\"") } else { cell }
}

/// Letters, digits and ASCII signs as they are, everything else escaped.
fn escaped(text: &str, max: usize) -> String {
    let mut escaped = String::new();
    for (number, character) in text.chars().enumerate() {
        match character {
            _ if number >= max => {
                escaped.push('…');
                break;
            }
            '\\' | '"' => escaped.extend(['\\', character]),
            ' ' => escaped.push(' '),
            plain if plain.is_ascii_graphic() || plain.is_alphanumeric() => escaped.push(plain),
            other => escaped.push_str(&format!("\\u{{{:x}}}", u32::from(other))),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row_of(text: &str) -> String {
        row(&Line::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn every_kind_of_record_has_its_row() {
        let rows = [
            (
                r#"{"ts":"2026-01-31T12:00:00.123456Z","kind":"kernel","agent":"worker","workload":"run-1","process":{"pid":7,"comm":"nc"},
                   "scheme":"udp","host":"203.0.113.9","port":443,"reason":"kernel_refused","vector":"udp","detail":"so \u001b[2J"}"#,
                "2026-01-31T12:00:00.123Z worker       run-1            nc[7]                udp                  udp:203.0.113.9:443              kernel_refused           1      so \\u{1b}[2J",
            ),
            (
                r#"{"ts":"2026-01-31T12:00:00Z","kind":"kernel","agent":"worker","workload":"run-1","reason":"kernel_refused","vector":"udp","count":99980}"#,
                "2026-01-31T12:00:00Z     worker       run-1            -                    udp                  -                                kernel_refused           99980",
            ),
            (
                r#"{"ts":"2026-01-31T12:00:00.5Z","kind":"request","agent":"worker","workload":"run-1","scheme":"https","method":"GET",
                   "host":"2001:db8::9","port":443,"path":"/v1","reason":"allowed_by_rule","rule":"read"}"#,
                "2026-01-31T12:00:00.500Z worker       run-1            -                    GET                  https://[2001:db8::9]:443/v1     allowed_by_rule(read)    1",
            ),
            (
                r#"{"ts":"","kind":"dns","agent":"worker","method":"AAAA","host":"mail.test","reason":"dns_nxdomain"}"#,
                "-                        worker       -                -                    dns/AAAA             mail.test                        dns_nxdomain             1",
            ),
        ];
        for (record, expected) in rows {
            assert_eq!(row_of(record), expected);
        }
    }

    #[test]
    fn nothing_that_an_agent_calls_itself_reaches_the_terminal() {
        let comm = r#"\u001b[2Ja\nb\rc\u0007\u007f\u0085\u009b\u202e\u200b\u0301"#;
        let record = format!(
            r#"{{"ts":"t","kind":"kernel","agent":"a","process":{{"pid":1,"comm":"{comm}"}},"reason":"kernel_refused"}}"#
        );
        let row = row_of(&record);
        assert!(row.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{row:?}");
        assert!(row.contains(r"\u{1b}[2Ja\u{a}b\u{d}c"), "{row}");
        // One that would look like more columns is one.
        let record = r#"{"ts":"t","kind":"kernel","agent":"a","process":{"pid":1,"comm":"x udp 1\"2\\"},"reason":"r"}"#;
        assert!(row_of(record).contains(r#""x udp 1\"2\\"[1]"#), "{}", row_of(record));
    }

    #[test]
    fn a_value_that_fills_a_screen_is_cut() {
        let record = format!(
            r#"{{"ts":"t","kind":"request","host":"h","path":"/{}","reason":"r"}}"#,
            "a".repeat(10_000)
        );
        assert!(row_of(&record).chars().count() < 400);
    }
}
