//! The containers of engines, as workloads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;

use super::discover::{Found, is_in_slice, unfit};
use crate::admin::{EngineReport, WayIn};
use crate::agent::{AgentName, ContainerNames};
use crate::capture::CgroupRoot;
use crate::discover::engine::{self, Container, Snapshot};
use crate::discover::{Owner, owner};
use crate::net::Openings;
use crate::policy::Policy;

/// What the engines have said last.
pub(super) struct Containers {
    engines: Vec<Engine>,
    /// Those that were armed before they ran, for as long as their first process lives: the engine tells of them later.
    made: Vec<Arc<Container>>,
}

struct Engine {
    socket: PathBuf,
    snapshots: watch::Receiver<Snapshot>,
}

impl Containers {
    /// Asks the engines at these sockets, for as long as this lives. Must be called inside a runtime.
    pub(super) fn ask(sockets: &[PathBuf]) -> Self {
        let ask = |socket: &PathBuf| {
            let (sender, snapshots) = watch::channel(Snapshot::default());
            tokio::spawn(engine::watch(socket.clone(), sender));
            Engine { socket: socket.clone(), snapshots }
        };
        Self { engines: sockets.iter().map(ask).collect(), made: Vec::new() }
    }

    /// Waits for the first answer of every engine that is there, at most so long.
    pub(super) async fn first_answers(&mut self, patience: Duration) {
        let answers = self.engines.iter_mut().map(|engine| async {
            let answered = engine.snapshots.wait_for(|snapshot| snapshot.answers.is_some()).await;
            drop(answered);
        });
        if timeout(patience, join_all(answers)).await.is_err() {
            tracing::warn!("a container engine does not answer yet");
        }
    }

    /// Returns when one of them says something new.
    pub(super) async fn changed(&mut self) {
        let news = self.engines.iter_mut().map(|engine| Box::pin(engine.snapshots.changed()));
        if news.len() == 0 {
            return std::future::pending().await;
        }
        let (_said, _which, _others) = futures_util::future::select_all(news).await;
    }

    /// Whether the engines answer.
    pub(super) fn engines(&self) -> Vec<EngineReport> {
        let report = |engine: &Engine| EngineReport {
            socket: engine.socket.clone(),
            answers: engine.snapshots.borrow().answers,
        };
        self.engines.iter().map(report).collect()
    }

    /// What an engine calls the container in the cgroup at `path`, below the mount of the hierarchy.
    pub(super) fn names_at(&self, path: &Path) -> Option<Arc<ContainerNames>> {
        let snapshots =
            self.engines.iter().map(|engine| engine.snapshots.borrow().containers.clone());
        let mut containers = snapshots.flatten();
        let container = containers.find(|container| path.starts_with(&container.cgroup))?;
        Some(Arc::clone(&container.names))
    }

    /// Those that are an agent, by their labels or names, with the cgroups that the kernel says they are in.
    pub(super) fn find(&self, root: &CgroupRoot, policy: &Policy) -> Vec<Found> {
        let own = root.own();
        let snapshots =
            self.engines.iter().map(|engine| engine.snapshots.borrow().containers.clone());
        // What an engine still says of a container's former life is outdated.
        let is_outdated = |old: &Container| {
            self.made.iter().any(|new| new.names.id == old.names.id && new.pid != old.pid)
        };
        let mut all: Vec<_> = snapshots.flatten().filter(|it| !is_outdated(it)).collect();
        for made in self.made.iter().filter(|made| engine::is_alive(made.pid)) {
            if !all.iter().any(|known| known.names.id == made.names.id) {
                all.push(Arc::clone(made));
            }
        }
        let found = |container| found(container, root, policy, own.as_deref());
        all.into_iter().filter_map(found).collect()
    }

    /// Takes a container for running whose first process waits for its first instruction.
    pub(super) fn add(&mut self, container: Container) {
        self.made
            .retain(|known| known.names.id != container.names.id && engine::is_alive(known.pid));
        self.made.push(Arc::new(container));
    }
}

fn found(
    container: Arc<Container>,
    root: &CgroupRoot,
    policy: &Policy,
    own: Option<&Path>,
) -> Option<Found> {
    let (agent, openings, is_known, named) = match owner(policy, &container) {
        // Its cgroup alone says whose it is: the look at the cgroups finds it.
        Owner::Agent(spec) if !spec.workloads.asks_an_engine() => return None,
        Owner::Agent(spec) => {
            let by_label = !spec.workloads.labels.is_empty();
            let named = if by_label { WayIn::Label } else { WayIn::Name };
            (spec.name.clone(), spec.openings.clone(), true, named)
        }
        Owner::Unknown(name) => (closed_agent(&name), Openings::default(), false, WayIn::Label),
        Owner::Nobody => return None,
    };
    let below = container.cgroup.strip_prefix("/").unwrap_or(&container.cgroup);
    let cgroup = root.open(&root.mount().join(below)).ok()?;
    let unfit = unfit(&container.cgroup, own);
    let name = container.names.to_string();
    let way_in = if container.runtime.as_deref() == Some(WayIn::RUNTIME) {
        WayIn::Runtime
    } else if is_in_slice(&container.cgroup) {
        WayIn::Slice
    } else {
        named
    };
    let container = Some(container);
    Some(Found { agent, cgroup, name, openings, unfit, container, is_known, way_in })
}

/// The agent of a container whose label names none that there is: nothing is allowed to it.
pub(super) fn closed_agent(name: &str) -> AgentName {
    AgentName::parse(name).unwrap_or_else(|_no_name| AgentName::unknown())
}
