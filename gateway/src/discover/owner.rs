//! Whose a container is.

use super::engine::Container;
use super::glob::matches;
use crate::agent::AgentName;
use crate::policy::{Policy, WorkloadMatch};

/// The label by which a container names its agent.
pub const AGENT_LABEL: &str = "tollgate.agent";

/// What the policy says of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This agent is meant.
    Agent(AgentName),
    /// It names an agent that the policy does not have: it is governed, and everything is denied to it.
    Unknown(String),
    /// Nobody: it is left alone.
    Nobody,
}

/// The agent that `container`, whose cgroup is at `cgroup` below the root of the hierarchy, is: the first in the order
/// of the configuration whose `match` holds.
#[must_use]
pub fn owner(policy: &Policy, container: &Container, cgroup: &str) -> Owner {
    for agent in policy.agents() {
        if holds(&agent.workloads, container, cgroup) {
            return Owner::Agent(agent.name.clone());
        }
    }
    match container.labels.get(AGENT_LABEL) {
        Some(name) => Owner::Unknown(name.chars().take(80).collect()),
        None => Owner::Nobody,
    }
}

fn holds(wanted: &WorkloadMatch, container: &Container, cgroup: &str) -> bool {
    let label = |(key, pattern): &(String, String)| {
        container.labels.get(key).is_some_and(|value| matches(pattern, value))
    };
    let name = |pattern: &String| matches(pattern, &container.name);
    let path = |pattern: &String| super::glob::matches_path(pattern, cgroup);
    wanted.labels.iter().all(label)
        && wanted.container.as_ref().is_none_or(name)
        && wanted.cgroup.as_ref().is_none_or(path)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::unistd::Pid;

    use super::*;
    use crate::config::Config;

    fn container(name: &str, labels: &[(&str, &str)]) -> Container {
        Container {
            id: "0123".to_owned(),
            name: name.to_owned(),
            image: "img".to_owned(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            pid: Pid::from_raw(1),
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
        let agent = |name: &str| Owner::Agent(AgentName::parse(name).unwrap());
        let rows = [
            (container("x", &[("tollgate.agent", "mail")]), "/docker/1", agent("mail")),
            (container("x", &[("nanoclaw-group", "family-chat")]), "/docker/1", agent("group")),
            (container("x", &[("nanoclaw-group", "work")]), "/docker/1", Owner::Nobody),
            (container("web-1", &[]), "/docker/1", agent("by-name")),
            (container("db", &[("tier", "data")]), "/docker/1", agent("both")),
            (container("db", &[("tier", "cache")]), "/docker/1", Owner::Nobody),
            (container("any", &[]), "/agents/1", agent("placed")),
            (
                container("x", &[("tollgate.agent", "nobody-knows")]),
                "/docker/1",
                Owner::Unknown("nobody-knows".to_owned()),
            ),
            (container("x", &[("other", "mail")]), "/docker/1", Owner::Nobody),
        ];
        for (container, cgroup, expected) in rows {
            assert_eq!(owner(&policy, &container, cgroup), expected, "{container:?} {cgroup}");
        }
    }
}
