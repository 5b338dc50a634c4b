//! What one workload may take of the gateway that all workloads share.
//!
//! Everything that a workload can make the gateway hold has a share here, reckoned at the most that it can become, and
//! kept until it ends. Where there is no share left, the newest thing is refused at once: nothing waits while it holds
//! something. Another workload's shares are never touched.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::lane::Lane;
use crate::audit::Reason;

/// The shares of one workload.
pub(crate) struct Quota {
    connections: Shares,
    requests: Shares,
    upstream: Shares,
    /// In KiB.
    held: Shares,
    /// Rate limits that are being counted: the counters are one thread for all workloads. Further ones wait.
    pub(crate) charges: Semaphore,
    /// The workload's way to the processors.
    pub(crate) lane: Lane,
}

/// Of one kind, how many there are and how many are free.
struct Shares {
    kind: Exhausted,
    free: Arc<Semaphore>,
}

/// A part of the quota, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    permits: Vec<OwnedSemaphorePermit>,
}

/// A quota that is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this workload has its {limit} {what} already", what = self.what.words(), limit = self.limit)]
pub struct Exhausted {
    /// Of what.
    pub what: What,
    /// How many there may be.
    pub limit: usize,
}

/// What a quota is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Connections to the gateway at once.
    Connections,
    /// Requests in flight.
    Requests,
    /// Connections to upstreams at once, idle ones counted.
    UpstreamConnections,
    /// KiB that the gateway may have to hold.
    HeldKib,
    /// New certificates for names.
    Certificates,
}

impl What {
    /// The word in replies.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::UpstreamConnections => "upstream_connections",
            Self::HeldKib => "held_kib",
            Self::Certificates => "certificates",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Connections => "connections at once",
            Self::Requests => "requests at once",
            Self::UpstreamConnections => "connections to upstreams at once",
            Self::HeldKib => "KiB of what the gateway can hold for it",
            Self::Certificates => "new certificates in a short time",
        }
    }
}

impl Exhausted {
    /// The word for it in audit and replies.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        Reason::QuotaExceeded
    }
}

impl Quota {
    /// The shares of a workload that goes by `lane`, in a process that may open `open_files` files.
    pub(crate) fn new(lane: Lane, open_files: usize) -> Self {
        let connections = CONNECTIONS_MAX.min(open_files / FILES_PER_CONNECTION).max(1);
        let upstream = UPSTREAM_CONNECTIONS_MAX.min(open_files / FILES_PER_UPSTREAM).max(1);
        Self {
            connections: Shares::new(What::Connections, connections),
            requests: Shares::new(What::Requests, REQUESTS_MAX),
            upstream: Shares::new(What::UpstreamConnections, upstream),
            held: Shares::new(What::HeldKib, HELD_KIB_MAX),
            charges: Semaphore::new(CHARGES_MAX),
            lane,
        }
    }

    /// For a connection of the agent, before anything of it is read.
    pub(crate) fn connection(&self) -> Result<Share, Exhausted> {
        Ok(Share::new([self.connections.take(1)?]))
    }

    /// For what stands inside a connection that has its share: a tunnel, whose contents are read like a connection.
    pub(crate) fn tunnel(&self) -> Result<Share, Exhausted> {
        Ok(Share::new([self.held.take(CONNECTION_KIB)?]))
    }

    /// For a connection that turned out to carry HTTP/2, besides its own.
    pub(crate) fn http2(&self) -> Result<Share, Exhausted> {
        Ok(Share::new([self.held.take(HTTP2_KIB)?]))
    }

    /// For a well-formed request, until its answer has ended.
    pub(crate) fn request(&self) -> Result<Share, Exhausted> {
        Ok(Share::new([self.requests.take(1)?, self.held.take(REQUEST_KIB)?]))
    }

    /// For a connection to an upstream, idle ones counted.
    pub(crate) fn upstream(&self) -> Result<Share, Exhausted> {
        Ok(Share::new([self.upstream.take(1)?, self.held.take(UPSTREAM_KIB)?]))
    }

    /// Whether idle connections to upstreams had better give their shares back.
    pub(crate) fn upstream_is_scarce(&self) -> bool {
        self.upstream.are_scarce() || self.held.are_scarce()
    }

    /// For an upstream that speaks HTTP/2, besides its connection's own.
    pub(crate) fn upstream_http2(&self) -> Result<Share, Exhausted> {
        Ok(Share::new([self.held.take(UPSTREAM_HTTP2_KIB)?]))
    }

    /// Takes all shares of one kind but `left`, for tests.
    #[cfg(test)]
    pub(crate) fn leave(&self, what: What, left: usize) -> Share {
        let shares = match what {
            What::Connections => &self.connections,
            What::Requests => &self.requests,
            What::UpstreamConnections => &self.upstream,
            What::HeldKib | What::Certificates => &self.held,
        };
        Share { permits: vec![shares.take(shares.kind.limit - left).unwrap()] }
    }
}

