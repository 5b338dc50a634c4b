//! What only shows when every file has been read: duplicates, references, cycles, rival credentials, sources.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::agents::AgentDraft;
use super::credentials::CredentialDraft;
use super::diagnostic::{Findings, Located, Place};
use super::reader::{nearest, shown};
use super::rules::RuleDraft;
use super::{Drafts, SourceCheck};
use crate::agent::AgentName;
use crate::credentials::SECRET_BYTES_MAX;
use crate::policy::{CredentialSpec, SourceSpec, rivalry};

/// Runs every check across entries and files.
pub(super) fn cross_check(findings: &mut Findings, drafts: &Drafts, sources: SourceCheck<'_>) {
    let Drafts { agents, credentials, rules } = drafts;
    let names = agents.iter().map(|agent| (agent.name.value.as_str(), agent.name.place));
    unique(findings, "agent", names.collect());
    let names = credentials.iter().map(|draft| (draft.name.value.as_str(), draft.name.place));
    unique(findings, "credential", names.collect());
    let names = rules.iter().map(|rule| (rule.name.value.as_str(), rule.name.place));
    unique(findings, "rule", names.collect());
    references(findings, agents, credentials, rules);
    let cycles = parent_cycles(findings, agents);
    if !cycles {
        rival_credentials(findings, agents, credentials);
    }
    for credential in credentials {
        check_source(findings, credential, sources);
    }
}

fn unique(findings: &mut Findings, what: &str, names: Vec<(&str, Place)>) {
    let mut seen = HashMap::new();
    for (name, place) in names {
        if seen.insert(name, place).is_some() {
            let help = format!("rename one of the two: {what} names are unique across all files");
            findings.add(place, format!("the {what} `{}` exists already", shown(name)), help);
        }
    }
}

fn references(
    findings: &mut Findings,
    agents: &[AgentDraft],
    credentials: &[CredentialDraft],
    rules: &[RuleDraft],
) {
    let parents = agents.iter().filter_map(|agent| agent.parent.as_ref());
    let granted = credentials.iter().flat_map(|credential| &credential.agents);
    let governed = rules.iter().flat_map(|rule| &rule.agents);
    let known: HashSet<_> = agents.iter().map(|agent| &agent.name.value).collect();
    for reference in parents.chain(granted).chain(governed) {
        if known.contains(&reference.value) {
            continue;
        }
        let help = match nearest(
            reference.value.as_str(),
            agents.iter().map(|agent| agent.name.value.as_str()),
        ) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "add an [[agent]] with that name, or correct the name".to_owned(),
        };
        findings.add(reference.place, format!("there is no agent `{}`", reference.value), help);
    }
}

fn find<'a>(agents: &'a [AgentDraft], reference: &Located<AgentName>) -> Option<&'a AgentDraft> {
    agents.iter().find(|agent| agent.name.value == reference.value)
}

/// The agent and its ancestors, as far as they exist; ends where it would begin again.
fn lineage<'a>(agents: &'a [AgentDraft], agent: &'a AgentDraft) -> (Vec<&'a AgentName>, bool) {
    let mut names = vec![&agent.name.value];
    let mut current = agent;
    while let Some(parent) = current.parent.as_ref().and_then(|parent| find(agents, parent)) {
        if names.contains(&&parent.name.value) {
            return (names, parent.name.value == agent.name.value);
        }
        names.push(&parent.name.value);
        current = parent;
    }
    (names, false)
}

fn parent_cycles(findings: &mut Findings, agents: &[AgentDraft]) -> bool {
    let mut found = false;
    for agent in agents {
        let (names, closes) = lineage(agents, agent);
        if closes && let Some(parent) = &agent.parent {
            found = true;
            let way: Vec<_> = names.iter().map(|name| name.as_str()).collect();
            let message =
                format!("`{}` would descend from itself ({})", agent.name.value, way.join(" → "));
            findings.add(parent.place, message, "remove one `parent` of the circle");
        }
    }
    found
}

/// Two credentials of one agent must never leave open which of them sets a thing.
fn rival_credentials(
    findings: &mut Findings,
    agents: &[AgentDraft],
    credentials: &[CredentialDraft],
) {
    for (position, later) in credentials.iter().enumerate() {
        for earlier in credentials.iter().take(position) {
            let surface = rivalry(&earlier.spec, &later.spec);
            let variable =
                later.spec.env.as_ref().filter(|env| earlier.spec.env.as_ref() == Some(*env));
            if surface.is_none() && variable.is_none() {
                continue;
            }
            let Some(agent) = common_agent(agents, &earlier.spec, &later.spec) else { continue };
            let pair =
                format!("`{}` and `{}` would both set", later.name.value, earlier.name.value);
            if let Some(surface) = surface {
                let help =
                    "give one of them a narrower host or path, or grant them to different agents";
                findings.add(
                    later.inject_place,
                    format!("{pair} {surface} for the agent `{agent}`"),
                    help,
                );
            }
            if let Some(variable) = variable {
                let message = format!("{pair} the variable `{variable}` for the agent `{agent}`");
                findings.add(later.env_place, message, "choose another variable for one of them");
            }
        }
    }
}

/// The first agent that may use both.
fn common_agent<'a>(
    agents: &'a [AgentDraft],
    one: &CredentialSpec,
    other: &CredentialSpec,
) -> Option<&'a AgentName> {
    let agent = agents.iter().find(|agent| {
        let (names, _closes) = lineage(agents, agent);
        holds(one, &names) && holds(other, &names)
    })?;
    Some(&agent.name.value)
}

fn holds(credential: &CredentialSpec, lineage: &[&AgentName]) -> bool {
    credential.agents.iter().any(|agent| lineage.contains(&agent))
}

fn check_source(findings: &mut Findings, credential: &CredentialDraft, sources: SourceCheck<'_>) {
    let name = &credential.name.value;
    match (&credential.spec.source, sources) {
        (SourceSpec::File(path), SourceCheck::Files | SourceCheck::FilesAndEnvironment(_)) => {
            if let Err(error) = check_file(path) {
                let message = format!(
                    "the credential `{name}` cannot be read from {}: {error}",
                    path.display()
                );
                let help =
                    "write the secret into that file, readable to the gateway only (mode 0600)";
                findings.add(credential.source_place, message, help);
            }
        }
        (SourceSpec::Env(variable), SourceCheck::FilesAndEnvironment(read))
            if read(variable).is_none_or(|value| value.is_empty()) =>
        {
            let message = format!(
                "the credential `{name}` cannot be read: the variable `{variable}` is not set"
            );
            findings.add(credential.source_place, message, "set it in the gateway's environment");
        }
        (SourceSpec::File(_) | SourceSpec::Env(_), _) => {}
    }
}

/// Whether there is one line to read that can stand in a header. The content does not stay in memory.
fn check_file(path: &Path) -> io::Result<()> {
    // Opening a pipe would wait for its writer, and reading it would take the secret away.
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    if !kind.is_file() {
        return Ok(());
    }
    // Large enough from the start: growing would leave copies behind.
    let mut content = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 2));
    fs::File::open(path)?.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut content)?;
    if content.len() > SECRET_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {SECRET_BYTES_MAX} bytes")));
    }
    let line_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let Some(last) = content.iter().rposition(|byte| !line_end(byte)) else {
        return Err(io::Error::other("it is empty"));
    };
    if content.iter().take(last + 1).any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(io::Error::other("it is not one line without control characters"));
    }
    Ok(())
}
