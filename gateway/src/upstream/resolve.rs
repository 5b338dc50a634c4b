//! Names → addresses, by the gateway's own resolution: what is dialled never comes from the agent.
//!
//! Fixed addresses of the configuration first, then the configured DNS servers, else the host's own. Names are
//! absolute: no search domain is ever applied. The host's `/etc/hosts` is not read: what may be reached stands in the
//! configuration. That an address may be dialled at all is not decided here.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::read_system_conf;

use crate::config;
use crate::net::HostName;

/// Resolves names; clones share connections and cache.
#[derive(Clone)]
pub struct Resolver {
    /// Names with fixed addresses: they need no server and are never asked of one.
    hosts: Arc<HashMap<HostName, Vec<IpAddr>>>,
    servers: TokioResolver,
}

/// Why a name has no address. The first two are answers; the others say nothing about the name.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// The name does not exist (NXDOMAIN).
    #[error("there is no such name")]
    NotFound,
    /// The name exists and has nothing of the kind asked for (NODATA).
    #[error("the name has no such record")]
    NoData,
    /// No server gave an answer that can be used: SERVFAIL, REFUSED, a time-out, no server at all.
    #[error("`{host}` could not be resolved")]
    Failed {
        /// The name.
        host: HostName,
        /// What went wrong with the last server.
        #[source]
        source: NetError,
    },
    /// The resolver itself cannot be made.
    #[error("the resolver cannot be set up from [upstream] resolvers or the host's resolv.conf")]
    Setup {
        /// What went wrong.
        #[source]
        source: NetError,
    },
}

// === impl Resolver ===

impl Resolver {
    /// A resolver for `config`. A host without a usable resolv.conf gets one that answers the fixed names and fails
    /// for all others.
    ///
    /// # Errors
    /// When the DNS client cannot be set up.
    pub fn new(config: &config::Upstream) -> Result<Self, ResolveError> {
        let mut hosts: HashMap<HostName, Vec<IpAddr>> = HashMap::new();
        for name in HOST_LOOPBACK_NAMES.iter().filter_map(|name| HostName::parse(name).ok()) {
            hosts.insert(name, vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        }
        // The configuration wins over the names above.
        hosts.extend(config.hosts.iter().cloned());
        let name_servers = if config.resolvers.is_empty() {
            host_name_servers()
        } else {
            config.resolvers.iter().copied().map(name_server).collect()
        };
        let client_config = ResolverConfig::from_parts(None, Vec::new(), name_servers);
        let servers =
            TokioResolver::builder_with_config(client_config, TokioRuntimeProvider::default())
                .with_options(options())
                .build()
                .map_err(|source| ResolveError::Setup { source })?;
        Ok(Self { hosts: Arc::new(hosts), servers })
    }

    /// Every address of `host`, IPv4 first; never an empty list. Both families are asked for side by side, and one
    /// is enough.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`] or [`ResolveError::NoData`] when the servers say so, else [`ResolveError::Failed`].
    pub async fn lookup(&self, host: &HostName) -> Result<Vec<IpAddr>, ResolveError> {
        if let Some(addresses) = self.hosts.get(host) {
            return if addresses.is_empty() {
                Err(ResolveError::NoData)
            } else {
                Ok(addresses.clone())
            };
        }
        let (v4, v6) =
            tokio::join!(self.ask(host, RecordType::A), self.ask(host, RecordType::AAAA));
        match (v4.map(|found| addresses_in(&found)), v6.map(|found| addresses_in(&found))) {
            (Ok(v4), Ok(v6)) => some_of(v4.into_iter().chain(v6)),
            (Ok(addresses), Err(error)) | (Err(error), Ok(addresses)) => {
                if addresses.is_empty() {
                    Err(error)
                } else {
                    some_of(addresses)
                }
            }
            (Err(v4), Err(v6)) => Err(the_more_telling(v4, v6)),
        }
    }

    /// The records of one type of `host`, with the aliases that led to them; never an empty list.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub async fn lookup_records(
        &self,
        host: &HostName,
        record_type: RecordType,
    ) -> Result<Vec<Record>, ResolveError> {
        if self.hosts.contains_key(host) {
            // The configuration says all there is about these names.
            return Err(ResolveError::NoData);
        }
        let found = self.ask(host, record_type).await?;
        if found.answers().is_empty() {
            return Err(ResolveError::NoData);
        }
        Ok(found.answers().to_vec())
    }

