//! One cgroup that an agent's `match` names: closed, then served for as long as a process of it has a network.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::Context;
use super::complaint::{Complaint, GRACE};
use super::discover::Found;
use super::examine;
use super::spare::Spares;
use super::window;
use crate::agent::{Agent, AgentName};
use crate::audit::{self, Kind, Reason, RefusalAudit};
use crate::capture::{self, BpfFs, Captured, Cgroup, Closed, Namespace, Pins, SLICE, Wires};
use crate::discover::engine::Container;
use crate::dns::Search;
use crate::gateway::Serving;
use crate::net::Openings;
use crate::trust::{self, Anchors};

/// How long open exchanges may take to end when the daemon ends.
const DRAIN: Duration = Duration::from_millis(500);

pub(super) struct Workload {
    agent: AgentName,
    openings: Openings,
    /// What an engine says of it, where it is a container.
    container: Option<Arc<Container>>,
    /// Whether the configuration has the agent.
    is_known: bool,
    cgroup: Cgroup,
    /// What people know it by.
    name: String,
    /// Why it must not be governed.
    unfit: Option<&'static str>,
    /// None until the programs are at work.
    closed: Option<Closed>,
    served: Option<Served>,
    complaint: Complaint,
    found: Instant,
    /// For how long at most it had the open net before it was closed.
    open_for: Option<Duration>,
    /// Whether connections may be left from before it was closed.
    is_uncut: bool,
}

/// What exists only while the way to the gateway is open.
struct Served {
    serving: Serving,
    refusals: RefusalAudit,
    wires: Wires,
    /// Held, so that its inode number stays its own.
    _namespace: Namespace,
    inode: u64,
    /// Tasks that read what the kernel programs write.
    readers: Vec<JoinHandle<()>>,
}

/// The name of a workload's pins.
pub(super) fn pins_name(cgroup_id: u64) -> String {
    format!("{PINS_PREFIX}{cgroup_id}")
}

/// Names of the pins of cgroups start with it.
pub(super) const PINS_PREFIX: &str = "cg-";

