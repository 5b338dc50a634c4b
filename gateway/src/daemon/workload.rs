//! One cgroup that an agent's `match` names: closed, then served for as long as a process of it has a network.

mod arm;
mod fence;
mod head_start;
mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::unistd::Pid;
use tokio::task::JoinHandle;

use fence::Held;

use super::Context;
use super::complaint::{Complaint, GRACE};
use super::discover::Found;
use super::examine::{self, Networks, Unfit};
use super::networks::Tenure;
use super::pins::{pins_name, remove_if_useless};
use super::scrutiny::{Admission, LOOKS, Scrutiny};
use super::spare::Spares;
use super::told::Told;
use super::waiting::Waiting;
use crate::admin::WayIn;
use crate::agent::{Agent, AgentName};
use crate::audit::{self, Kind, Reason, RefusalAudit, Tally};
use crate::capture::{self, Captured, Cgroup, Closed, Namespace, Wires};
use crate::discover::engine::Container;
use crate::dns::Search;
use crate::gateway::Serving;
use crate::net::Openings;

/// How long open exchanges may take to end when the daemon ends.
const DRAIN: Duration = Duration::from_millis(500);

pub(super) struct Workload {
    agent: AgentName,
    openings: Openings,
    /// What an engine says of it, where it is a container.
    container: Option<Arc<Container>>,
    /// Whether the configuration has the agent.
    is_known: bool,
    way_in: WayIn,
    cgroup: Arc<Cgroup>,
    /// What people know it by.
    name: String,
    /// Why it must not be governed.
    unfit: Option<&'static str>,
    /// None until the programs are at work.
    closed: Option<Closed>,
    served: Option<Served>,
    /// Its first process, where a runtime has had it armed.
    waiting: Option<Waiting>,
    /// While it has networks and is not served.
    held: Vec<Held>,
    admission: Admission,
    /// How many tries in a row to open it have found something wrong with its processes.
    unfit_looks: u8,
    told: Told,
    complaint: Complaint,
    /// Inode number of a network that another workload has.
    waits_for: Option<u64>,
    tally: Arc<Tally>,
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
    _tenure: Tenure,
    /// How long after it was found.
    after: Duration,
    scrutiny: Scrutiny,
    /// Tasks that read what the kernel programs write.
    readers: Vec<JoinHandle<()>>,
}

