//! `tollgate daemon`: governs workloads that others start, for as long as their cgroups live.
//!
//! ```text
//! cgroups that match an agent ── close ── examine ── open ── serve ── (cgroup gone) release
//! ```
//!
//! A cgroup is closed before anything else is known of it: what fails the examination stays closed. When the daemon
//! dies, the pinned programs go on refusing; the next one finds them by the cgroup's id.

mod complaint;
mod containers;
mod creation;
mod discover;
mod examine;
mod lock;
mod networks;
mod pins;
mod scrutiny;
mod slice;
mod spare;
mod succession;
mod sweep;
mod told;
mod waiting;
mod watch;
mod window;
mod workload;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use nix::unistd::Pid;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::admin::{self, Answer, Asked, Question, Report};
use crate::audit::Sink;
use crate::capture::{self, Attachment, BpfFs, CgroupRoot, Gate, Way};
use crate::config::Config;
use crate::credentials::Vault;
use crate::discover::Waiver;
use crate::doctor;
use crate::gateway::{self, Gateway};
use crate::run;
use crate::terminate::Authority;
use crate::trust::{self, Anchors};
use containers::Containers;
use creation::{Listed, Step};
use lock::Lock;
use networks::Networks;
use slice::Slice;
use spare::Spares;
use succession::Succession;
use sweep::Sweep;
use watch::Watch;
use workload::Workload;

/// What `tollgate daemon` was asked for.
#[derive(Debug)]
pub struct Request {
    /// The configuration file.
    pub config: PathBuf,
    /// Level of kernel diagnostics, off without.
    pub kernel_log: Option<tracing::Level>,
    /// Whether to go on with a kernel on which something is open.
    pub accept_weak: bool,
}

/// How often the cgroups are looked at when nothing is heard of them.
const RECONCILE_EVERY: Duration = Duration::from_millis(200);
/// How often the programs of governed cgroups are looked at, and pins without a workload.
const VERIFY_EVERY: Duration = Duration::from_secs(3);

/// How long engines may take to answer first before the others are looked at.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);

/// The variables of the daemon's environment, which the sources of credentials may name.
type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Governs workloads until SIGTERM or SIGINT. What it governs stays closed when this returns.
///
/// # Errors
/// When it cannot start.
pub fn daemon(request: &Request, read_environment: Environment<'_>) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("`tollgate daemon` loads kernel programs: run it as root");
    }
    let _lock = Lock::take()?;
    nix::sys::prctl::set_dumpable(false)?;
    run::raise_open_files()?;
    let config = Config::load(&request.config)?;
    let vault = Vault::load(&config.policy, read_environment).map_err(run::all_sources)?;
    let audit = Sink::open_file(&config.gateway.audit)?;
    let authority = Authority::open(&config.gateway.state_dir)?;
    let anchors = Arc::new(Anchors::new(&authority.trusted_pem())?);
    hand_out(&config.gateway.state_dir, &authority)?;
    let gateway = Gateway::new(&config, vault, authority, audit.clone())?;
    let (cgroups, bpf) = (CgroupRoot::find()?, BpfFs::find_or_mount()?);
    run::sweep(&cgroups, &bpf);
    let runtime = gateway::runtime()?;
    let entered = runtime.enter();
    let context = Context {
        gateway,
        audit,
        cgroups,
        bpf,
        networks: Networks::default(),
        watch: Watch::new()?,
        gate: Gate::open(Attachment::default())?,
        kernel_log: capture::kernel_log_level(request.kernel_log),
        permit: config.discover.permit.as_slice().into(),
        anchors,
        way: config.gateway.way,
    };
    let containers = Containers::ask(&config.discover.engines);
    let questions = admin::listen(Path::new(admin::SOCKET))?;
    drop(entered);
    let (listings, listed) = mpsc::channel(1);
    let succession = Succession::of(config.gateway.state_dir.clone());
    let mut daemon = Daemon {
        request,
        listings,
        succession,
        containers,
        read_environment,
        config,
        context,
        workloads: BTreeMap::new(),
        sweep: Sweep::default(),
        spares: Spares::default(),
        slice: Slice::default(),
    };
    runtime.block_on(daemon.serve(questions, listed))?;
    runtime.shutdown_timeout(Duration::ZERO);
    Ok(())
}