    async fn ask(&self, host: &HostName, record_type: RecordType) -> Result<Lookup, ResolveError> {
        let failed = |source| ResolveError::Failed { host: host.clone(), source };
        let mut name =
            Name::from_ascii(host.as_str()).map_err(|error| failed(NetError::from(error)))?;
        name.set_fqdn(true);
        let answer = tokio::time::timeout(LOOKUP_DEADLINE, self.servers.lookup(name, record_type));
        match answer.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => match none.response_code {
                ResponseCode::NXDomain => Err(ResolveError::NotFound),
                ResponseCode::NoError => Err(ResolveError::NoData),
                _ => Err(failed(NetError::Dns(DnsError::NoRecordsFound(none)))),
            },
            Ok(Err(source)) => Err(failed(source)),
            Err(_elapsed) => Err(failed(NetError::Timeout)),
        }
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

// === private ===

/// Names by which container engines call the host; to the gateway they mean its own loopback, which only a rule with
/// `allow_private` opens.
const HOST_LOOPBACK_NAMES: [&str; 2] = ["host.docker.internal", "host.containers.internal"];

/// Wait for one server's answer to one packet, so that a lost packet is repeated within [`LOOKUP_DEADLINE`].
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// Repetitions after the first failed attempt.
const RETRIES: usize = 1;

/// The whole of one lookup, aliases and repetitions included: C libraries give up after 5 s, and the agent is to see
/// our SERVFAIL rather than its own time-out.
const LOOKUP_DEADLINE: Duration = Duration::from_millis(4500);

/// Answers kept, over all agents. Entries hold at most some kilobytes.
const CACHE_ENTRIES_MAX: u64 = 4096;

/// Queries at once over one TCP connection to a server; the agents share it, so that one agent's slow names must not
/// take all of them.
const TCP_QUERIES_MAX: usize = 512;

/// Longest time that an answer is kept whatever its TTL says, so that a mistake in a zone does not stay for days.
const CACHED_TTL_MAX: Duration = Duration::from_secs(3600);

/// Longest time that the absence of a name is kept.
const CACHED_ABSENCE_MAX: Duration = Duration::from_secs(60);

/// Most addresses taken from one answer: more than any dialler tries.
const ADDRESSES_MAX: usize = 32;

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = ATTEMPT_TIMEOUT;
    options.attempts = RETRIES;
    options.max_active_requests = TCP_QUERIES_MAX;
    options.cache_size = CACHE_ENTRIES_MAX;
    options.positive_max_ttl = Some(CACHED_TTL_MAX);
    options.negative_max_ttl = Some(CACHED_ABSENCE_MAX);
    options.use_hosts_file = ResolveHosts::Never;
    options.try_tcp_on_error = true;
    options
}

/// The servers of the host's resolv.conf; its search domains and options are left out on purpose.
fn host_name_servers() -> Vec<NameServerConfig> {
    match read_system_conf() {
        Ok((config, _options)) => config.name_servers,
        Err(error) => {
            tracing::warn!(%error, "no DNS server: the host's resolv.conf names none and [upstream] resolvers is empty");
            Vec::new()
        }
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut udp = ConnectionConfig::udp();
    udp.port = address.port();
    let mut tcp = ConnectionConfig::tcp();
    tcp.port = address.port();
    NameServerConfig::new(address.ip(), true, vec![udp, tcp])
}

fn addresses_in(found: &Lookup) -> Vec<IpAddr> {
    let address = |record: &Record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    found.answers().iter().filter_map(address).take(ADDRESSES_MAX).collect()
}

fn some_of(addresses: impl IntoIterator<Item = IpAddr>) -> Result<Vec<IpAddr>, ResolveError> {
    let addresses: Vec<IpAddr> = addresses.into_iter().collect();
    if addresses.is_empty() { Err(ResolveError::NoData) } else { Ok(addresses) }
}

/// Of the two families' errors the one that says most: absence of the name concerns both; a failure leaves open
/// whether there is an address, so that it outweighs the other family's NODATA.
fn the_more_telling(v4: ResolveError, v6: ResolveError) -> ResolveError {
    match (v4, v6) {
        (ResolveError::NotFound, _) | (_, ResolveError::NotFound) => ResolveError::NotFound,
        (ResolveError::NoData, other) | (other, _) => other,
    }
}
