//! `[[agent]]`.

use super::diagnostic::{Findings, Located};
use super::reader::{Table, as_string, shown};
use super::sections::choice;
use crate::agent::AgentName;
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
    table.finish(findings);

    let name = name?;
    let workloads = workloads.unwrap_or_else(|| WorkloadMatch::by_label(&name.value));
    let spec = AgentSpec {
        name: name.value.clone(),
        default,
        parent: parent.as_ref().map(|parent| parent.value.clone()),
        workloads,
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

fn glob(findings: &mut Findings, table: &mut Table<'_>, key: &'static str) -> Option<String> {
    let text = table.string(findings, key)?;
    if text.value.is_empty() || text.value.chars().any(char::is_control) {
        let message = format!("`{key}` cannot be \"{}\"", shown(text.value));
        findings.add(text.place, message, "write a name, with `*` for any part of it");
    }
    Some(text.value.to_owned())
}
