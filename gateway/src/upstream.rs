//! `AuthorizedRequest` → response: resolves, checks the address, dials, verifies, pools.
//!
//! No socket to the outside is opened anywhere else, and none without a [`Permit`].

mod address;
mod dial;
mod error;
mod pool;
mod relay;
pub mod resolve;
mod trust;

pub use address::is_refused_address;
pub use error::UpstreamError;
pub use trust::RootsError;

use std::sync::Arc;

use http::{Request, Response};

use crate::config;
use crate::gateway::quota::Quota;
use crate::http::Body;
use crate::net::UpstreamAddr;
use crate::policy::Permit;
use dial::Dialer;
use pool::{Pool, Trust};
use resolve::Resolver;

/// The way to the outside that all workloads share.
pub struct Upstreams {
    dialer: Dialer,
}

/// One workload's way to the outside, with the connections that are kept open for it.
pub struct Upstream {
    pool: Pool,
}

/// Which HTTP is spoken with the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// HTTP/2 or HTTP/1.1 as TLS negotiates; HTTP/1.1 where there is no TLS.
    Negotiated,
    /// HTTP/1.1 only: for a request that asks for an upgrade.
    Http1,
    /// HTTP/2 with prior knowledge over a plain connection, where the agent speaks it so.
    Http2,
}

impl Upstreams {
    /// Reads the roots.
    ///
    /// # Errors
    /// When one of the configured root files cannot be read or has no certificate.
    pub fn new(config: &config::Upstream, resolver: Resolver) -> Result<Self, RootsError> {
        let tls = trust::Tls::load(&config.ca_files)?;
        Ok(Self { dialer: Dialer::new(resolver, tls) })
    }

    /// The way of one workload, with an empty pool.
    pub(crate) fn of_workload(&self, quota: &Arc<Quota>) -> Upstream {
        Upstream { pool: Pool::new(self.dialer.clone(), Arc::clone(quota)) }
    }
}

impl Upstream {
    /// Sends `request`, whose URI names the permitted destination, and waits for the head of the response.
    ///
    /// # Errors
    /// When there is no address to dial, no verified connection, or no well-formed response in time.
    pub async fn send(
        &self,
        permit: &Permit,
        request: Request<Body>,
        dialect: Dialect,
    ) -> Result<(Response<Body>, UpstreamAddr), UpstreamError> {
        let trust =
            Trust { agent: permit.agent().clone(), allow_private: permit.allow_private(), dialect };
        relay::relay(&self.pool.client(&trust), &permit.destination().host, request).await
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
