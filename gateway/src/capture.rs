//! `Agent` → `Captured`: the kernel programs, their maps, and the listeners inside the workload's network namespace.
use std::net::{TcpListener, UdpSocket};
use crate::audit::Process;
use crate::net::{ClientAddr, OriginalDst};

/// What the kernel recorded of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Where the agent wanted to go.
    pub original_dst: OriginalDst,
    /// Who connected.
    pub process: Process,
    /// Cgroup of the connecting task: a cross-check, not an identity.
    pub cgroup_id: u64,
}

/// The narrow way from the privileged half to the connection path.
pub trait FlowTable: Send + Sync {
    /// Takes the record of the connection that came from `client`; a second look-up finds nothing.
    fn take(&self, client: ClientAddr) -> Option<Flow>;
}

/// Sockets inside a workload's network namespace: loopback only, bound to device `lo`, non-blocking.
#[derive(Debug)]
pub struct Listeners {
    /// One per address family.
    pub tcp: Vec<TcpListener>,
    /// One per address family, for DNS.
    pub udp: Vec<UdpSocket>,
}
