//! The unprivileged half: builds the stages that parse hostile bytes, and serves workloads with them.

pub(crate) mod lane;
pub(crate) mod quota;
mod serving;

pub use quota::{Exhausted, What};
pub use serving::Serving;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept;
use crate::agent::Agent;
use crate::audit::Sink;
use crate::capture::{FlowTable, Listeners};
use crate::config::{Config, DeniedName};
use crate::credentials::Vault;
use crate::dns::{Search, Server, SyntheticPool};
use crate::net::Host;
use crate::policy::Policy;
use crate::state::{Limits, StateError};
use crate::terminate::{Authority, Terminator};
use crate::upstream::resolve::{ResolveError, Resolver};
use crate::upstream::{RootsError, Upstream, Upstreams};
use lane::Lane;
use quota::Quota;

/// What all workloads share.
pub struct Gateway {
    /// For DNS, which needs no secrets.
    policy: Arc<ArcSwap<Policy>>,
    rules: Arc<ArcSwap<Rules>>,
    denied: DeniedName,
    resolver: Resolver,
    limits: Limits,
    upstreams: Upstreams,
    authority: Arc<ArcSwap<Authority>>,
    audit: Sink,
}

/// A policy and the credentials that belong to it: always exchanged together, so that no permit of one policy
/// meets the secrets of another.
pub(crate) struct Rules {
    pub(crate) policy: Arc<Policy>,
    pub(crate) vault: Vault,
}

/// What the requests of one workload need.
pub(crate) struct Stages {
    pub(crate) agent: Arc<Agent>,
    pub(crate) rules: Arc<ArcSwap<Rules>>,
    pub(crate) limits: Limits,
    pub(crate) upstream: Upstream,
    pub(crate) terminator: Terminator,
    pub(crate) names: Arc<SyntheticPool>,
    pub(crate) audit: Sink,
    pub(crate) quota: Arc<Quota>,
    pub(crate) lifecycle: Lifecycle,
}

/// How the tasks of one workload learn that they shall end.
#[derive(Clone, Default)]
pub(crate) struct Lifecycle {
    /// No new connections; what is in flight goes on.
    pub(crate) draining: CancellationToken,
    /// Nothing goes on.
    pub(crate) killed: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// The gateway cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The roots that upstreams are verified with cannot be read.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The resolver cannot be set up.
    #[error("the resolver cannot be set up")]
    Resolver(#[source] ResolveError),
    /// The counters cannot be opened.
    #[error("the counters of rate limits cannot be opened")]
    State(#[source] StateError),
}

/// A runtime that serves workloads.
///
/// # Errors
/// When the system has no room for its threads.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        // Workers that one workload keeps busy see what comes for another one after so many of its turns.
        .event_interval(TURNS_PER_LOOK)
        .enable_all()
        .build()
}

/// Looking costs a system call; a turn is some tens to some hundred microseconds.
const TURNS_PER_LOOK: u32 = 8;

impl Stages {
    /// The host that a connection to `address` means: the name that the address stands for, or itself.
    pub(crate) fn host_at(&self, address: IpAddr) -> Host {
        let address = address.to_canonical();
        match self.names.name_of(address) {
            Some(name) => Host::Name(name),
            None => Host::from_ip(address),
        }
    }
}

impl Gateway {
    /// Builds the stages.
    ///
    /// # Errors
    /// When roots, resolver or counters cannot be set up.
    pub fn new(
        config: &Config,
        vault: Vault,
        authority: Authority,
        audit: Sink,
    ) -> Result<Self, GatewayError> {
        let resolver = Resolver::new(&config.upstream).map_err(GatewayError::Resolver)?;
        let upstreams = Upstreams::new(&config.upstream, resolver.clone())?;
        let limits = Limits::open(&config.gateway.state_dir).map_err(GatewayError::State)?;
        let rules = Rules { policy: Arc::clone(&config.policy), vault };
        Ok(Self {
            policy: Arc::new(ArcSwap::new(Arc::clone(&config.policy))),
            rules: Arc::new(ArcSwap::from_pointee(rules)),
            denied: config.dns.denied,
            resolver,
            limits,
            upstreams,
            authority: Arc::new(ArcSwap::from_pointee(authority)),
            audit,
        })
    }

    /// Replaces policy and credentials. Requests that come from now on are governed by them, on open connections
    /// too.
    pub fn reload(&self, policy: Arc<Policy>, vault: Vault) {
        self.rules.store(Arc::new(Rules { policy: Arc::clone(&policy), vault }));
        self.policy.store(policy);
    }

    /// The CA that signs.
    #[must_use]
    pub fn authority(&self) -> Arc<Authority> {
        self.authority.load_full()
    }

    /// Lets another CA sign. Handshakes that begin from now on present its certificates.
    pub fn replace_authority(&self, authority: Authority) {
        self.authority.store(Arc::new(authority));
    }

    /// Serves one workload on `listeners` until it is stopped; `search` is what its resolver appends to names. Must be
    /// called inside a tokio runtime.
    ///
    /// # Errors
    /// When the runtime does not take one of the sockets.
    pub fn serve(
        &self,
        agent: Arc<Agent>,
        listeners: Listeners,
        flows: Arc<dyn FlowTable>,
        search: &Search,
    ) -> std::io::Result<Serving> {
        let names = Arc::new(SyntheticPool::new());
        let lifecycle = Lifecycle::default();
        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        let quota = Arc::new(Quota::new(Lane::new(workers), quota::open_files()));
        let audit = self.audit.metered(&agent);
        let dns = Server::new(
            Arc::clone(&agent),
            Arc::clone(&self.policy),
            self.denied,
            self.resolver.clone(),
            Arc::clone(&names),
            audit.clone(),
        );
        let dns = Arc::new(dns.with_search(search).with_ipv6(listeners.reachable_over_ipv6()));
        let stages = Arc::new(Stages {
            agent,
            rules: Arc::clone(&self.rules),
            limits: self.limits.clone(),
            upstream: self.upstreams.of_workload(&quota),
            terminator: Terminator::new(Arc::clone(&self.authority)),
            names,
            audit,
            quota,
            lifecycle: lifecycle.clone(),
        });
        accept::start(&stages, &dns, listeners, flows)?;
        Ok(Serving::new(lifecycle))
    }
}

#[cfg(test)]
mod tests;