/// What the work on any workload needs.
struct Context {
    gateway: Gateway,
    audit: Sink,
    cgroups: CgroupRoot,
    bpf: BpfFs,
    networks: Networks,
    watch: Watch,
    gate: Gate,
    kernel_log: u8,
    /// Objections that the operator waives.
    permit: Arc<[Waiver]>,
    /// What containers are made to trust.
    anchors: Arc<Anchors>,
    way: Way,
}

struct Daemon<'a> {
    request: &'a Request,
    /// Where what engines say of a container that is being made comes in.
    listings: mpsc::Sender<Listed>,
    read_environment: Environment<'a>,
    config: Config,
    context: Context,
    containers: Containers,
    succession: Succession,
    /// By cgroup id.
    workloads: BTreeMap<u64, Workload>,
    sweep: Sweep,
    spares: Spares,
    slice: Slice,
}

impl Daemon<'_> {
    async fn serve(
        &mut self,
        mut questions: mpsc::Receiver<Asked>,
        mut listed: mpsc::Receiver<Listed>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut ticks = tokio::time::interval(RECONCILE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tracing::info!(pid = std::process::id(), "the daemon has started");
        let accept_weak = self.request.accept_weak;
        let mut kernel = tokio::task::spawn_blocking(move || doctor::at_start(accept_weak));
        // Workloads that a former daemon has governed do not wait for it: they are better off served than not, and
        // closed either way. Before there are any, nothing is touched on a kernel that does not hold.
        let mut is_checked = !self.context.bpf.has_governed();
        if is_checked {
            (&mut kernel).await??;
        }
        let mut verified: Option<Instant> = None;
        // Else what a former daemon governed would be nobody's until they answer.
        self.containers.first_answers(FIRST_ANSWERS).await;
        let ended = loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.context.watch.changed() => {}
                () = self.containers.changed() => {}
                checked = &mut kernel, if !is_checked => match checked? {
                    Ok(()) => is_checked = true,
                    refused => break refused,
                },
                () = received(&mut hang_up) => drop(self.reload()),
                Some(asked) = questions.recv() => self.answer(asked),
                Some(listed) = listed.recv() => self.make(listed).await,
                () = received(&mut terminate) => break Ok(()),
                () = received(&mut interrupt) => break Ok(()),
            }
            self.follow_ca().await;
            self.reconcile().await;
            if verified.is_none_or(|verified| verified.elapsed() > VERIFY_EVERY) {
                verified = Some(Instant::now());
                self.verify().await;
            }
        };
        tracing::info!("the daemon ends; what it governs stays closed");
        let workloads = std::mem::take(&mut self.workloads).into_values();
        join_all(workloads.map(Workload::stop)).await;
        ended
    }

    /// What agents' `match` names, and whether that is all of it.
    fn find(&self) -> (Vec<discover::Found>, bool) {
        // Labels and names before cgroups: who says more of a workload decides whose it is.
        let (cgroups, policy) = (&self.context.cgroups, &self.config.policy);
        let mut found = self.containers.find(cgroups, policy);
        // Where not everything could be looked at, what was not seen may be there all the same.
        let (others, is_whole) = discover::find(cgroups, policy, &self.context.watch);
        for other in others {
            if !found.iter().any(|known| known.cgroup.id() == other.cgroup.id()) {
                found.push(other);
            }
        }
        (found, is_whole)
    }

    /// Makes what is governed what is there: everything is closed before anything is examined.
    async fn reconcile(&mut self) {
        self.slice.close(&self.context);
        let (found, is_whole) = self.find();
        let gone: Vec<u64> = self
            .workloads
            .iter()
            .filter(|(id, workload)| {
                let is_wanted =
                    |found: &discover::Found| found.cgroup.id() == **id && workload.is(found);
                !workload.cgroup().is_there() || (is_whole && !found.iter().any(is_wanted))
            })
            .map(|(id, _)| *id)
            .collect();
        for id in &gone {
            if let Some(workload) = self.workloads.remove(id) {
                workload.release(&self.context).await;
            }
        }
        let mut to_close = Vec::new();
        for found in found {
            let id = found.cgroup.id();
            let workload = self.workloads.entry(id).or_insert_with(|| Workload::new(found));
            to_close.extend(workload.is_to_be_closed().then_some(id));
            self.sweep.forget(id);
        }
        self.close(&to_close).await;
        for workload in self.workloads.values_mut() {
            workload.look(&self.context).await;
        }
        self.slice.look(&self.context, &self.workloads, &self.containers);
        self.spares.refill(1, self.context.kernel_log);
        if !gone.is_empty() {
            self.sweep.sweep(&self.context, &self.workloads);
        }
    }

    /// Closes workloads, one after the other. What takes long is the kernel's check of the programs, so those for the next
    /// ones are loaded meanwhile, on as many processors as there are.
    async fn close(&mut self, to_close: &[u64]) {
        let bpf = self.context.bpf.clone();
        let is_new = |id: &&u64| bpf.existing(&pins::pins_name(**id)).is_none();
        let mut new = to_close.iter().filter(is_new).count();
        for id in to_close {
            if is_new(&id) {
                self.spares.refill(new, self.context.kernel_log);
                new = new.saturating_sub(1);
            }
            if let Some(workload) = self.workloads.get_mut(id) {
                workload.close(&self.context, &mut self.spares).await;
            }
        }
    }

    /// Lets a CA take over whose time has come, and workloads trust one that was made for it.
    async fn follow_ca(&mut self) {
        let current = self.context.gateway.authority();
        let Some(next) = self.succession.next(&current).await else { return };
        match Anchors::new(&next.trusted_pem()) {
            Ok(anchors) => self.context.anchors = Arc::new(anchors),
            Err(error) => return tracing::error!("the CA goes on as it was: {error}"),
        }
        if let Err(error) = hand_out(self.succession.state_dir(), &next) {
            tracing::error!("new containers are not told of the CA: {error:#}");
        }
        let is_another = next.ca_pem() != current.ca_pem();
        self.context.gateway.replace_authority(next);
        tracing::info!(
            signs = if is_another { "the successor" } else { "the same" },
            "the CA was opened anew"
        );
        for workload in self.workloads.values_mut() {
            workload.tell(&self.context).await;
        }
    }

    async fn verify(&mut self) {
        for workload in self.workloads.values_mut() {
            workload.verify(&self.context).await;
        }
        self.sweep.sweep(&self.context, &self.workloads);
        self.slice.verify(&self.context);
    }

    fn answer(&mut self, Asked { question, answer }: Asked) {
        let said = match question {
            Question::Prepare { id, configuration, hook } => {
                let step = Step::Prepare { configuration, hook };
                return self.ask_engines(id, step, answer);
            }
            Question::Arm { id, pid } => {
                return self.ask_engines(id, Step::Arm { pid: Pid::from_raw(pid) }, answer);
            }
            Question::Status => self.status(),
            Question::Reload => match self.reload() {
                Ok(()) => Answer::ok(json!({})),
                Err(error) => Answer::refused(StatusCode::UNPROCESSABLE_ENTITY, &error),
            },
        };
        if answer.send(said).is_err() {
            tracing::debug!("an administrator has not waited for the answer");
        }
    }

    fn status(&self) -> Answer {
        let report = Report {
            pid: std::process::id(),
            slice: self.slice.status(),
            engines: self.containers.engines(),
            workloads: self.workloads.values().map(Workload::status).collect(),
        };
        match serde_json::to_value(report) {
            Ok(report) => Answer::ok(report),
            Err(error) => Answer::refused(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    /// Reads policy and credentials again. What is wrong with them changes nothing; all of it is returned.
    fn reload(&mut self) -> Result<(), String> {
        let load = || -> anyhow::Result<(Config, Vault)> {
            let config = Config::load(&self.request.config)?;
            let vault =
                Vault::load(&config.policy, self.read_environment).map_err(run::all_sources)?;
            Ok((config, vault))
        };
        let (config, vault) = load().map_err(|error| {
            let error = format!("{error:#}");
            tracing::error!("the configuration was not read again: {error}");
            error
        })?;
        self.context.permit = config.discover.permit.as_slice().into();
        self.context.gateway.reload(Arc::clone(&config.policy), vault);
        self.config = config;
        tracing::info!(
            "agents, rules, credentials and waivers were read again; [gateway], [dns], [upstream] and engines need a restart"
        );
        Ok(())
    }
}

/// For containers that are created from now on.
fn hand_out(state_dir: &Path, authority: &Authority) -> anyhow::Result<()> {
    let system = trust::bundle::system_bundles();
    Ok(trust::publish(state_dir, &system, &authority.trusted_pem())?)
}

async fn received(signal: &mut Signal) {
    signal.recv().await;
}
