//! `tollgate daemon`: governs workloads that others start, for as long as their cgroups live.
//!
//! ```text
//! cgroups that match an agent ── close ── examine ── open ── serve ── (cgroup gone) release
//! ```
//!
//! A cgroup is closed before anything else is known of it: what fails the examination stays closed. When the daemon
//! dies, the pinned programs go on refusing; the next one finds them by the cgroup's id.

mod discover;
mod workload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::audit::Sink;
use crate::capture::{self, Attachment, BpfFs, CgroupRoot, Gate};
use crate::config::Config;
use crate::credentials::Vault;
use crate::doctor;
use crate::gateway::Gateway;
use crate::terminate::Authority;
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

/// How often the cgroups are looked at.
const RECONCILE_EVERY: Duration = Duration::from_millis(200);

/// Governs workloads until SIGTERM or SIGINT. What it governs stays closed when this returns.
///
/// # Errors
/// When it cannot start.
pub fn daemon(
    request: &Request,
    read_environment: &dyn Fn(&str) -> Option<std::ffi::OsString>,
) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("`tollgate daemon` loads kernel programs: run it as root");
    }
    nix::sys::prctl::set_dumpable(false)?;
    let config = Config::load(&request.config)?;
    let vault = Vault::load(&config.policy, read_environment).map_err(crate::run::all_sources)?;
    let audit = Sink::open_file(&config.gateway.audit)?;
    let authority = Authority::open(&config.gateway.state_dir)?;
    let gateway = Gateway::new(&config, vault, authority, audit.clone())?;
    let mut daemon = Daemon {
        cgroups: CgroupRoot::find()?,
        bpf: BpfFs::find_or_mount()?,
        kernel_log: capture::kernel_log_level(request.kernel_log),
        config,
        gateway,
        audit,
        gate: Gate::open(Attachment::default())?,
        accept_weak: request.accept_weak,
        workloads: BTreeMap::new(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(daemon.serve())
}

struct Daemon {
    config: Config,
    gateway: Gateway,
    audit: Sink,
    cgroups: CgroupRoot,
    bpf: BpfFs,
    kernel_log: u8,
    gate: Gate,
    accept_weak: bool,
    /// By cgroup id.
    workloads: BTreeMap<u64, Workload>,
}

impl Daemon {
    async fn serve(&mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut ticks = tokio::time::interval(RECONCILE_EVERY);
        let accept_weak = self.accept_weak;
        let mut kernel = tokio::task::spawn_blocking(move || doctor::at_start(accept_weak));
        // Workloads that a former daemon has governed do not wait for it: they are better off served than not, and
        // closed either way. Before there are any, nothing is touched on a kernel that does not hold.
        let mut is_checked = !self.bpf.has_governed();
        if is_checked {
            (&mut kernel).await??;
        }
        let ended = loop {
            tokio::select! {
                _ = ticks.tick() => self.reconcile(),
                checked = &mut kernel, if !is_checked => match checked? {
                    Ok(()) => is_checked = true,
                    refused => break refused,
                },
                () = received(&mut terminate) => break Ok(()),
                () = received(&mut interrupt) => break Ok(()),
            }
        };
        for workload in std::mem::take(&mut self.workloads).into_values() {
            workload.stop().await;
        }
        ended
    }

    /// Makes what is governed what is there.
    fn reconcile(&mut self) {
        let gone: Vec<u64> = self
            .workloads
            .iter()
            .filter(|(_, workload)| !workload.cgroup_is_there())
            .map(|(id, _)| *id)
            .collect();
        for workload in gone.into_iter().filter_map(|id| self.workloads.remove(&id)) {
            workload.release();
        }
        for found in discover::find(&self.cgroups, &self.config.policy) {
            if self.workloads.contains_key(&found.cgroup.id()) {
                continue;
            }
            match self.govern(found) {
                Ok(workload) => {
                    self.workloads.insert(workload.cgroup_id(), workload);
                }
                Err(error) => tracing::error!("a workload is not governed: {error:#}"),
            }
        }
    }
}

async fn received(signal: &mut Signal) {
    signal.recv().await;
}
