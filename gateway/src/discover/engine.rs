//! Containers as an engine's API tells of them: Docker's own, or Podman's service in its place.
//!
//! The engine is asked, never trusted for more than names: whether a process is in a cgroup and in which network
//! namespace it is, the kernel says.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::ContainerState;
use bollard::query_parameters::{EventsOptions, ListContainersOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt as _;
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::agent::ContainerNames;
use crate::capture::cgroup_of_process;

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// What it is called.
    pub names: Arc<ContainerNames>,
    /// Its labels, Compose's own included.
    pub labels: BTreeMap<String, String>,
    /// Its first process, in the host's PID namespace.
    pub pid: Pid,
    /// The OCI runtime that was asked for, where one was.
    pub runtime: Option<String>,
    /// Its cgroup, below the mount of the hierarchy, as the kernel says.
    pub cgroup: PathBuf,
}

/// What is known of an engine's containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The running ones. Those that were known when the engine stopped answering stay known.
    pub containers: Vec<Arc<Container>>,
    /// Whether the engine has answered when it was asked last; `None` before it was asked at all.
    pub answers: Option<bool>,
}

/// Keeps `snapshots` up to date with the engine at `socket` until nobody receives them any more: a list at first, then
/// at every event and periodically; an engine that goes away is asked again, less and less often.
pub async fn watch(socket: PathBuf, snapshots: watch::Sender<Snapshot>) {
    let mut back_off = BACK_OFF_MIN;
    while !snapshots.is_closed() {
        let connected = Instant::now();
        match follow(&socket, &snapshots).await {
            Ok(()) => return,
            Err(error) => {
                let mut before = None;
                snapshots.send_if_modified(|known| {
                    before = known.answers.replace(false);
                    before != Some(false)
                });
                if before == Some(true) {
                    tracing::warn!(%error, socket = %socket.display(), "the container engine does not answer");
                } else {
                    tracing::debug!(%error, socket = %socket.display(), "no container engine");
                }
            }
        }
        if connected.elapsed() > STEADY {
            back_off = BACK_OFF_MIN;
        }
        sleep(back_off).await;
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// A connection that lasted so long was a good one.
const STEADY: Duration = Duration::from_secs(10);
/// How long the engine may take to answer. It answers late while it starts containers.
const ANSWER_SECONDS: u64 = 60;
/// How often containers are listed although no event came.
const LIST_EVERY: Duration = Duration::from_secs(10);

/// Returns when nobody receives snapshots any more.
async fn follow(socket: &Path, snapshots: &watch::Sender<Snapshot>) -> Result<(), Error> {
    let docker = connect(socket).await?;
    // Events first: what starts between the list and the subscription would be missed.
    let only_containers = HashMap::from([("type".to_owned(), vec!["container".to_owned()])]);
    let options = EventsOptions { filters: Some(only_containers), ..EventsOptions::default() };
    let mut events = Box::pin(docker.events(Some(options)));
    let mut known = HashMap::new();
    loop {
        let containers = list(&docker, &mut known).await?;
        snapshots.send_replace(Snapshot { containers, answers: Some(true) });
        let deadline = Instant::now() + LIST_EVERY;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::select! {
                () = snapshots.closed() => return Ok(()),
                event = timeout(left, events.next()) => match event {
                    Ok(Some(Ok(event))) => {
                        if event.action.as_deref().is_some_and(changes_what_runs) {
                            break;
                        }
                    }
                    Ok(Some(Err(error))) => return Err(error),
                    Ok(None) => return Err(ended()),
                    Err(_elapsed) => break,
                },
            }
        }
    }
}

/// A container that is there, whether it runs or not: names and labels. The list is asked and never the container
/// itself, which the engine holds locked while its runtime makes it.
///
/// # Errors
/// When the engine at `socket` does not answer.
pub async fn find(
    socket: &Path,
    id: &str,
) -> Result<Option<(ContainerNames, BTreeMap<String, String>)>, Error> {
    let docker = connect(socket).await?;
    let filters = Some(HashMap::from([("id".to_owned(), vec![id.to_owned()])]));
    let options = ListContainersOptions { all: true, filters, ..ListContainersOptions::default() };
    let listed = docker.list_containers(Some(options)).await?;
    let found = listed.into_iter().find(|summary| summary.id.as_deref() == Some(id));
    Ok(found.map(|summary| {
        let name = summary.names.unwrap_or_default().first().cloned().unwrap_or_default();
        let names = ContainerNames {
            id: id.to_owned(),
            name: name.trim_start_matches('/').to_owned(),
            image: summary.image.unwrap_or_default(),
        };
        (names, summary.labels.unwrap_or_default().into_iter().collect())
    }))
}

/// The first process of a running container that the engine at `socket` knows by this name or id, in the host's PID
/// namespace; none when it does not run.
///
/// # Errors
/// When the engine does not answer, or knows no such container.
pub async fn first_process(socket: &Path, name: &str) -> Result<Option<Pid>, Error> {
    let docker = connect(socket).await?;
    Ok(docker.inspect_container(name, None).await?.state.as_ref().and_then(pid_of))
}

async fn connect(socket: &Path) -> Result<Docker, Error> {
    let path = socket.to_string_lossy();
    Docker::connect_with_unix(&path, ANSWER_SECONDS, API_DEFAULT_VERSION)?.negotiate_version().await
}

fn pid_of(state: &ContainerState) -> Option<Pid> {
    let number = i32::try_from(state.pid?).ok().filter(|number| *number > 0)?;
    Some(Pid::from_raw(number))
}

fn ended() -> Error {
    Error::IOError { err: std::io::Error::other("the stream of events ended") }
}

/// Whether an event of this name can add, rename or remove a running container; `exec` and health checks cannot.
fn changes_what_runs(action: &str) -> bool {
    ["start", "restart", "die", "destroy", "rename", "kill", "stop"].contains(&action)
}

/// The running containers. A container is inspected once for each of its lives.
async fn list(
    docker: &Docker,
    known: &mut HashMap<String, Arc<Container>>,
) -> Result<Vec<Arc<Container>>, Error> {
    let mut running = Vec::new();
    for summary in docker.list_containers(None::<ListContainersOptions>).await? {
        let Some(id) = summary.id else { continue };
        let name = summary.names.unwrap_or_default().first().cloned().unwrap_or_default();
        let name = name.trim_start_matches('/');
        if let Some(container) = known.get(&id)
            && container.names.name == name
            && is_alive(container.pid)
        {
            running.push(Arc::clone(container));
            continue;
        }
        let inspected = match docker.inspect_container(&id, None).await {
            Ok(container) => container,
            // Gone since it was listed.
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => continue,
            Err(error) => return Err(error),
        };
        let Some(pid) = inspected.state.as_ref().and_then(pid_of) else { continue };
        let Some(cgroup) = cgroup_of(&id, pid) else { continue };
        let names = ContainerNames {
            id: id.clone(),
            name: name.to_owned(),
            image: summary.image.unwrap_or_default(),
        };
        let container = Arc::new(Container {
            names: Arc::new(names),
            cgroup,
            labels: summary.labels.unwrap_or_default().into_iter().collect(),
            runtime: inspected.host_config.and_then(|host| host.runtime),
            pid,
        });
        known.insert(id, Arc::clone(&container));
        running.push(container);
    }
    known.retain(|id, _| running.iter().any(|container| container.names.id == *id));
    Ok(running)
}

/// The cgroup of a container: the one that bears its id, although its first process may be in one below (an init system
/// makes those). None where no part bears it: an engine that names its cgroups otherwise, or a process that is not the
/// container's.
pub(crate) fn cgroup_of(id: &str, pid: Pid) -> Option<PathBuf> {
    let path = cgroup_of_process(pid)?;
    let bears_it =
        |part: &Path| part.file_name().is_some_and(|name| name.to_string_lossy().contains(id));
    // The topmost of them.
    path.ancestors().filter(|part| bears_it(part)).last().map(Path::to_owned)
}

pub(crate) fn is_alive(pid: Pid) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}
