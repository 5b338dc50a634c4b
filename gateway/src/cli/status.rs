//! `tollgate status` and `tollgate reload`: asking the daemon.

use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};

use super::Printed;
use crate::admin::{
    self, Answer, NetworkReport, Report, State, TrustReport, WayIn, WorkloadReport,
};

/// Say what the daemon governs: whose it is, what is open to it and why, its connections and refusals
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A reload reads every credential, which may be on a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn main(arguments: &Arguments) -> Printed {
    match ask(Method::GET, "/v1/status") {
        Ok(answer) if arguments.json => Printed::success(format!("{}\n", answer.body)),
        Ok(answer) => match serde_json::from_value(answer.body) {
            Ok(report) => Printed::success(table(report)),
            Err(_of_another_version) => Printed::failure(
                "tollgate: the daemon is another version of Tollgate: use `--json`, or restart it\n"
                    .to_owned(),
            ),
        },
        Err(failure) => failure,
    }
}

pub(super) fn reload() -> Printed {
    match ask(Method::POST, "/v1/reload") {
        Ok(_answer) => Printed::success(RELOADED.to_owned()),
        Err(failure) => failure,
    }
}

const RELOADED: &str = "OK: agents, rules and credentials were read again; [gateway], [dns] and [upstream] need a restart\n";

/// What the daemon answers, or what is wrong.
fn ask(method: Method, path: &'static str) -> Result<Answer, Printed> {
    let asked = admin::ask(Path::new(admin::SOCKET), method, path, None, PATIENCE);
    match asked {
        Ok(answer) if answer.status == StatusCode::OK => Ok(answer),
        Ok(answer) => {
            let why = answer
                .body
                .get("error")
                .and_then(|error| error.as_str())
                .unwrap_or("the daemon refuses");
            Err(Printed::failure(format!("{}\n", why.trim_end())))
        }
        Err(error) => Err(Printed::misuse(format!("tollgate: {:#}\n", anyhow::Error::from(error)))),
    }
}

/// One line for each workload, and one more where something is to be said about it.
fn table(mut report: Report) -> String {
    let mut text = String::new();
    for engine in report.engines.iter().filter(|engine| engine.answers == Some(false)) {
        text += &format!("no container engine answers at {}\n", engine.socket.display());
    }
    if report.workloads.is_empty() {
        return text + "nothing is governed\n";
    }
    report.workloads.sort_by(|a, b| (&a.agent, &a.workload).cmp(&(&b.agent, &b.workload)));
    let heads = HEADS.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(heads).chain(report.workloads.iter().map(row)).collect();
    let mut widths = [0; HEADS.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let notes = std::iter::once(Vec::new()).chain(report.workloads.iter().map(notes));
    for (row, notes) in rows.iter().zip(notes) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
        for note in notes {
            text += &format!("    {note}\n");
        }
    }
    text
}

const HEADS: [&str; 10] = [
    "AGENT",
    "WORKLOAD",
    "IMAGE",
    "WAY IN",
    "STATE",
    "NETWORK",
    "TRUST",
    "CONNECTIONS",
    "REFUSALS",
    "GOVERNED",
];

fn row(workload: &WorkloadReport) -> [String; HEADS.len()] {
    let image = workload.container.as_ref().map_or("-", |container| container.image.as_str());
    let connections = workload.connections;
    [
        legible(&workload.agent),
        legible(&workload.workload),
        legible(image),
        way_in(workload.way_in).to_owned(),
        match workload.state {
            State::Served => "served",
            State::Closed => "closed",
            State::NotClosed => "NOT CLOSED",
        }
        .to_owned(),
        workload.network.as_ref().map_or_else(|| "-".to_owned(), network),
        match &workload.trust {
            TrustReport::Unknown => "unknown",
            TrustReport::Covered { .. } => "covered",
            TrustReport::Incomplete { .. } => "incomplete",
        }
        .to_owned(),
        format!("{} of {}", connections.open, connections.total),
        workload.refusals.to_string(),
        age(workload.governed_s),
    ]
}

/// What the table has no room for.
fn notes(workload: &WorkloadReport) -> Vec<String> {
    let mut notes = Vec::new();
    if !workload.is_known {
        notes.push("the configuration has no such agent: everything is denied to it".to_owned());
    }
    notes.extend(workload.why.iter().map(|why| format!("not served: {}", legible(why))));
    if let TrustReport::Incomplete { why } = &workload.trust {
        notes.extend(why.iter().map(|why| format!("does not trust the CA: {}", legible(why))));
    }
    notes
}

