//! `tollgate run`: governs one command without a container engine and without a daemon.
//!
//! ```text
//! tollgate ── launcher thread ── init (pid 1 of the workload) ── enter ── the command
//!  gateway,     own network and     joins the cgroup, mounts       drops rights,
//!  signals      PID namespace       trust and masks, reaps          becomes the command
//! ```
//!
//! The kernel programs are attached and armed before the first of these processes exists. When the command ends,
//! its PID namespace ends with it. When Tollgate is killed, the kernel kills init and with it the workload; what stays
//! in the file systems (cgroup, pins, run directory) is swept by the next start.
//!
//! What it does not do: hide the machine's files. A command shares the files of its user; whoever can write them can
//! change what other processes do. Hostile code belongs into a container.

mod directory;
mod enter;
mod init;
mod launch;
mod mounts;
mod plan;
mod signals;
mod stdio;
mod user;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub(crate) use directory::{PARENT as RUN_DIRECTORY, sweep};
pub use enter::{Identity, NotStarted, enter};
pub use init::init;
pub use launch::Ended;
pub use user::UserSpec;

use crate::agent::{Agent, AgentName};
use crate::audit::{self, Sink};
use crate::capture::{self, BpfFs, CaptureError, Captured, CgroupRoot, Namespace, ProgramsError};
use crate::config::Config;
use crate::credentials::Vault;
use crate::dns::Search;
use crate::gateway::{self, Gateway};
use crate::terminate::Authority;
use directory::Directory;
use plan::Plan;
pub(crate) use plan::placeholder;

/// What `tollgate run` was asked for.
#[derive(Debug)]
pub struct Request {
    /// As whom the policy knows the command.
    pub agent: AgentName,
    /// The configuration file.
    pub config: PathBuf,
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// As whom the command runs.
    pub user: UserSpec,
    /// Level of kernel diagnostics, off without.
    pub kernel_log: Option<tracing::Level>,
    /// The environment of the caller.
    pub environment: Vec<(OsString, OsString)>,
}

/// How long open exchanges may take to end after the command has ended.
const DRAIN: Duration = Duration::from_millis(500);

/// Runs the command and returns how it ended. Everything that was made for it is gone by then.
///
/// # Errors
/// When the command could not be governed; then it was not started.
pub fn run(request: &Request) -> anyhow::Result<Ended> {
    preflight()?;
    let open_files = raise_open_files()?;
    // Neither a core dump nor another process of the same user shows the secrets that are read next.
    nix::sys::prctl::set_dumpable(false)?;
    // Before any thread exists (the counters have one), so that all inherit the mask: a single thread without it would
    // take a signal that belongs to the command, and end or stop Tollgate by it.
    let signals = signals::Signals::block()?;
    let config = Config::load(&request.config)?;
    if !config.policy.has_agent(&request.agent) {
        anyhow::bail!(
            "{}: there is no agent `{}`; add an [[agent]] with this name",
            request.config.display(),
            request.agent
        );
    }
    let read_environment = |name: &str| {
        request.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    let vault = Vault::load(&config.policy, &read_environment).map_err(all_sources)?;
    let audit = Sink::open_file(&config.gateway.audit)?;
    let authority = Authority::open(&config.gateway.state_dir)?;
    let ca_pem = authority.trusted_pem();
    let gateway = Gateway::new(&config, vault, authority, audit.clone())?;
    let user = request.user.resolve(&read_environment)?;
    // The command searches as everything on this machine does: a short name means the same to it.
    let search = Search::of_this_machine();
    let roots = Roots { cgroups: CgroupRoot::find()?, bpf: BpfFs::find_or_mount()? };
    sweep(&roots.cgroups, &roots.bpf);
    let workload = Workload::create(&roots)?;
    let outcome = workload.govern(
        &Asked {
            request,
            config: &config,
            ca_pem: &ca_pem,
            user,
            search: &search,
            signals: &signals,
            open_files,
        },
        &gateway,
        &audit,
    );
    let clean = workload.remove(&roots);
    match (outcome, clean) {
        (Ok(ended), Ok(())) => Ok(ended),
        (Ok(_), Err(error)) => Err(error),
        (Err(error), clean) => Err(undone(error, clean)),
    }
}

pub(crate) fn all_sources(errors: Vec<crate::credentials::SourceError>) -> anyhow::Error {
    let lines: Vec<String> =
        errors.into_iter().map(|error| format!("{:#}", anyhow::Error::from(error))).collect();
    anyhow::anyhow!("{}", lines.join("\n"))
}

/// Raises the soft limit of open files to the hard one, as each governed connection takes two; returns what it was.
pub(crate) fn raise_open_files() -> anyhow::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(soft)
}

