//! What `tollgate status` tells, as it goes over the socket and to whoever reads `--json`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::agent::ContainerNames;

/// The daemon and everything that it governs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The daemon's process.
    pub pid: u32,
    /// The slice, its gate, and what is nobody's in it.
    pub slice: serde_json::Value,
    /// The container engines that it asks.
    pub engines: Vec<EngineReport>,
    /// The workloads, in no particular order.
    pub workloads: Vec<WorkloadReport>,
}

/// One container engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    /// Where it is asked.
    pub socket: PathBuf,
    /// Whether it has answered when it was asked last; `None` before it was asked at all.
    pub answers: Option<bool>,
}

/// One container or cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadReport {
    /// Whose it is.
    pub agent: String,
    /// Whether the configuration has this agent. If not, everything is denied to the workload.
    pub is_known: bool,
    /// What people know it by.
    pub workload: String,
    /// What the engine says of it, where it is a container that was found through one.
    pub container: Option<ContainerNames>,
    /// Where its cgroup is, mount of the hierarchy included.
    pub cgroup: PathBuf,
    /// The kernel's id of the cgroup.
    pub cgroup_id: u64,
    /// How it came to be governed.
    pub way_in: WayIn,
    /// What is open to it.
    pub state: State,
    /// Why it is not served, where it is not.
    pub why: Option<String>,
    /// Its wires, while it is served.
    pub network: Option<NetworkReport>,
    /// Whether its clients trust the CA.
    pub trust: TrustReport,
    /// Its connections to the gateway.
    pub connections: Connections,
    /// What was refused to it, by the gateway and by the kernel.
    pub refusals: u64,
    /// Seconds since this daemon found it.
    pub governed_s: u64,
    /// For how many milliseconds at most it had the open net before it was closed, where that is known.
    pub open_ms: Option<u64>,
    /// Milliseconds from when this daemon found it until it was served; absent while it is not.
    pub armed_ms: Option<u64>,
}

/// How a workload came to be governed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WayIn {
    /// A label of the container, found through its engine.
    Label,
    /// The container's name, found through its engine.
    Name,
    /// The path of its cgroup.
    Cgroup,
    /// It was started below Tollgate's slice.
    Slice,
    /// It was started by Tollgate's OCI runtime.
    Runtime,
}

impl WayIn {
    /// What engines know Tollgate's OCI runtime by.
    pub const RUNTIME: &str = "tollgate";
}

/// What is open to a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The way to the gateway.
    Served,
    /// Nothing: the kernel refuses everything.
    Closed,
    /// Everything: the programs could not be attached.
    NotClosed,
}

/// What of a workload's network is not the gateway's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReport {
    /// Interfaces that are fenced. With none, the workload has loopback only.
    pub fenced: usize,
    /// Interfaces that cannot be fenced: while there is one, everything is refused.
    pub unfenceable: usize,
    /// Neighbours that its rules let it reach past the gateway.
    pub neighbours: Vec<String>,
    /// Its own ports that may be connected to.
    pub inbound: Vec<u16>,
}

/// Whether clients in a workload trust the CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum TrustReport {
    /// Nobody has looked: it is no container, or not looked at yet.
    Unknown,
    /// Every store that was found has the CA.
    Covered {
        /// How many there are.
        stores: usize,
    },
    /// Some clients do not.
    Incomplete {
        /// Which, and why.
        why: Vec<String>,
    },
}

/// Connections of a workload to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Open now.
    pub open: u64,
    /// Accepted so far.
    pub total: u64,
}
