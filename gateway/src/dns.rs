//! query → answer: names for the agent without a packet leaving.
//!
//! A name is answered with a synthetic address that stands for it ([`SyntheticPool`]); the gateway resolves the name
//! itself when it dials. A name that policy permits is looked up for real first, so that what does not exist does not
//! exist for the agent either. A name that policy denies is never sent anywhere: a query is a way out for data.
//!
//! Not here: no decision about requests, no neighbours' names (single labels do not exist), no zone transfers, no
//! DNSSEC answers of our own.

mod decide;
pub mod message;
mod search;
mod serve;
mod synthetic;
#[cfg(test)]
mod tests;

pub use message::Transport;
pub use search::Search;
pub use synthetic::SyntheticPool;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use tokio::sync::Semaphore;

use self::message::{Envelope, Parsed, Query};
use crate::agent::{Agent, AgentName};
use crate::audit::{Decision, Kind, Open, Reason, Sink};
use crate::bucket::Bucket;
use crate::config::DeniedName;
use crate::net::HostName;
use crate::policy::{NameVerdict, Policy, decide_name};
use crate::upstream::resolve::Resolver;

/// Answers the queries of one workload.
pub struct Server {
    agent: Arc<Agent>,
    gate: Box<dyn NameGate>,
    denied: DeniedName,
    resolver: Resolver,
    pool: Arc<SyntheticPool>,
    audit: Sink,
    /// Names at or below these are never invented: the stub resolver appends them to names that it could not resolve.
    search: Vec<HostName>,
    /// Whether the workload can connect over IPv6, now.
    has_ipv6: Box<dyn Fn() -> bool + Send + Sync>,
    /// Queries that are still free to ask.
    queries: Bucket,
    /// Records about queries over the limit that are still free to write.
    notices: Bucket,
    /// Queries over the limit since the last such record.
    unnoticed: AtomicU64,
    /// One permit per query that is being answered.
    in_flight: Arc<Semaphore>,
    /// One permit per TCP connection.
    connections: Arc<Semaphore>,
}

/// Says which names exist for the agent. The only thing that this module knows of policy.
pub(crate) trait NameGate: Send + Sync {
    /// Whether any request to `host` could be permitted, as of now.
    fn permits(&self, host: &HostName) -> bool;
}

/// The gate of the policy in force: read anew for every query, so that a reload counts at once.
struct PolicyGate {
    policy: Arc<ArcSwap<Policy>>,
    agent: AgentName,
}

impl NameGate for PolicyGate {
    fn permits(&self, host: &HostName) -> bool {
        match decide_name(&self.policy.load(), &self.agent, host, SystemTime::now()) {
            NameVerdict::Permitted => true,
            NameVerdict::Denied => false,
        }
    }
}

// === impl Server ===

impl Server {
    /// A server for `agent`.
    #[must_use]
    pub fn new(
        agent: Arc<Agent>,
        policy: Arc<ArcSwap<Policy>>,
        denied: DeniedName,
        resolver: Resolver,
        pool: Arc<SyntheticPool>,
        audit: Sink,
    ) -> Self {
        let gate = Box::new(PolicyGate { policy, agent: agent.name.clone() });
        Self::with_gate(agent, gate, denied, resolver, pool, audit)
    }

    /// As [`Self::new`], with something else in the place of policy.
    pub(crate) fn with_gate(
        agent: Arc<Agent>,
        gate: Box<dyn NameGate>,
        denied: DeniedName,
        resolver: Resolver,
        pool: Arc<SyntheticPool>,
        audit: Sink,
    ) -> Self {
        Self {
            agent,
            gate,
            denied,
            resolver,
            pool,
            audit,
            has_ipv6: Box::new(|| true),
            search: Vec::new(),
            queries: Bucket::new(QUERY_INTERVAL, QUERY_BURST),
            notices: Bucket::new(NOTICE_INTERVAL, 1),
            unnoticed: AtomicU64::new(0),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            connections: Arc::new(Semaphore::new(TCP_CONNECTIONS_MAX)),
        }
    }

    /// Names at or below the domains of `search` are answered only when policy permits them and they exist: those
    /// domains are what the workload's resolver appends.
    #[must_use]
    pub fn with_search(mut self, search: &Search) -> Self {
        self.search = search.domains().to_vec();
        self
    }

