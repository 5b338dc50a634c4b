//! Which cgroups are workloads, and whose.

use std::fs;
use std::path::{Path, PathBuf};

use crate::agent::AgentName;
use crate::capture::{Cgroup, CgroupRoot};
use crate::policy::Policy;

/// A cgroup that an agent's `match` names.
pub(super) struct Found {
    pub(super) agent: AgentName,
    pub(super) cgroup: Cgroup,
    /// Its path below the mount of the hierarchy.
    pub(super) path: PathBuf,
}

/// The topmost cgroups that match: what is below one is governed with it.
pub(super) fn find(root: &CgroupRoot, policy: &Policy) -> Vec<Found> {
    let patterns: Vec<(&AgentName, Vec<&str>)> = policy
        .agents()
        .filter_map(|agent| {
            let glob = agent.workloads.cgroup.as_deref()?;
            let only = agent.workloads.labels.is_empty() && agent.workloads.container.is_none();
            only.then(|| (&agent.name, glob.trim_matches('/').split('/').collect()))
        })
        .collect();
    let mut found = Vec::new();
    walk(root, root.mount(), &mut Vec::new(), &patterns, &mut found);
    found
}

fn walk(
    root: &CgroupRoot,
    directory: &Path,
    below: &mut Vec<String>,
    patterns: &[(&AgentName, Vec<&str>)],
    found: &mut Vec<Found>,
) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(name) = entry.file_name().into_string() else { continue };
        below.push(name);
        let whole = patterns.iter().find(|(_, parts)| {
            parts.len() == below.len() && parts.iter().zip(&*below).all(|(p, n)| glob(p, n))
        });
        if let Some((agent, _)) = whole {
            if let Ok(cgroup) = root.open(&entry.path()) {
                let path = Path::new("/").join(below.join("/"));
                found.push(Found { agent: (*agent).clone(), cgroup, path });
            }
        } else if patterns.iter().any(|(_, parts)| {
            parts.len() > below.len() && parts.iter().zip(&*below).all(|(p, n)| glob(p, n))
        }) {
            walk(root, &entry.path(), below, patterns, found);
        }
        below.pop();
    }
}

/// Whether `name` is as `pattern` says, in which `*` stands for any part of it.
fn glob(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return name.ends_with(part);
        }
        let Some(at) = name.find(part) else { return false };
        name = name.get(at + part.len()..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_part_of_one_name() {
        let rows = [
            ("docker", "docker", true),
            ("docker", "docker-1", false),
            ("*", "anything", true),
            ("agent-*.service", "agent-mail.service", true),
            ("agent-*.service", "agent-mail.scope", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("*x", "x", true),
            ("ab*ba", "aba", false),
        ];
        for (pattern, name, expected) in rows {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }
}
