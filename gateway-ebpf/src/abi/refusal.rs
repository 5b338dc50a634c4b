//! Refusals: what the kernel programs tell of them, and what they only count.

use super::{Abi, Address};

/// Name of the ring buffer of [`Refusal`] events.
pub const REFUSALS: &str = "REFUSALS";
/// Name of the array `REFUSED_* → Tally`. Written by the kernel programs, read by the gateway.
pub const TALLIES: &str = "TALLIES";
/// Name of the array `REFUSED_* → Told`. Written and read by the gateway alone: it outlives the gateway with the pins.
pub const TOLD: &str = "TOLD";
/// Name of the constant that says whether the fence may ask which process runs; older kernels do not let it.
pub const FENCE_SEES_PROCESSES: &str = "FENCE_SEES_PROCESSES";

/// Bytes of [`REFUSALS`]: more than two seconds of every class at its limit. When it is full, events are counted
/// instead of written; refusals are not lost.
pub const REFUSALS_BYTES: usize = 64 * 1024;
/// Events of one class and one [`TALLY_WINDOW_SHIFT`] window; the rest of the window is only counted. A class has a
/// limit of its own so that a flood of one hides no other.
pub const EVENTS_PER_WINDOW: u64 = 20;
/// Nanoseconds shifted right by this are the number of a window: about a second.
pub const TALLY_WINDOW_SHIFT: u32 = 30;

/// One refusal, for the audit.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Cgroup of the task, or of the packet's socket; 0 where neither is known.
    pub cgroup_id: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds: later than the start of the process.
    pub at_ns: u64,
    /// Destination, or all zero where there is none.
    pub address: Address,
    /// Source of a packet, else all zero.
    pub source: Address,
    /// `comm` of the task, NUL-padded.
    pub comm: [u8; 16],
    /// Thread group id of the process, in the initial PID namespace; 0 where it is not known.
    pub pid: u32,
    /// Index of the device: of the workload's namespace, of the host's for `REFUSED_WIRE_*`; 0 where there is none.
    pub device: u32,
    /// IP protocol.
    pub protocol: u32,
    /// Destination port, or 0.
    pub port: u16,
    /// Source port of a packet, or 0.
    pub source_port: u16,
    /// One of the `REFUSED_*` codes.
    pub why: u16,
    /// Address family of the socket, or 0.
    pub family: u16,
    /// Socket type, or 0.
    pub kind: u16,
    /// Ethernet protocol of a packet, or 0.
    pub ethertype: u16,
}

/// What became of the refusals of one class.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Number of the current window.
    pub window: u64,
    /// Events of the current window.
    pub taken: u64,
    /// Refusals past the limit of their window, since the programs were loaded.
    pub suppressed: u64,
    /// Refusals that found the ring buffer full, since the programs were loaded.
    pub lost: u64,
}

/// What the audit already knows of the refusals that are only counted.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// Of [`Tally::suppressed`].
    pub suppressed: u64,
    /// Of [`Tally::lost`].
    pub lost: u64,
}

/// No workload is armed for this network namespace.
pub const REFUSED_UNKNOWN_NAMESPACE: u16 = 1;
/// UDP to anywhere but port 53 and the own loopback.
pub const REFUSED_UDP: u16 = 2;
/// A socket that is neither TCP nor UDP.
pub const REFUSED_SOCKET: u16 = 3;
/// A connection to the gateway's own port.
pub const REFUSED_GATEWAY_PORT: u16 = 4;
/// The destination could not be stored on the socket.
pub const REFUSED_STORAGE: u16 = 5;
/// The socket is bound to a device other than `lo`.
pub const REFUSED_DEVICE: u16 = 6;
/// IPv6 where the gateway has no IPv6 listener.
pub const REFUSED_NO_IPV6: u16 = 7;
/// A socket that would listen or send on the gateway's own port.
pub const REFUSED_GATEWAY_PORT_BIND: u16 = 8;
/// A packet on its way out by a device other than `lo`.
pub const REFUSED_FENCE_EGRESS: u16 = 9;
/// A packet that came in by a device other than `lo`.
pub const REFUSED_FENCE_INGRESS: u16 = 10;
/// A frame of the workload's on the host's side of the wire.
pub const REFUSED_WIRE_OUT: u16 = 11;
/// A frame for the workload on the host's side of the wire.
pub const REFUSED_WIRE_IN: u16 = 12;
/// The table of connections is full.
pub const REFUSED_FLOWS_FULL: u16 = 13;
/// More connections or DNS queries than the workload may give the gateway in this time.
pub const REFUSED_RATE: u16 = 14;
/// One more than the highest code: the number of entries of [`TALLIES`] and [`TOLD`].
pub const REFUSED_CODES: usize = 15;

// SAFETY: repr(C), integers that fill it (asserted below).
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for Refusal {}
// SAFETY: repr(C), integers that fill it (asserted below).
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for Tally {}
// SAFETY: repr(C), integers that fill it (asserted below).
#[expect(unsafe_code, reason = "implements the border's marker")]
unsafe impl Abi for Told {}

const _: () = assert!(size_of::<Refusal>() == 2 * 8 + 2 * 16 + 16 + 3 * 4 + 6 * 2);
const _: () = assert!(size_of::<Tally>() == 4 * 8);
const _: () = assert!(size_of::<Told>() == 2 * 8);
