//! Whose a container is.

use super::engine::Container;
use super::glob::matches;
use crate::policy::{AGENT_LABEL, AgentSpec, Policy, WorkloadMatch};

/// What the policy says of a container.
#[derive(Debug, Clone)]
pub enum Owner<'a> {
    /// This agent is meant.
    Agent(&'a AgentSpec),
    /// It names an agent that the policy does not have: it is governed, and everything is denied to it.
    Unknown(String),
    /// Nobody: it is left alone.
    Nobody,
}

/// The agent that `container` is: the first in the order of the configuration whose `match` holds.
#[must_use]
pub fn owner<'a>(policy: &'a Policy, container: &Container) -> Owner<'a> {
    if let Some(agent) = policy.agents().find(|agent| holds(&agent.workloads, container)) {
        return Owner::Agent(agent);
    }
    match container.labels.get(AGENT_LABEL) {
        Some(name) => Owner::Unknown(name.chars().take(80).collect()),
        None => Owner::Nobody,
    }
}

fn holds(wanted: &WorkloadMatch, container: &Container) -> bool {
    let label = |(key, pattern): &(String, String)| {
        container.labels.get(key).is_some_and(|value| matches(pattern, value))
    };
    let name = |pattern: &String| matches(pattern, &container.names.name);
    let cgroup = container.cgroup.to_string_lossy();
    let path = |pattern: &String| super::glob::matches_path(pattern, &cgroup);
    wanted.labels.iter().all(label)
        && wanted.container.as_ref().is_none_or(name)
        && wanted.cgroup.as_ref().is_none_or(path)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use nix::unistd::Pid;

    use super::*;
    use crate::agent::ContainerNames;
    use crate::config::Config;

    fn container(name: &str, labels: &[(&str, &str)]) -> Container {
        let (id, image) = ("0123".to_owned(), "img".to_owned());
        Container {
            names: Arc::new(ContainerNames { id, name: name.to_owned(), image }),
            cgroup: PathBuf::from("/docker/1"),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            pid: Pid::from_raw(1),
            runtime: None,
        }
    }

    #[test]
    fn a_container_is_the_first_agent_whose_match_holds_and_an_unknown_name_is_governed_too() {
        let text = r#"
            [[agent]]
            name = "mail"
            [[agent]]
            name = "group"
            match = { labels = { "nanoclaw-group" = "family-*" } }
            [[agent]]
            name = "by-name"
            match = { container = "web-*" }
            [[agent]]
            name = "both"
            match = { container = "db", labels = { tier = "data" } }
            [[agent]]
            name = "placed"
            match = { container = "*", cgroup = "/agents/*" }
        "#;
        let policy = Config::parse(Path::new("t.toml"), text).unwrap().policy;
        let agent = |name: &str| Ok(name.to_owned());
        let placed =
            |container: Container| Container { cgroup: PathBuf::from("/agents/1"), ..container };
        let rows = [
            (container("x", &[("tollgate.agent", "mail")]), agent("mail")),
            (container("x", &[("nanoclaw-group", "family-chat")]), agent("group")),
            (container("x", &[("nanoclaw-group", "work")]), Err(None)),
            (container("web-1", &[]), agent("by-name")),
            (container("db", &[("tier", "data")]), agent("both")),
            (container("db", &[("tier", "cache")]), Err(None)),
            (placed(container("any", &[])), agent("placed")),
            (
                container("x", &[("tollgate.agent", "nobody-knows")]),
                Err(Some("nobody-knows".to_owned())),
            ),
            (container("x", &[("other", "mail")]), Err(None)),
        ];
        for (container, expected) in rows {
            let found = match owner(&policy, &container) {
                Owner::Agent(agent) => Ok(agent.name.as_str().to_owned()),
                Owner::Unknown(name) => Err(Some(name)),
                Owner::Nobody => Err(None),
            };
            assert_eq!(found, expected, "{container:?}");
        }
    }
}
