//! Containers that an engine makes with `tollgate-runtime`: judged before they exist, armed before they run.
//!
//! ```text
//! prepare ── engine's list ── whose is it ── what speaks against it ── its changed configuration
//! arm ────── engine's list ── the process's own cgroup ── closed, fenced, served
//! ```
//!
//! The engine is asked beside the daemon's loop, which waits for no engine.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Daemon;
use super::containers::closed_agent;
use super::waiting::Waiting;
use super::workload::Workload;
use crate::admin::{Answer, WayIn};
use crate::agent::{Agent, AgentName, ContainerNames};
use crate::audit::{Decision, Kind, Reason};
use crate::discover::engine::{self, Container};
use crate::discover::{Objection, Owner, owner};
use crate::runtime::bundle::objections::Facts;
use crate::runtime::bundle::{Additions, Configuration};
use crate::trust;

/// What is to be done with a container.
pub(super) enum Step {
    /// Judge it, and say what it is to be.
    Prepare { configuration: Value, hook: PathBuf },
    /// Govern it.
    Arm { pid: Pid },
}

/// A container as its engine's list has it.
pub(super) struct Listed {
    step: Step,
    /// Without process and cgroup; or why it is not known.
    container: Result<Container, String>,
    /// What speaks against the configuration that is to be judged.
    objections: Vec<Objection>,
    answer: oneshot::Sender<Answer>,
}

/// How long all engines together may take to list one container: less than whoever asks waits.
const LISTING: Duration = Duration::from_secs(5);
/// How long the files that a configuration names may take to answer after that.
const JUDGING: Duration = Duration::from_secs(3);

/// Why something is not done.
type Refusal = Answer;

impl Daemon<'_> {
    /// Has the engines asked for the container. What they say comes back as [`Listed`].
    pub(super) fn ask_engines(&self, id: String, step: Step, answer: oneshot::Sender<Answer>) {
        let (engines, listings) = (self.config.discover.engines.clone(), self.listings.clone());
        tokio::spawn(async move {
            let asked = timeout(LISTING, list(&engines, id));
            let mut container = asked.await.unwrap_or_else(|_elapsed| {
                Err(format!("the engine has not answered in {} s", LISTING.as_secs()))
            });
            let mut objections = Vec::new();
            if container.is_ok()
                && let Step::Prepare { configuration, .. } = &step
            {
                match judge(configuration.clone(), engines).await {
                    Ok(found) => objections = found,
                    Err(error) => container = Err(error),
                }
            }
            send(&listings, Listed { step, container, objections, answer }).await;
        });
    }

    /// The next step of a container's making.
    pub(super) async fn make(&mut self, listed: Listed) {
        let Listed { step, container, objections, answer } = listed;
        let container = container.map_err(|error| refused(&error));
        let said = match (step, container) {
            (_, Err(refusal)) => Err(refusal),
            (Step::Prepare { configuration, hook }, Ok(container)) => {
                self.prepare(container, configuration, objections, hook)
            }
            (Step::Arm { pid }, Ok(container)) => self.arm(container, pid).await,
        };
        if answer.send(said.unwrap_or_else(|refusal| refusal)).is_err() {
            tracing::debug!("the runtime has not waited for the answer");
        }
    }

    fn prepare(
        &self,
        mut container: Container,
        configuration: Value,
        objections: Vec<Objection>,
        hook: PathBuf,
    ) -> Result<Answer, Refusal> {
        let configuration = Configuration::of(configuration);
        let mut configuration =
            configuration.ok_or_else(|| refused("its configuration is no JSON object"))?;
        configuration.place(&container.names.id);
        container.cgroup = configuration.cgroup();
        let agent = match owner(&self.config.policy, &container) {
            Owner::Agent(spec) => spec.name.clone(),
            Owner::Unknown(name) => closed_agent(&name),
            Owner::Nobody => {
                let why = "it is no agent's, and this runtime starts agents only: give it the label tollgate.agent=NAME, or start it with the engine's own runtime";
                self.tell(&container.names, AgentName::unknown(), Reason::WorkloadRefused, why);
                return Err(refused(why));
            }
        };
        let (waived, objections): (Vec<_>, Vec<_>) =
            objections.into_iter().partition(|objection| match objection {
                Objection::HostNetwork => false,
                Objection::Waivable(waiver, _) => self.context.permit.contains(waiver),
            });
        if !objections.is_empty() {
            let why = in_words(&objections, "; and ");
            self.tell(&container.names, agent, Reason::WorkloadRefused, &why);
            return Err(refused(&format!("it cannot be governed: {why}")));
        }
        if !waived.is_empty() {
            let seen = format!("accepted by [discover] permit: {}", in_words(&waived, "; and "));
            self.tell(&container.names, agent.clone(), Reason::ObjectionWaived, &seen);
        }
        configuration.add(&self.additions(&agent, hook));
        Ok(Answer::ok(json!({ "configuration": configuration.into_json() })))
    }

    /// What a container of this agent is given.
    fn additions(&self, agent: &AgentName, hook: PathBuf) -> Additions {
        let placeholders = self.config.policy.credentials_of(agent).filter_map(|credential| {
            Some((credential.env.clone()?, crate::run::placeholder(credential)))
        });
        let handed = trust::handout(&self.config.gateway.state_dir);
        let text = |(name, value): &(&str, PathBuf)| {
            ((*name).to_owned(), value.to_string_lossy().into_owned())
        };
        Additions {
            hook,
            environment: placeholders.collect(),
            defaults: handed.variables.iter().map(text).collect(),
            mounts: vec![(handed.source, handed.target)],
        }
    }

    async fn arm(&mut self, mut container: Container, pid: Pid) -> Result<Answer, Refusal> {
        let id = &container.names.id;
        // By the kernel's word, whatever the configuration says.
        let Some(cgroup) = engine::cgroup_of(id, pid) else {
            return Err(refused(
                "its process is in no cgroup that bears its id, so that nothing tells it from others; use the cgroups of runc or crun",
            ));
        };
        (container.pid, container.cgroup) = (pid, cgroup.clone());
        self.containers.add(container);
        let below = cgroup.strip_prefix("/").unwrap_or(&cgroup);
        let of_process = self.context.cgroups.open(&self.context.cgroups.mount().join(below));
        let number = of_process.map_err(|error| refused(&error.to_string()))?.id();
        let found = self.find().0.into_iter().find(|found| found.cgroup.id() == number);
        let Some(found) = found else {
            return Err(refused("it is no agent's any more; has the configuration changed?"));
        };
        let is_another = |known: &Workload| !known.is(&found);
        if self.workloads.get(&number).is_some_and(is_another)
            && let Some(other) = self.workloads.remove(&number)
        {
            other.release(&self.context).await;
        }
        let waiting = Waiting::of(pid).map_err(|error| refused(&error.to_string()))?;
        let workload = self.workloads.entry(number).or_insert_with(|| Workload::new(found));
        let armed = workload.arm(waiting, &self.context, &mut self.spares).await;
        self.sweep.forget(number);
        self.spares.refill(1, self.context.kernel_log);
        match armed {
            Ok(()) => Ok(Answer::ok(json!({ "armed": true }))),
            Err(error) => Err(refused(&format!("it cannot be governed: {error:#}"))),
        }
    }

    /// Writes a record about a container that has no cgroup yet.
    fn tell(&self, container: &ContainerNames, name: AgentName, reason: Reason, detail: &str) {
        let workload = container.to_string();
        tracing::warn!(agent = %name, workload, "{}: {detail}", reason.code());
        let container = Some(Arc::new(container.clone()));
        let tally = Arc::default();
        let agent = Agent { name, workload, container, cgroup_id: 0, netns_cookie: 0, tally };
        let mut record = self.context.audit.open(Kind::Operator, &Arc::new(agent), reason);
        record.detail = Some(detail.to_owned());
        if reason == Reason::ObjectionWaived {
            record.decision = Decision::Allow;
        }
    }
}

