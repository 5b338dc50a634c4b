//! The containers of engines, as workloads.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::time::timeout;

use super::discover::{Found, unfit};
use crate::agent::AgentName;
use crate::capture::CgroupRoot;
use crate::discover::engine::{self, Container, Snapshot};
use crate::discover::{Owner, owner};
use crate::net::Openings;
use crate::policy::Policy;

/// What the engines have said last.
pub(super) struct Containers {
    engines: Vec<watch::Receiver<Snapshot>>,
}

impl Containers {
    /// Asks the engines at these sockets, for as long as this lives. Must be called inside a runtime.
    pub(super) fn ask(sockets: &[PathBuf]) -> Self {
        let ask = |socket: &PathBuf| {
            let (sender, receiver) = watch::channel(Snapshot::default());
            tokio::spawn(engine::watch(socket.clone(), sender));
            receiver
        };
        Self { engines: sockets.iter().map(ask).collect() }
    }

    /// Waits for the first answer of every engine that is there, at most so long.
    pub(super) async fn first_answers(&mut self, patience: Duration) {
        let answers = self.engines.iter_mut().map(|engine| async {
            let answered = engine.wait_for(|snapshot| snapshot.answers || snapshot.is_absent).await;
            drop(answered);
        });
        if timeout(patience, join_all(answers)).await.is_err() {
            tracing::warn!("a container engine does not answer yet");
        }
    }

    /// Returns when one of them says something new.
    pub(super) async fn changed(&mut self) {
        let news = self.engines.iter_mut().map(|engine| Box::pin(engine.changed()));
        if news.len() == 0 {
            return std::future::pending().await;
        }
        let (_said, _which, _others) = futures_util::future::select_all(news).await;
    }

    /// Those that are an agent, by their labels or names, with the cgroups that the kernel says they are in.
    pub(super) fn find(&self, root: &CgroupRoot, policy: &Policy) -> Vec<Found> {
        let own = root.own();
        let mut found = Vec::new();
        for engine in &self.engines {
            let containers = engine.borrow().containers.clone();
            for container in containers {
                let Some(path) = cgroup_of(&container) else { continue };
                let (agent, openings, is_known) = match owner(policy, &container, &path) {
                    Owner::Agent(name) if !is_named(policy, &name) => continue,
                    Owner::Agent(name) => {
                        let spec = policy.agents().find(|spec| spec.name == name);
                        let openings = spec.map(|spec| spec.openings.clone()).unwrap_or_default();
                        (name, openings, true)
                    }
                    Owner::Unknown(name) => (closed_agent(&name), Openings::default(), false),
                    Owner::Nobody => continue,
                };
                let below = path.trim_start_matches('/');
                let Ok(cgroup) = root.open(&root.mount().join(below)) else { continue };
                let unfit = unfit(Path::new(&path), own.as_deref());
                let path = PathBuf::from(shown(&container));
                let first = Some(container.pid);
                found.push(Found {
                    agent,
                    cgroup,
                    path,
                    openings,
                    unfit,
                    container: first,
                    is_known,
                });
            }
        }
        found
    }
}

/// Whether the agent is known by labels or names of containers, and not by cgroups alone.
fn is_named(policy: &Policy, name: &AgentName) -> bool {
    policy.agents().any(|spec| {
        spec.name == *name
            && (!spec.workloads.labels.is_empty() || spec.workloads.container.is_some())
    })
}

/// The agent of a container whose label names none that there is: nothing is allowed to it.
fn closed_agent(name: &str) -> AgentName {
    AgentName::parse(name).unwrap_or_else(|_no_name| AgentName::unknown())
}

/// Name and short id: how people know a container.
fn shown(container: &Container) -> String {
    let id = container.id.get(..12).unwrap_or(&container.id);
    format!("{} ({id})", container.name)
}

/// The cgroup of a container, below the root of the hierarchy: the one that bears its id, although its first process
/// may be in one below (an init system makes those).
fn cgroup_of(container: &Container) -> Option<String> {
    let path = cgroup_of_process(container.pid)?;
    let mut taken = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        taken.push('/');
        taken.push_str(part);
        if part.contains(&container.id) {
            return Some(taken);
        }
    }
    // No part bears the id: an engine that names its cgroups otherwise, or a process that is not the container's.
    None
}

fn cgroup_of_process(pid: Pid) -> Option<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    table.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}