impl Workload {
    pub(super) fn new(found: Found) -> Self {
        Self {
            agent: found.agent,
            openings: found.openings,
            container: found.container,
            is_known: found.is_known,
            name: found.name,
            cgroup: found.cgroup,
            unfit: found.unfit,
            closed: None,
            served: None,
            complaint: Complaint::default(),
            found: Instant::now(),
            open_for: None,
            is_uncut: false,
        }
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The first process of a container, whose clients are to trust the CA.
    fn first_process(&self) -> Option<Pid> {
        self.container.as_ref().map(|container| container.pid)
    }

    /// Whether the configuration still says of it what it said.
    pub(super) fn is(&self, found: &Found) -> bool {
        self.agent == found.agent
            && self.openings == found.openings
            && self.first_process() == found.container.as_ref().map(|container| container.pid)
            && self.is_known == found.is_known
    }

    /// Puts the programs to work, where they are not yet. Without this nothing else may be done with it.
    pub(super) async fn close(&mut self, context: &Context, spares: &mut Spares) {
        let now = Instant::now();
        if self.closed.is_some() || !self.complaint.is_due(now) {
            return;
        }
        match self.try_close(context, spares).await {
            Ok((closed, is_adopted)) => {
                if !is_adopted {
                    self.was_open(context, &closed);
                }
                self.closed = Some(closed);
                self.complaint.clear();
                context.watch.processes_of(self.cgroup.path());
                tracing::info!(
                    agent = %self.agent,
                    workload = self.name,
                    ms = self.found.elapsed().as_millis(),
                    "{}",
                    if is_adopted { "closed as before" } else { "closed" }
                );
            }
            Err(_gone) if !self.cgroup.is_there() => {}
            Err(error) => self.complain(context, &format!("{error:#}"), Duration::ZERO),
        }
    }

    /// Says for how long it had the open net, if it had.
    fn was_open(&mut self, context: &Context, closed: &Closed) {
        let first = self.first_process();
        self.open_for = window::open_for(&self.cgroup, first, closed.gated_since());
        let Some(open_for) = self.open_for else { return };
        self.is_uncut = true;
        let ms = open_for.as_millis();
        tracing::warn!(agent = %self.agent, workload = self.name, open_ms = ms, "it had started before it was closed");
        let detail = format!(
            "it had started before it was closed, and had the open net for at most {ms} ms; start it with --cgroup-parent={SLICE}, or its engine's way of writing that, and it is closed from its creation"
        );
        context.record(&self.as_agent(0), Reason::WorkloadWasOpen, &detail);
    }

    async fn try_close(
        &self,
        context: &Context,
        spares: &mut Spares,
    ) -> anyhow::Result<(Closed, bool)> {
        if let Some(unfit) = self.unfit {
            anyhow::bail!("{unfit}");
        }
        let name = pins_name(self.cgroup.id());
        let is_adopted = context.bpf.existing(&name).is_some();
        let pins = context.bpf.open_or_create(&name)?;
        let spare = if is_adopted { None } else { spares.take().await };
        let closed = Closed::close_with(spare, &self.cgroup, &pins, context.kernel_log);
        if closed.is_err() && !is_adopted {
            remove_if_useless(&pins);
            context.bpf.remove_if_empty();
        }
        Ok((closed?, is_adopted))
    }

    /// Opens the way to the gateway when there is a process to open it for, and closes it when there is none any more,
    /// or all have another network.
    pub(super) async fn look(&mut self, context: &Context) {
        if self.closed.is_none() {
            return;
        }
        if let Some(served) = &self.served {
            if examine::lives_in(&self.cgroup, served.inode) {
                return;
            }
            tracing::info!(agent = %self.agent, workload = self.name, "no process is left in its network");
            self.suspend().await;
        }
        let now = Instant::now();
        if !self.complaint.is_due(now) {
            return;
        }
        self.cut(context);
        match self.open(context) {
            Ok(is_open) => {
                self.served = is_open;
                self.complaint.clear();
            }
            Err(error) => self.complain(context, &format!("{error:#}"), GRACE),
        }
    }

    /// Ends what it has opened before it was closed, once it is known in which network.
    fn cut(&mut self, context: &Context) {
        if self.is_uncut
            && let Ok(Some(network)) = examine::network_of(&self.cgroup)
        {
            self.is_uncut = false;
            if let Some(cut) = window::cut(&network, &self.cgroup) {
                tracing::warn!(agent = %self.agent, workload = self.name, "{cut}");
                context.record(&self.as_agent(0), Reason::WorkloadWasOpen, &cut);
            }
        }
    }

    fn open(&mut self, context: &Context) -> anyhow::Result<Option<Served>> {
        let Some(closed) = &mut self.closed else { return Ok(None) };
        let network = match examine::network_of(&self.cgroup) {
            Ok(Some(network)) => network,
            Ok(None) => return Ok(None),
            Err(unfit) => {
                closed.disarm()?;
                return Err(unfit.into());
            }
        };
        let inode = network.inode()?;
        let pins = context.bpf.open_or_create(&pins_name(self.cgroup.id()))?;
        // Wires first: what cannot be held must not send past its sockets meanwhile.
        let fenced = closed.fence(&network, &pins, &self.openings, &context.gate)?;
        if let Err(unfit) = examine::refuse_what_cannot_be_held(&self.cgroup, &context.permit) {
            closed.disarm()?;
            return Err(unfit.into());
        }
        let captured = closed.open(&network, context.port)?;
        let mut wires = fenced.watch(captured.netns_cookie)?;
        let Captured { listeners, flows, refusals, log, netns_cookie } = captured;
        let agent = self.as_agent(netns_cookie);
        // What engines give their containers. The workload's own file is the agent's to write, and is not looked at.
        let search = Search::of_this_machine();
        let flows = Arc::new(flows);
        let serving = context.gateway.serve(Arc::clone(&agent), listeners, flows, &search)?;
        let refusals = audit::audit_refusals(refusals, context.audit.clone(), Arc::clone(&agent));
        let wired = audit::audit_wires(wires.take_events(), context.audit.clone(), agent);
        let mut readers = vec![tokio::spawn(wired)];
        readers.extend(log.map(|log| tokio::spawn(capture::relay_log(log))));
        tracing::info!(
            agent = %self.agent,
            workload = self.name,
            ms = self.found.elapsed().as_millis(),
            "governed"
        );
        if !self.is_known {
            let detail = format!(
                "its label names the agent `{}`, which the configuration does not have: everything is denied to it",
                self.agent
            );
            tracing::warn!(workload = self.name, "{detail}");
            context.record(&self.as_agent(0), Reason::WorkloadRefused, &detail);
        }
        if let Some(pid) = self.first_process() {
            readers.push(tokio::spawn(install_trust(pid, Arc::clone(&context.anchors))));
        }
        Ok(Some(Served { serving, refusals, wires, _namespace: network, inode, readers }))
    }

    /// Looks whether the programs are still at work, and puts them to work again when they are not.
    pub(super) async fn verify(&mut self, context: &Context) {
        let Some(closed) = &self.closed else { return };
        // A process with rights of its own may have joined since (as `exec --privileged` makes one).
        if self.served.is_some()
            && let Err(unfit) = examine::refuse_what_cannot_be_held(&self.cgroup, &context.permit)
        {
            self.suspend().await;
            let unfit = anyhow::Error::from(unfit);
            return self.complain(context, &format!("{unfit:#}"), Duration::ZERO);
        }
        let Err(broken) = closed.verify(&self.cgroup) else { return };
        if !self.cgroup.is_there() {
            return;
        }
        let broken = format!("{:#}", anyhow::Error::from(broken));
        tracing::error!(agent = %self.agent, workload = self.name, "{broken}; it is closed again");
        context.record(&self.as_agent(0), Reason::EnforcementBroken, &broken);
        self.suspend().await;
        self.is_uncut = true;
        let again =
            self.closed.as_mut().map(|closed| closed.close_again(&self.cgroup, context.kernel_log));
        if let Some(Err(error)) = again {
            self.closed = None;
            self.complain(context, &format!("{:#}", anyhow::Error::from(error)), Duration::ZERO);
        }
    }

    /// Serves it no more. It stays closed.
    async fn suspend(&mut self) {
        let Some(Served { serving, refusals, wires, readers, .. }) = self.served.take() else {
            return;
        };
        drop(serving);
        // The next reader of the kernel's buffers must be the only one.
        refusals.finish().await;
        if self.cgroup.is_there() {
            // They stay fenced. The watch ends first, as it may arm the workload again.
            drop(wires);
        } else {
            wires.release();
        }
        for reader in readers {
            reader.abort();
            if let Err(error) = reader.await {
                tracing::trace!(%error, "a reader has ended");
            }
        }
        if let Some(closed) = &self.closed
            && let Err(error) = closed.disarm()
        {
            tracing::error!(workload = self.name, "{:#}", anyhow::Error::from(error));
        }
    }

    /// Its cgroup is gone, or is nobody's any more: what holds it closed is left to the sweep.
    pub(super) async fn release(mut self) {
        self.suspend().await;
        // In Tollgate's slice it is as closed as it was before it was known.
        if let Some(closed) = &self.closed
            && self.cgroup.is_there()
            && let Err(error) = closed.expel(&self.cgroup)
        {
            tracing::error!(workload = self.name, "{:#}", anyhow::Error::from(error));
        }
        tracing::info!(agent = %self.agent, workload = self.name, "released");
    }

    /// The daemon ends: what is in flight may end. It stays closed, and its network armed: nobody takes the gateway's
    /// port until the next daemon comes.
    pub(super) async fn stop(mut self) {
        if let Some(served) = self.served.take() {
            served.serving.stop(DRAIN).await;
            served.refusals.finish().await;
        }
    }

    /// What `tollgate status` shows of it.
    pub(super) fn status(&self) -> Value {
        json!({
            "agent": self.agent.as_str(),
            "workload": self.name,
            "container": self.container.as_deref().map(|container| &*container.names),
            "cgroup": self.cgroup.id(),
            "open_ms": self.open_for.map(|open| open.as_millis()),
            "state": match (&self.served, &self.closed) {
                (Some(_), _) => "served",
                (None, Some(_)) => "closed",
                (None, None) => "open",
            },
        })
    }

    fn complain(&mut self, context: &Context, reason: &str, grace: Duration) {
        if self.complaint.note(reason, grace, Instant::now()) {
            tracing::warn!(agent = %self.agent, workload = self.name, "not governed: {reason}");
            let detail = match self.closed {
                Some(_) => format!("its sockets are refused everything: {reason}"),
                None => reason.to_owned(),
            };
            context.record(&self.as_agent(0), Reason::WorkloadRefused, &detail);
        }
    }

    /// Who the records about it are about; a cookie of 0 is no network's.
    fn as_agent(&self, netns_cookie: u64) -> Arc<Agent> {
        Arc::new(Agent {
            name: self.agent.clone(),
            workload: self.name.clone(),
            container: self.container.as_ref().map(|container| Arc::clone(&container.names)),
            cgroup_id: self.cgroup.id(),
            netns_cookie,
        })
    }
}

/// Makes the clients in a container trust the CA. What cannot be covered is told; the container is governed anyway.
async fn install_trust(pid: Pid, anchors: Arc<Anchors>) {
    let installed = tokio::task::spawn_blocking(move || trust::install(pid, &anchors)).await;
    match installed {
        Ok(Ok(report)) => tracing::info!(
            process = pid.as_raw(),
            stores = report.stores.len(),
            changed = report.is_changed,
            complete = report.is_complete,
            "the container trusts the CA"
        ),
        Ok(Err(error)) => tracing::warn!(
            process = pid.as_raw(),
            "clients in the container do not trust the CA: {:#}",
            anyhow::Error::from(error)
        ),
        Err(error) => tracing::error!(%error, "the container's trust was not looked at"),
    }
}

impl Context {
    /// Writes a record about a workload as a whole.
    pub(super) fn record(&self, agent: &Arc<Agent>, reason: Reason, detail: &str) {
        self.audit.open(Kind::Operator, agent, reason).detail = Some(detail.to_owned());
    }
}

/// Pins that hold no link refuse nothing; those with one do, even if it is only one.
fn remove_if_useless(pins: &Pins) {
    if pins.links().is_ok_and(|links| links.is_empty())
        && let Err(error) = pins.clone().remove()
    {
        tracing::debug!(%error, "an empty directory of pins stays");
    }
}

/// Removes the pins of a cgroup that is gone, sockets included. Says whether nothing is left.
pub(super) fn remove_if_dead(bpf: &BpfFs, name: &str) -> bool {
    let Some(pins) = bpf.existing(name) else { return true };
    if !pins.are_dead().unwrap_or(false) {
        return false;
    }
    let removed = pins.remove();
    if let Err(error) = &removed {
        tracing::error!(%error, "the pins of a workload that is gone stay");
    }
    bpf.remove_if_empty();
    removed.is_ok()
}
