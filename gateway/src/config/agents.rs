//! `[[agent]]`.

use gateway_ebpf::abi;

use super::diagnostic::{Findings, Located, Place};
use super::reader::{Table, as_string, shown};
use super::sections::choice;
use crate::agent::AgentName;
use crate::net::{Neighbour, Openings};
use crate::policy::{AgentSpec, DefaultAction, WorkloadMatch};

/// An agent with the places that later checks point at.
#[derive(Debug)]
pub(super) struct AgentDraft {
    pub(super) name: Located<AgentName>,
    pub(super) parent: Option<Located<AgentName>>,
    pub(super) spec: AgentSpec,
}

/// Reads one `[[agent]]`; none where it has no usable name. What is wrong is replaced by its closed default, since
/// a configuration with findings is refused anyway.
pub(super) fn agent(findings: &mut Findings, mut table: Table<'_>) -> Option<AgentDraft> {
    let name =
        table.required_string(findings, "name", "give it one, such as `name = \"email-agent\"`");
    let name = name.and_then(|name| agent_name(findings, &name));
    let words = [("deny", DefaultAction::Deny), ("allow", DefaultAction::Allow)];
    let default = table
        .string(findings, "default")
        .and_then(|text| choice(findings, "default", &text, &words))
        .unwrap_or(DefaultAction::Deny);
    let parent = table.string(findings, "parent").and_then(|parent| agent_name(findings, &parent));
    let workloads =
        table.table(findings, "match", "`match`").map(|table| workload_match(findings, table));
    let openings = openings(findings, &mut table);
    table.finish(findings);

    let name = name?;
    let workloads = workloads.unwrap_or_else(|| WorkloadMatch::by_label(&name.value));
    let spec = AgentSpec {
        name: name.value.clone(),
        default,
        parent: parent.as_ref().map(|parent| parent.value.clone()),
        workloads,
        openings,
    };
    Some(AgentDraft { name, parent, spec })
}

/// `agents = […]`: names whose existence is checked when all files have been read.
pub(super) fn agent_names(
    findings: &mut Findings,
    table: &mut Table<'_>,
    empty_help: Option<&str>,
) -> Option<Vec<Located<AgentName>>> {
    let names = table.strings(findings, "agents", empty_help)?;
    Some(names.iter().filter_map(|name| agent_name(findings, name)).collect())
}

fn agent_name(findings: &mut Findings, text: &Located<&str>) -> Option<Located<AgentName>> {
    match AgentName::parse(text.value) {
        Ok(name) => Some(Located { value: name, place: text.place }),
        Err(error) => {
            findings.add(
                text.place,
                error.to_string(),
                "write it in lower case, with `-` between words",
            );
            None
        }
    }
}

fn workload_match(findings: &mut Findings, mut table: Table<'_>) -> WorkloadMatch {
    let mut labels = Vec::new();
    if let Some(label_table) = table.table(findings, "labels", "`labels`") {
        for (key, value) in label_table.entries() {
            if let Some(text) = as_string(findings, "labels", &value) {
                labels.push((key.value.to_owned(), text.value.to_owned()));
            }
        }
    }
    let container = glob(findings, &mut table, "container");
    let cgroup = glob(findings, &mut table, "cgroup");
    if labels.is_empty() && container.is_none() && cgroup.is_none() {
        let help = "name labels, a container or a cgroup, or leave `match` out: then the label `tollgate.agent` decides";
        findings.add(table.place, "`match` has no condition", help);
    }
    table.finish(findings);
    WorkloadMatch { labels, container, cgroup }
}

/// `network`, `neighbours`, `inbound`: what of the wire is open.
fn openings(findings: &mut Findings, table: &mut Table<'_>) -> Openings {
    let place = table.place;
    let words = [("sealed", false), ("neighbours", true)];
    let named = table.string(findings, "network");
    let open = named.as_ref().and_then(|text| choice(findings, "network", text, &words));
    let listed = table.place_of("neighbours");
    let neighbours = neighbours(findings, table);
    match (open, listed) {
        (Some(true), None) => {
            let place = named.map_or(place, |text| text.place);
            let help = "name them: `neighbours = [\"10.0.0.0/24:5432\"]`";
            findings.add(place, "`network` is \"neighbours\", and there are none", help);
        }
        (None | Some(false), Some(place)) if named.is_none() || open.is_some() => {
            let help = "write `network = \"neighbours\"`, or leave `neighbours` out";
            findings.add(place, "`neighbours` has no effect on a sealed network", help);
        }
        _agree => {}
    }
    let listed = table.place_of("inbound");
    let mut inbound = table.ports(findings, "inbound").unwrap_or_default();
    inbound.sort_unstable();
    inbound.dedup();
    if let Some(place) = listed {
        at_most(findings, place, "inbound", inbound.len(), INBOUND_MAX);
        if inbound.contains(&53) {
            findings.add(place, "port 53 is the gateway's in every workload", "leave it out");
        }
    }
    Openings { neighbours, inbound }
}

fn neighbours(findings: &mut Findings, table: &mut Table<'_>) -> Vec<Neighbour> {
    let listed = table.place_of("neighbours");
    let help = "leave `neighbours` out, or name a network and a port";
    let texts = table.strings(findings, "neighbours", Some(help)).unwrap_or_default();
    let mut neighbours: Vec<Neighbour> = Vec::new();
    for text in texts {
        match text.value.parse() {
            Ok(neighbour) => neighbours.push(neighbour),
            Err(error) => {
                let message = format!("\"{}\" is no neighbour: {error}", shown(text.value));
                findings.add(text.place, message, "write it as \"10.0.0.0/24:5432\"");
            }
        }
    }
    if let Some(place) = listed {
        at_most(findings, place, "neighbours", neighbours.len(), NEIGHBOURS_MAX);
    }
    neighbours
}

fn at_most(findings: &mut Findings, place: Place, key: &str, count: usize, most: usize) {
    if count > most {
        let message = format!("`{key}` has {count} entries, and the kernel has room for {most}");
        findings.add(place, message, "name larger networks, or fewer ports");
    }
}

/// Entries of the kernel's tables: a neighbour takes two.
const NEIGHBOURS_MAX: usize = abi::NEIGHBOURS_MAX / 2;
const INBOUND_MAX: usize = abi::PUBLISHED_MAX;

fn glob(findings: &mut Findings, table: &mut Table<'_>, key: &'static str) -> Option<String> {
    let text = table.string(findings, key)?;
    if text.value.is_empty() || text.value.chars().any(char::is_control) {
        let message = format!("`{key}` cannot be \"{}\"", shown(text.value));
        findings.add(text.place, message, "write a name, with `*` for any part of it");
    }
    Some(text.value.to_owned())
}