/// What the kernel must offer, checked before anything is made, one clear line each.
fn preflight() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!(
            "`tollgate run` makes namespaces and loads kernel programs: run it as root (sudo)"
        );
    }
    stdio::check()?;
    if !capture::object_is_built_in() {
        return Err(ProgramsError::NotBuilt.into());
    }
    if !PathBuf::from(KERNEL_BTF).exists() {
        anyhow::bail!(
            "the kernel has no type information at {KERNEL_BTF}; Tollgate needs a kernel built with CONFIG_DEBUG_INFO_BTF"
        );
    }
    Ok(())
}

const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

struct Roots {
    cgroups: CgroupRoot,
    bpf: BpfFs,
}

/// What one run is about: what was asked, and what followed from it.
struct Asked<'a> {
    request: &'a Request,
    config: &'a Config,
    /// The CA's certificate, PEM.
    ca_pem: &'a str,
    /// As whom the command runs, where that is not the caller.
    user: Option<user::User>,
    /// What the command's resolver appends to names.
    search: &'a Search,
    signals: &'a signals::Signals,
    /// The soft limit of open files that the command gets.
    open_files: u64,
}

/// Everything that is made for one run outside its own namespaces.
struct Workload {
    directory: Directory,
    cgroup: capture::Cgroup,
    pins: capture::Pins,
}

impl Workload {
    fn create(roots: &Roots) -> anyhow::Result<Self> {
        let directory = Directory::create()?;
        let cgroup = match roots.cgroups.create(directory.name()) {
            Ok(cgroup) => cgroup,
            Err(error) => return Err(undone(error.into(), directory.remove())),
        };
        let pins = match roots.bpf.create(directory.name()) {
            Ok(pins) => pins,
            Err(error) => {
                let destroyed = cgroup.destroy().map_err(anyhow::Error::from);
                roots.cgroups.remove_runs_if_empty();
                let removed = destroyed.and_then(|()| directory.remove());
                return Err(undone(error.into(), removed));
            }
        };
        Ok(Self { directory, cgroup, pins })
    }

    fn govern(&self, asked: &Asked<'_>, gateway: &Gateway, audit: &Sink) -> anyhow::Result<Ended> {
        let namespace = Namespace::isolated()?;
        let captured = capture::capture(
            &self.cgroup,
            &namespace,
            &self.pins,
            asked.config.gateway.way,
            capture::kernel_log_level(asked.request.kernel_log),
        )
        .map_err(explain_capture)?;
        let agent = Arc::new(Agent {
            name: asked.request.agent.clone(),
            workload: self.directory.name().to_owned(),
            container: None,
            cgroup_id: self.cgroup.id(),
            netns_cookie: captured.netns_cookie,
            tally: Arc::default(),
        });
        let plan = Plan::new(asked, &self.cgroup)?;
        self.directory.write_plan(&plan)?;
        let status = self.directory.make_status()?;

        let runtime = gateway::runtime()?;
        let entered = runtime.enter();
        let Captured { listeners, flows, refusals, log, .. } = captured;
        let flows = Arc::new(flows);
        let serving = gateway.serve(Arc::clone(&agent), listeners, flows, asked.search)?;
        let refusals = audit::audit_refusals(refusals, audit.clone(), agent);
        if let Some(log) = log {
            runtime.spawn(capture::relay_log(log));
        }
        let ended = launch::launch(&namespace, &self.directory, status, asked.signals);
        drop(entered);
        runtime.block_on(async {
            serving.stop(DRAIN).await;
            refusals.finish().await;
        });
        runtime.shutdown_timeout(DRAIN);
        ended
    }

    fn remove(self, roots: &Roots) -> anyhow::Result<()> {
        // Processes first: as long as one lives, it stays governed.
        self.cgroup.destroy()?;
        self.pins.remove()?;
        self.directory.remove()?;
        roots.cgroups.remove_runs_if_empty();
        roots.bpf.remove_if_empty();
        Ok(())
    }
}

/// The first failure is what people need to know; one of the clean-up after it is for the log, and for the sweep.
fn undone(failure: anyhow::Error, clean: anyhow::Result<()>) -> anyhow::Error {
    if let Err(left) = clean {
        tracing::error!("what was made for the command could not be removed: {left:#}");
    }
    failure
}

fn explain_capture(error: CaptureError) -> anyhow::Error {
    anyhow::Error::from(error).context("the command cannot be governed, so it was not started")
}