impl Workload {
    pub(super) fn new(found: Found) -> Self {
        Self {
            agent: found.agent,
            openings: found.openings,
            container: found.container,
            is_known: found.is_known,
            way_in: found.way_in,
            name: found.name,
            cgroup: Arc::new(found.cgroup),
            unfit: found.unfit,
            closed: None,
            served: None,
            waiting: None,
            held: Vec::new(),
            admission: Admission::default(),
            unfit_looks: 0,
            told: Told::default(),
            complaint: Complaint::default(),
            waits_for: None,
            tally: Arc::default(),
            found: Instant::now(),
            open_for: None,
            is_uncut: false,
        }
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The first process of a container.
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

    /// Whether its programs are not at work yet, and it is time to try.
    pub(super) fn is_to_be_closed(&self) -> bool {
        self.closed.is_none() && self.complaint.is_due(Instant::now())
    }

    /// Puts the programs to work, where they are not yet. Without this nothing else may be done with it.
    pub(super) async fn close(&mut self, context: &Context, spares: &mut Spares) {
        if !self.is_to_be_closed() {
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
        if let Some(served) = &mut self.served {
            if examine::lives_in(&self.cgroup, served.inode) {
                let look = look_at(&self.cgroup, context, served.inode, &self.waiting);
                return match served.scrutiny.verdict(look).await {
                    Ok(()) if self.told.is_settling() => self.tell(context).await,
                    Ok(()) => {}
                    Err(unfit) => {
                        self.suspend(context).await;
                        let unfit = format!("{:#}", anyhow::Error::from(unfit));
                        self.complain(context, &unfit, Duration::ZERO);
                    }
                };
            }
            tracing::info!(agent = %self.agent, workload = self.name, "no process is left in its network");
            self.suspend(context).await;
        }
        // Whoever holds a network that nobody is in keeps it from going.
        self.held.retain(|held| examine::lives_in(&self.cgroup, held.inode));
        let has_become_free = self.waits_for.is_some_and(|inode| context.networks.is_free(inode));
        if !has_become_free && !self.complaint.is_due(Instant::now()) {
            return;
        }
        self.cut(context);
        match self.open(context) {
            Ok(is_open) => {
                self.served = is_open;
                self.unfit_looks = 0;
                self.complaint.clear();
                self.tell(context).await;
            }
            Err(error) => {
                self.disarm();
                // What may be there for a moment only is tried again before anything is said.
                let may_pass = error.downcast_ref().is_some_and(Unfit::may_pass);
                self.unfit_looks = if may_pass { self.unfit_looks.saturating_add(1) } else { 0 };
                if !may_pass || self.unfit_looks >= LOOKS {
                    self.complain(context, &format!("{error:#}"), GRACE);
                }
            }
        }
    }

    /// Refuses it everything, whatever of it was open.
    fn disarm(&self) {
        if let Some(closed) = &self.closed
            && let Err(error) = closed.disarm()
        {
            tracing::error!(workload = self.name, "{:#}", anyhow::Error::from(error));
        }
    }

    /// Whatever fails here leaves it to the caller to refuse it everything.
    fn open(&mut self, context: &Context) -> anyhow::Result<Option<Served>> {
        if self.closed.is_none() {
            return Ok(None);
        }
        let network = match examine::networks_of(&self.cgroup)? {
            Networks::None => return Ok(None),
            Networks::One(network) => network,
            Networks::Several(networks) => {
                self.hold_all(networks, context)?;
                return Err(Unfit::SeveralNetworks.into());
            }
        };
        let inode = network.inode()?;
        // Before its wires are touched, which are fenced for the other one.
        let tenure = context.networks.take(inode, &self.name);
        self.waits_for = tenure.as_ref().err().map(|taken| taken.inode);
        let _tenure = tenure?;
        let is_held = self.held.iter().any(|held| held.inode == inode);
        if is_held {
            // Fenced already: nothing is touched as long as it cannot be opened.
            self.examine(inode, context)?;
        }
        // Wires first: what cannot be held must not send past its sockets meanwhile.
        let fenced = self.fence(&network, context)?;
        let examined = if is_held { Ok(()) } else { self.examine(inode, context) };
        let opened = examined.map_err(anyhow::Error::from);
        let captured = match opened.and_then(|()| self.open_way(&network, context)) {
            Ok(captured) => captured,
            Err(error) => {
                self.hold(Some(fenced), inode, context);
                return Err(error);
            }
        };
        let mut wires = fenced.watch(captured.netns_cookie)?;
        let events = wires.take_events();
        match self.serve(captured, events, context) {
            Ok((serving, refusals, readers)) => {
                let scrutiny = Scrutiny::default();
                let (_namespace, after) = (network, self.found.elapsed());
                Ok(Some(Served {
                    serving,
                    refusals,
                    wires,
                    _namespace,
                    inode,
                    _tenure,
                    after,
                    scrutiny,
                    readers,
                }))
            }
            Err(error) => {
                self.hold(wires.rest(), inode, context);
                Err(error)
            }
        }
    }

    /// Opens the way to the gateway, where nothing speaks against it.
    fn open_way(&mut self, network: &Namespace, context: &Context) -> anyhow::Result<Captured> {
        let closed = self.closed.as_mut().context("it is not closed")?;
        Ok(closed.open(network, context.way)?)
    }

    /// Refuses what could get past its rules.
    fn examine(&mut self, inode: u64, context: &Context) -> Result<(), Unfit> {
        let look = look_at(&self.cgroup, context, inode, &self.waiting);
        self.admission.ask(inode, look)
    }

    fn serve(
        &self,
        captured: Captured,
        wires: Wires,
        context: &Context,
    ) -> anyhow::Result<(Serving, RefusalAudit, Vec<JoinHandle<()>>)> {
        let Captured { listeners, flows, refusals, log, netns_cookie } = captured;
        let agent = self.as_agent(netns_cookie);
        // What engines give their containers. The workload's own file is the agent's to write, and is not looked at.
        let search = Search::of_this_machine();
        let flows = Arc::new(flows);
        let serving = context.gateway.serve(Arc::clone(&agent), listeners, flows, &search)?;
        let refusals = audit::audit_refusals(refusals, context.audit.clone(), Arc::clone(&agent));
        let wired = audit::audit_wires(wires, context.audit.clone(), agent);
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
        Ok((serving, refusals, readers))
    }

    /// Looks whether the programs are still at work, and puts them to work again when they are not.
    pub(super) async fn verify(&mut self, context: &Context) {
        let Some(closed) = &self.closed else { return };
        // A process with rights of its own may have joined since (as `exec --privileged` makes one).
        if let Some(served) = &mut self.served {
            served.scrutiny.begin(look_at(&self.cgroup, context, served.inode, &self.waiting));
        }
        let Err(broken) = closed.verify(&self.cgroup) else { return self.tell(context).await };
        if !self.cgroup.is_there() {
            return;
        }
        let broken = format!("{:#}", anyhow::Error::from(broken));
        tracing::error!(agent = %self.agent, workload = self.name, "{broken}; it is closed again");
        context.record(&self.as_agent(0), Reason::EnforcementBroken, &broken);
        self.suspend(context).await;
        self.is_uncut = true;
        let again =
            self.closed.as_mut().map(|closed| closed.close_again(&self.cgroup, context.kernel_log));
        if let Some(Err(error)) = again {
            self.closed = None;
            self.complain(context, &format!("{:#}", anyhow::Error::from(error)), Duration::ZERO);
        }
    }

    /// Makes the clients of its processes trust the CA, where they do not yet.
    pub(super) async fn tell(&mut self, context: &Context) {
        if self.served.is_some() {
            self.told.look(&context.cgroups, self.cgroup.path(), &context.anchors).await;
        }
    }

    /// Serves it no more. It stays closed.
    async fn suspend(&mut self, context: &Context) {
        self.told = Told::default();
        let Some(Served { serving, refusals, wires, readers, inode, .. }) = self.served.take()
        else {
            return;
        };
        drop(serving);
        // The next reader of the kernel's buffers must be the only one.
        refusals.finish().await;
        if self.cgroup.is_there() {
            // The watch ends before it is disarmed, as it may arm the workload again.
            self.hold(wires.rest(), inode, context);
        } else {
            wires.release();
        }
        for reader in readers {
            reader.abort();
            if let Err(error) = reader.await {
                tracing::trace!(%error, "a reader has ended");
            }
        }
        self.disarm();
    }

    /// Its cgroup is gone, or is nobody's any more: what holds it closed is left to the sweep.
    pub(super) async fn release(mut self, context: &Context) {
        self.suspend(context).await;
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
            tally: Arc::clone(&self.tally),
        })
    }
}

/// A look at a workload that is served, to be taken on another thread.
fn look_at(
    cgroup: &Arc<Cgroup>,
    context: &Context,
    fenced: u64,
    waiting: &Option<Waiting>,
) -> impl FnOnce() -> Result<(), Unfit> + Send + 'static {
    let (cgroup, permit) = (Arc::clone(cgroup), Arc::clone(&context.permit));
    let waiting = waiting.clone();
    move || examine::refuse_what_cannot_be_held(&cgroup, &permit, fenced, waiting.as_ref())
}

impl Context {
    /// Writes a record about a workload as a whole.
    pub(super) fn record(&self, agent: &Arc<Agent>, reason: Reason, detail: &str) {
        self.audit.open(Kind::Operator, agent, reason).detail = Some(detail.to_owned());
    }
}