impl Shares {
    fn new(what: What, limit: usize) -> Self {
        Self { kind: Exhausted { what, limit }, free: Arc::new(Semaphore::new(limit)) }
    }

    /// Less than a quarter is left.
    fn are_scarce(&self) -> bool {
        self.free.available_permits() < self.kind.limit.div_ceil(4)
    }

    fn take(&self, count: usize) -> Result<OwnedSemaphorePermit, Exhausted> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // Nobody closes the semaphore: the only error is that there is too little left.
        Arc::clone(&self.free).try_acquire_many_owned(count).map_err(|_too_few| self.kind)
    }
}

impl Share {
    fn new(permits: impl Into<Vec<OwnedSemaphorePermit>>) -> Self {
        Self { permits: permits.into() }
    }

    /// Both in one.
    pub(crate) fn join(&mut self, other: Self) {
        self.permits.extend(other.permits);
    }
}

/// How many files this process may open.
pub(crate) fn open_files() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _hard)| soft);
    usize::try_from(soft).unwrap_or(usize::MAX)
}

/// Connections of one workload at once: several times what a browser or a crawler has.
/// Each may hold [`CONNECTION_KIB`], 192 MiB together, so that a connection is not refused for what others hold.
const CONNECTIONS_MAX: usize = 1024;
/// Requests of one workload at once.
const REQUESTS_MAX: usize = 1024;
/// Connections to upstreams of one workload at once, idle ones counted; those are closed first.
const UPSTREAM_CONNECTIONS_MAX: usize = 1024;
/// Where files are scarce, one workload's connections get an eighth of them, and those to upstreams a sixteenth.
const FILES_PER_CONNECTION: usize = 8;
const FILES_PER_UPSTREAM: usize = 16;
/// 384 MiB besides: more than 400 requests at once, each with a connection to an upstream of its own and all buffers
/// full, and as many as there may be where HTTP/2 shares those.
const HELD_KIB_MAX: usize = 384 * 1024;
/// First bytes of at most 64 KiB twice (read, and in the TLS library), later a head of 128 KiB; records of TLS.
const CONNECTION_KIB: usize = 128 + 64;
/// The window of the connection, and 4 KiB for each of its streams that was refused and whose answer is not read.
const HTTP2_KIB: usize = 1024 + 250 * 4;
/// A head of 128 KiB, and an answer's head or what is under way of its body, of at most 256 KiB.
const REQUEST_KIB: usize = 128 + 256;
/// What is read of an upstream and not passed on yet, and what is still to be written to it.
const UPSTREAM_KIB: usize = 256 + 256;
/// The window of the connection.
const UPSTREAM_HTTP2_KIB: usize = 2048;
/// As many as share one transaction.
const CHARGES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(open_files: usize) -> Quota {
        Quota::new(Lane::new(1), open_files)
    }

    fn count(mut take: impl FnMut() -> Result<Share, Exhausted>) -> (usize, Exhausted) {
        let mut shares = Vec::new();
        loop {
            match take() {
                Ok(share) => shares.push(share),
                Err(exhausted) => return (shares.len(), exhausted),
            }
        }
    }

    #[test]
    fn what_one_workload_holds_ends_at_its_own_limits() {
        let quota = quota(1_000_000);
        let (connections, exhausted) = count(|| quota.connection());
        assert_eq!((connections, exhausted.what), (CONNECTIONS_MAX, What::Connections));
        let (requests, exhausted) = count(|| quota.request());
        assert_eq!((requests, exhausted.what), (REQUESTS_MAX, What::Requests));
        // Each kind by itself, and all of them by the bytes that they may become.
        let (http2, exhausted) = count(|| quota.http2());
        assert_eq!((http2, exhausted.what), (HELD_KIB_MAX / HTTP2_KIB, What::HeldKib));
        assert!(quota.http2().is_ok(), "what was given back is there again");
    }

    #[test]
    fn a_refused_share_keeps_nothing_of_what_it_got_before() {
        let quota = quota(1_000_000);
        let most = quota.leave(What::HeldKib, REQUEST_KIB - 1);
        for _ in 0..2 * REQUESTS_MAX {
            assert_eq!(quota.request().unwrap_err().what, What::HeldKib);
        }
        drop(most);
        assert_eq!(count(|| quota.request()).0, REQUESTS_MAX);
    }

    #[test]
    fn a_workload_leaves_most_files_to_the_others_and_gets_one_of_each_at_least() {
        for (open_files, connections, upstream) in
            [(0, 1, 1), (1024, 128, 64), (20_000, 1024, 1024)]
        {
            let quota = quota(open_files);
            assert_eq!(count(|| quota.connection()).0, connections);
            let fit = upstream.min(HELD_KIB_MAX / UPSTREAM_KIB);
            assert_eq!(count(|| quota.upstream()).0, fit);
        }
    }
}