    /// Whether the workload can connect over IPv6, as the gateway's listeners are the only place that it can connect to.
    /// Where it cannot, names have no addresses of that family.
    #[must_use]
    pub fn with_ipv6(mut self, has_ipv6: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.has_ipv6 = Box::new(has_ipv6);
        self
    }

    /// Answers one message; `None` where silence is the answer. Writes one audit record per query.
    pub async fn answer(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let parsed = message::parse(message);
        let envelope = match &parsed {
            Parsed::Query(query) => &query.envelope,
            Parsed::Refuse(refusal) => &refusal.envelope,
            Parsed::Ignore => return None,
        };
        if !self.queries.take(Instant::now()) {
            return self.overload(envelope, transport);
        }
        match parsed {
            Parsed::Query(query) => self.answer_query(&query, transport).await,
            Parsed::Refuse(refusal) => {
                let mut record = self.open_record(&refusal.envelope, transport);
                record.detail = Some(refusal.detail.to_owned());
                refusal.envelope.reply(refusal.code, Vec::new(), transport)
            }
            Parsed::Ignore => None,
        }
    }

    async fn answer_query(&self, query: &Query, transport: Transport) -> Option<Vec<u8>> {
        let mut record = self.open_record(&query.envelope, transport);
        let outcome = self.decide(&query.question).await;
        record.reason = outcome.reason;
        record.decision = outcome.decision;
        record.detail = outcome.detail;
        record.ms_gateway =
            (record.elapsed_ms() - outcome.upstream.as_secs_f64() * 1000.0).max(0.0);
        query.envelope.reply(outcome.code, outcome.records, transport)
    }

    /// Refuses a query for which there is no room. Such queries share one record a second, since an agent can ask far
    /// faster than a disk writes.
    fn overload(&self, envelope: &Envelope, transport: Transport) -> Option<Vec<u8>> {
        self.unnoticed.fetch_add(1, Ordering::Relaxed);
        if self.notices.take(Instant::now()) {
            self.notice(self.open_record(envelope, transport), "this one the last of them");
        }
        envelope.reply(ResponseCode::Refused, Vec::new(), transport)
    }

    /// Writes how many queries were refused since the last such record; nothing when there were none.
    fn notice(&self, mut record: Open, which: &str) {
        match self.unnoticed.swap(0, Ordering::Relaxed) {
            0 => record.discard(),
            count => {
                record.reason = Reason::RateLimited;
                record.count = Some(count);
                record.detail = Some(format!("{count} queries refused, {which}"));
            }
        }
    }

    /// A record that says "refused" until something else is decided.
    fn open_record(&self, envelope: &Envelope, transport: Transport) -> Open {
        let mut record = self.open_bare_record();
        record.scheme = Some(match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        });
        record.method = envelope.question().map(message::Question::type_name);
        record.host = envelope.question().map(message::Question::text);
        record
    }

    /// The same about no query in particular.
    fn open_bare_record(&self) -> Open {
        let mut record = self.audit.open(Kind::Dns, &self.agent, Reason::DnsRefused);
        record.decision = Decision::Block;
        record.port = Some(DNS_PORT);
        record
    }
}

impl Drop for Server {
    /// The end of a flood stands in the log too.
    fn drop(&mut self) {
        self.notice(self.open_bare_record(), "the last before the workload's end");
    }
}

// === limits ===

/// One query every 5 ms, 200 a second: far more than programs ask, far less than would pay as a flood of the upstream
/// servers or the audit log.
const QUERY_INTERVAL: Duration = Duration::from_millis(5);

/// Queries at once: a package manager or browser at its start.
const QUERY_BURST: u32 = 500;

/// Records about refused floods.
const NOTICE_INTERVAL: Duration = Duration::from_secs(1);

/// Queries that are being answered at once, per workload: a further datagram is refused, a further query over TCP waits.
const IN_FLIGHT_MAX: usize = 128;

/// TCP connections for DNS at once, per workload.
const TCP_CONNECTIONS_MAX: usize = 32;

/// Where agents send queries to.
const DNS_PORT: u16 = 53;
