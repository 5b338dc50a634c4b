//! One audit record: what is written about a request, a connection, a query or a refusal of the kernel.

use std::sync::Arc;

use serde::Serialize;

use super::{Reason, Vector};
use crate::agent::{Agent, ContainerNames};

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One HTTP request (one HTTP/2 stream).
    Request,
    /// A connection that ended without a request.
    Connection,
    /// One DNS query.
    Dns,
    /// A socket, datagram or connection that the kernel programs refused.
    Kernel,
    /// Something that the operator did.
    Operator,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It went on.
    Allow,
    /// It was refused, or could not be carried out.
    Block,
}

/// The process behind a socket, as the kernel knew it when the socket connected. All of it is what the workload
/// says of itself: useful to a reader, no proof.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Thread group id in the initial PID namespace.
    pub pid: u32,
    /// `comm`: at most 15 bytes, chosen by the process.
    pub comm: String,
    /// Path of the executable, where `/proc` still had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
}

/// What rules in shadow would have made of a request, where that is something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WouldHave {
    /// What would have been decided.
    pub decision: Decision,
    /// Why.
    pub reason: Reason,
    /// The rule in shadow.
    pub rule: String,
}

/// One line of the audit log. Every text in it that came from the agent is bounded by its reader.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// RFC 3339 time in UTC with microseconds, set when it is written.
    pub ts: String,
    /// What it is about.
    pub kind: Kind,
    /// Unique among the records of one state directory.
    pub id: String,
    /// The agent's name.
    pub agent: String,
    /// The workload's name.
    pub workload: String,
    /// What the engine calls the container that the workload is.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shared")]
    pub container: Option<Arc<ContainerNames>>,
    /// The process that opened the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// `http`, `https`, `tcp`, `udp`; of what the kernel refused, the protocol's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<&'static str>,
    /// Request method, or query type for DNS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Canonical host, or the address where there is no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// TCP or UDP port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The path as it was sent on, never the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Status that the agent got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What was decided.
    pub decision: Decision,
    /// Why.
    pub reason: Reason,
    /// Which way out the kernel closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vector: Option<Vector>,
    /// How many refusals this record stands for, where they were too many for one each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Cgroup of the task or socket, as the kernel numbers it: the workload's or one below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<u64>,
    /// Index of the device: in the workload's network namespace, on the wire in the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<u32>,
    /// More about the reason, for people; never a secret, never a body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What rules in shadow would have made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would_have: Option<WouldHave>,
    /// The credential that was injected, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The address that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Body bytes from the agent to the upstream.
    pub bytes_up: u64,
    /// Body bytes from the upstream to the agent.
    pub bytes_down: u64,
    /// From the first byte of the head to the last byte of the answer, in milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub ms_total: f64,
    /// The part of it that the gateway itself took, in milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub ms_gateway: f64,
}

fn shared<S: serde::Serializer>(
    names: &Option<Arc<ContainerNames>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    names.as_deref().serialize(serializer)
}

/// Microseconds are as fine as these clocks mean it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn milliseconds<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value * 1000.0).round() / 1000.0)
}

impl Record {
    /// A record about `agent` that says `Block` until something else is decided. `ts` and `id` are set by the sink.
    #[must_use]
    pub fn new(kind: Kind, agent: &Arc<Agent>, reason: Reason) -> Self {
        Self {
            ts: String::new(),
            kind,
            id: String::new(),
            agent: agent.name.to_string(),
            workload: agent.workload.clone(),
            container: agent.container.clone(),
            process: None,
            scheme: None,
            method: None,
            host: None,
            port: None,
            path: None,
            status: None,
            decision: Decision::Block,
            reason,
            vector: None,
            count: None,
            cgroup: None,
            device: None,
            detail: None,
            rule: None,
            would_have: None,
            credential: None,
            upstream: None,
            bytes_up: 0,
            bytes_down: 0,
            ms_total: 0.0,
            ms_gateway: 0.0,
        }
    }
}
