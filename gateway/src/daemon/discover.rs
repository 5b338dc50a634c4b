//! Which cgroups are workloads, and whose.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::watch::Watch;
use crate::admin::WayIn;
use crate::agent::AgentName;
use crate::capture::{Cgroup, CgroupRoot, RUNS, SLICE};
use crate::discover::engine::Container;
use crate::discover::glob::matches;
use crate::net::Openings;
use crate::policy::{AgentSpec, Policy};

/// A cgroup that an agent's `match` names.
pub(super) struct Found {
    pub(super) agent: AgentName,
    pub(super) cgroup: Cgroup,
    /// What people know it by: a container's name, or its path below the mount of the hierarchy.
    pub(super) name: String,
    /// What of its wires is open.
    pub(super) openings: Openings,
    /// Why it must not be governed.
    pub(super) unfit: Option<&'static str>,
    /// What an engine says of it, where it is a container.
    pub(super) container: Option<Arc<Container>>,
    /// Whether the configuration has the agent.
    pub(super) is_known: bool,
    /// How it came to be governed.
    pub(super) way_in: WayIn,
}

/// The topmost cgroups that match, and whether that is all of them: what is below one is governed with it.
pub(super) fn find(root: &CgroupRoot, policy: &Policy, watch: &Watch) -> (Vec<Found>, bool) {
    let patterns: Vec<(&AgentSpec, Vec<&str>)> = policy
        .agents()
        .filter_map(|agent| {
            let glob = agent.workloads.cgroup.as_deref()?;
            let is_alone = !agent.workloads.asks_an_engine();
            is_alone.then(|| (agent, glob.trim_matches('/').split('/').collect()))
        })
        .collect();
    let mut search =
        Search { root, watch, patterns, own: root.own(), found: Vec::new(), is_whole: true };
    search.walk(root.mount(), &mut Vec::new());
    (search.found, search.is_whole)
}

struct Search<'a> {
    root: &'a CgroupRoot,
    watch: &'a Watch,
    patterns: Vec<(&'a AgentSpec, Vec<&'a str>)>,
    /// The daemon's own cgroup.
    own: Option<PathBuf>,
    found: Vec<Found>,
    /// False once something is there that could not be looked at.
    is_whole: bool,
}

impl Search<'_> {
    fn walk(&mut self, directory: &Path, below: &mut Vec<String>) {
        // First the watch, then the look: what appears between the two is seen by both.
        self.watch.children_of(directory);
        let Ok(entries) = fs::read_dir(directory) else {
            self.is_whole &= !directory.exists();
            return;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let Ok(name) = entry.file_name().into_string() else { continue };
            below.push(name);
            let whole = self.patterns.iter().find(|(_, parts)| {
                parts.len() == below.len() && parts.iter().zip(&*below).all(|(p, n)| matches(p, n))
            });
            if let Some((agent, _)) = whole {
                if let Ok(cgroup) = self.root.open(&entry.path()) {
                    let path = Path::new("/").join(below.join("/"));
                    let unfit = unfit(&path, self.own.as_deref());
                    self.found.push(Found {
                        agent: agent.name.clone(),
                        openings: agent.openings.clone(),
                        cgroup,
                        name: path.display().to_string(),
                        unfit,
                        container: None,
                        is_known: true,
                        way_in: if is_in_slice(&path) { WayIn::Slice } else { WayIn::Cgroup },
                    });
                } else {
                    self.is_whole &= !entry.path().exists();
                }
            } else if self.patterns.iter().any(|(_, parts)| {
                parts.len() > below.len() && parts.iter().zip(&*below).all(|(p, n)| matches(p, n))
            }) {
                self.walk(&entry.path(), below);
            }
            below.pop();
        }
    }
}

/// Whether a cgroup is below Tollgate's slice.
pub(super) fn is_in_slice(path: &Path) -> bool {
    path.starts_with(Path::new("/").join(SLICE))
}

/// Why a cgroup must not be governed, where it must not.
pub(super) fn unfit(path: &Path, own: Option<&Path>) -> Option<&'static str> {
    if own.is_some_and(|own| own.starts_with(path)) {
        return Some("it holds the daemon itself, which would close its own sockets");
    }
    if path == Path::new("/").join(SLICE) {
        return Some("it is Tollgate's own slice; name the cgroups in it, as `/tollgate.slice/*`");
    }
    let below = path.strip_prefix(Path::new("/").join(RUNS)).ok()?;
    Some(match below.components().next() {
        None => "it holds the runs of `tollgate run`, which are governed already",
        Some(_run) => "it belongs to a `tollgate run`, which is governed already",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_the_daemon_s_own_cgroup_nor_those_of_runs_are_governed() {
        let own = Path::new("/system.slice/tollgate.service");
        let rows = [
            ("/system.slice/tollgate.service", false),
            ("/system.slice", false),
            ("/system.slice/tollgate", true),
            ("/system.slice/other.service", true),
            ("/tollgate-run", false),
            ("/tollgate-run/run-00ff", false),
            ("/tollgate-run/run-00ff/below", false),
            ("/tollgate-run-2/run-00ff", true),
            ("/tollgate.slice", false),
            ("/tollgate.slice/a-container", true),
        ];
        for (path, expected) in rows {
            assert_eq!(unfit(Path::new(path), Some(own)).is_none(), expected, "{path}");
        }
    }
}