/// What speaks against a configuration. The files that it names may be anywhere, and are looked at beside the daemon's
/// loop: a share whose server is gone never answers.
async fn judge(configuration: Value, engines: Vec<PathBuf>) -> Result<Vec<Objection>, String> {
    let look = move || {
        // One that is no object is refused later.
        let configuration = Configuration::of(configuration);
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_absent| path.to_owned());
        let facts = Facts { is_host: &is_host, real: &real, engines: &engines };
        configuration.map_or_else(Vec::new, |configuration| configuration.objections(&facts))
    };
    match timeout(JUDGING, tokio::task::spawn_blocking(look)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(_panic)) => Err("its configuration cannot be judged".to_owned()),
        Err(_elapsed) => Err(format!(
            "the files that its configuration names have not answered in {} s; is what it mounts there?",
            JUDGING.as_secs()
        )),
    }
}

async fn send(listings: &mpsc::Sender<Listed>, listed: Listed) {
    // Whoever waits for the answer is told by its sender's end.
    if listings.send(listed).await.is_err() {
        tracing::debug!("the daemon ends");
    }
}

async fn list(engines: &[PathBuf], id: String) -> Result<Container, String> {
    let mut silent = Vec::new();
    for socket in engines {
        match engine::find(socket, &id).await {
            Ok(Some((names, labels))) => {
                let (pid, cgroup) = (Pid::from_raw(0), PathBuf::new());
                let (names, runtime) = (Arc::new(names), Some(WayIn::RUNTIME.to_owned()));
                return Ok(Container { names, labels, pid, runtime, cgroup });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, socket = %socket.display(), "no container engine");
                silent.push(socket.display().to_string());
            }
        }
    }
    let asked: Vec<_> = engines.iter().map(|socket| socket.display().to_string()).collect();
    Err(format!(
        "no engine knows the container (asked: {}; without an answer: {}); name its engine's socket in [discover] engines",
        asked.join(", "),
        if silent.is_empty() { "none".to_owned() } else { silent.join(", ") },
    ))
}

fn refused(why: &str) -> Refusal {
    Answer::refused(StatusCode::FORBIDDEN, why)
}

fn in_words(objections: &[Objection], between: &str) -> String {
    objections.iter().map(ToString::to_string).collect::<Vec<_>>().join(between)
}

/// Whether the file of a namespace is that of the machine's first process, or of the daemon.
fn is_host(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let Some(found) = identity(path) else {
        // What cannot be looked at may be anything.
        return true;
    };
    let kinds = ["net", "mnt", "pid", "user", "ipc", "uts", "cgroup", "time"];
    let of = |process: &str| {
        kinds.map(|kind| identity(Path::new(&format!("/proc/{process}/ns/{kind}"))))
    };
    of("1").into_iter().chain(of("self")).flatten().any(|hosts| hosts == found)
}