fn way_in(way: WayIn) -> &'static str {
    match way {
        WayIn::Label => "label",
        WayIn::Name => "name",
        WayIn::Cgroup => "cgroup",
        WayIn::Slice => "slice",
        WayIn::Runtime => "runtime",
    }
}

fn network(network: &NetworkReport) -> String {
    let NetworkReport { fenced, unfenceable, neighbours, inbound } = network;
    let mut words = match (fenced, unfenceable) {
        (0, 0) => return "loopback only".to_owned(),
        (fenced, 0) => format!("{fenced} fenced"),
        (fenced, unfenceable) => format!("{fenced} fenced, {unfenceable} UNFENCEABLE"),
    };
    if !neighbours.is_empty() {
        words += &format!(", to {}", neighbours.join(" "));
    }
    if !inbound.is_empty() {
        let ports: Vec<_> = inbound.iter().map(ToString::to_string).collect();
        words += &format!(", from anyone to {}", ports.join(" "));
    }
    words
}

/// In the largest unit that it has one of.
fn age(seconds: u64) -> String {
    const UNITS: [(u64, char); 3] = [(86_400, 'd'), (3600, 'h'), (60, 'm')];
    let unit = UNITS.into_iter().find(|(length, _)| seconds >= *length);
    let (length, letter) = unit.unwrap_or((1, 's'));
    format!("{}{letter}", seconds / length)
}

/// Without what a terminal would obey: whoever starts a container chooses its names.
fn legible(text: &str) -> String {
    let shown =
        |character| if crate::audit::is_deceptive(character) { '\u{fffd}' } else { character };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(workloads: &[serde_json::Value]) -> Report {
        serde_json::from_value(json!({
            "pid": 1,
            "slice": {},
            "engines": [{ "socket": "/run/docker.sock", "answers": false }],
            "workloads": workloads,
        }))
        .unwrap()
    }

    fn served() -> serde_json::Value {
        json!({
            "agent": "mail",
            "is_known": true,
            "workload": "inbox (0123456789ab)",
            "container": { "id": "0123456789abcdef", "name": "inbox", "image": "agents/mail:1" },
            "cgroup": "/sys/fs/cgroup/docker/0123456789abcdef",
            "cgroup_id": 7,
            "way_in": "label",
            "state": "served",
            "why": null,
            "network": { "fenced": 1, "unfenceable": 0, "neighbours": ["10.0.0.0/24:5432"], "inbound": [8080] },
            "trust": { "state": "covered", "stores": 3 },
            "connections": { "open": 2, "total": 40 },
            "refusals": 3,
            "governed_s": 7300,
            "open_ms": null,
            "armed_ms": 41,
        })
    }

    #[test]
    fn every_workload_has_a_line_and_what_is_wrong_is_said_below_it() {
        let mut closed = served();
        closed["agent"] = json!("code");
        closed["workload"] = json!("/system.slice/a\u{1b}[2Jb.service");
        closed["container"] = json!(null);
        closed["way_in"] = json!("cgroup");
        closed["state"] = json!("closed");
        closed["why"] = json!("its processes share the host's network namespace");
        closed["network"] = json!(null);
        closed["trust"] = json!({ "state": "incomplete", "why": ["/etc/x.pem: it is too large"] });
        closed["is_known"] = json!(false);
        closed["governed_s"] = json!(59);
        let expected = "\
no container engine answers at /run/docker.sock
AGENT  WORKLOAD                      IMAGE          WAY IN  STATE   NETWORK                                             TRUST       CONNECTIONS  REFUSALS  GOVERNED
code   /system.slice/a\u{fffd}[2Jb.service  -              cgroup  closed  -                                                   incomplete  2 of 40      3         59s
    the configuration has no such agent: everything is denied to it
    not served: its processes share the host's network namespace
    does not trust the CA: /etc/x.pem: it is too large
mail   inbox (0123456789ab)          agents/mail:1  label   served  1 fenced, to 10.0.0.0/24:5432, from anyone to 8080  covered     2 of 40      3         2h
";
        assert_eq!(table(report(&[served(), closed])), expected);
        assert!(table(report(&[])).ends_with("nothing is governed\n"));
    }

    #[test]
    fn a_network_is_told_by_what_is_open_of_it() {
        let rows =
            [((0, 0), "loopback only"), ((2, 0), "2 fenced"), ((1, 1), "1 fenced, 1 UNFENCEABLE")];
        for ((fenced, unfenceable), expected) in rows {
            let (neighbours, inbound) = (Vec::new(), Vec::new());
            let report = NetworkReport { fenced, unfenceable, neighbours, inbound };
            assert_eq!(network(&report), expected);
        }
    }
}
