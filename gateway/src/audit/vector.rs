//! The closed list of what the kernel programs refuse: one word per class, in the audit and for its reader.

use serde::Serialize;

/// Class of a refused attempt. A class says which program refused and why; what the workload tried is one of the
/// attempts that the class closes (SECURITY.md has the table).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Vector {
    /// Anything out of a network namespace that is not armed: one that the workload made itself.
    UnknownNamespace,
    /// A datagram to anywhere but DNS and the own loopback.
    Udp,
    /// A socket that is neither TCP nor UDP: raw, ping, UDP-Lite, SCTP, MPTCP and the like.
    SocketFamily,
    /// A connection to the gateway's own port.
    GatewayPortConnect,
    /// A socket bound to the gateway's port, to stand in for it.
    GatewayPortBind,
    /// A destination that the kernel had no memory to record.
    StorageExhausted,
    /// A connection of a socket that is bound to a device.
    DeviceBound,
    /// IPv6 where the gateway listens on IPv4 only.
    NoIpv6,
    /// A packet on its way out by a device other than `lo`.
    FenceEgress,
    /// A packet that came in by a device other than `lo`.
    FenceIngress,
    /// A frame of the workload's, stopped at the host's side of the wire.
    WireOut,
    /// A frame for the workload, stopped at the host's side of the wire.
    WireIn,
    /// A connection more than the table between kernel and gateway holds.
    FlowTableFull,
    /// More connections or DNS queries than the workload may make in this time.
    RateExceeded,
    /// A refusal that this version does not know.
    Unknown,
}

impl Vector {
    /// For people: what was refused.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::UnknownNamespace => "a network namespace that is not armed",
            Self::Udp => "UDP to anywhere but DNS",
            Self::SocketFamily => "a socket that is neither TCP nor UDP",
            Self::GatewayPortConnect => "the gateway's own port",
            Self::GatewayPortBind => "a socket bound to the gateway's port",
            Self::StorageExhausted => "the destination could not be recorded",
            Self::DeviceBound => "a socket bound to a device other than lo",
            Self::NoIpv6 => "IPv6 without an IPv6 listener",
            Self::FenceEgress => "a packet out by a device other than lo",
            Self::FenceIngress => "a packet in by a device other than lo",
            Self::WireOut => "a frame out by the wire",
            Self::WireIn => "a frame in by the wire",
            Self::FlowTableFull => "the table of connections is full",
            Self::RateExceeded => "too many connections or DNS queries in a short time",
            Self::Unknown => "unknown",
        }
    }
}
