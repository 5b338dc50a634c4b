//! Refusals of the kernel programs, on their way to the audit.
//!
//! Each refusal is an event in the ring buffer or counted in a tally, by class. A workload has both to itself: none can
//! push out what another did.

use std::io;
use std::net::{IpAddr, SocketAddr};

use aya::maps::{Array, MapData, MapError, RingBuf};
use gateway_ebpf::abi;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::maps::{Wire, comm_of, ip_of};
use crate::audit::{Process, Vector};

/// The refusals of one workload, before anybody watches them.
pub struct Refusals {
    ring: RingBuf<MapData>,
    counts: Counts,
}

/// The refusals of one workload, for the one task that reads them.
pub struct Watch {
    ring: AsyncFd<RingBuf<MapData>>,
    counts: Counts,
}

struct Counts {
    tallies: Array<MapData, Wire<abi::Tally>>,
    told: Array<MapData, Wire<abi::Told>>,
}

/// One refused socket, datagram, connection or packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRefusal {
    /// Which way out was closed.
    pub vector: Vector,
    /// Where it was to go; none for a socket that was never made.
    pub destination: Option<SocketAddr>,
    /// Where a packet came from.
    pub source: Option<SocketAddr>,
    /// Name of the protocol, `other` for those that hardly anybody uses.
    pub protocol: &'static str,
    /// Who tried; none for packets that no process can be named for.
    pub process: Option<Process>,
    /// Cgroup of the task or socket, where it is known.
    pub cgroup_id: Option<u64>,
    /// Index of the device, where there is one.
    pub device: Option<u32>,
    /// `CLOCK_BOOTTIME` of the attempt, in nanoseconds.
    pub at_ns: u64,
}

/// Refusals of one class that are only counted and that no record speaks of yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Their class.
    pub vector: Vector,
    /// Past the limit of their second.
    pub suppressed: u64,
    /// Found the ring buffer full.
    pub lost: u64,
    code: u32,
    now: abi::Told,
}

impl Refusals {
    pub(super) fn new(
        ring: RingBuf<MapData>,
        tallies: Array<MapData, Wire<abi::Tally>>,
        told: Array<MapData, Wire<abi::Told>>,
    ) -> Self {
        Self { ring, counts: Counts { tallies, told } }
    }

    /// Prepares for waiting. Must run inside a runtime.
    ///
    /// # Errors
    /// When the buffer cannot be waited for.
    #[expect(unsafe_code, reason = "waiting for a ring buffer's descriptor")]
    pub fn watch(self) -> io::Result<Watch> {
        // SAFETY: a map owns its descriptor as long as it lives, and the map moves into the `AsyncFd`: the descriptor
        // stays open and the same until it is deregistered. Safe code has no way to promise that.
        let ring = unsafe { AsyncFd::register_with_interest(self.ring, Interest::READABLE) }?;
        Ok(Watch { ring, counts: self.counts })
    }
}

impl Watch {
    /// Waits until there may be events.
    ///
    /// # Errors
    /// When the buffer cannot be waited for any more.
    pub async fn ready(&mut self) -> io::Result<()> {
        // Cleared before anything is read: what comes meanwhile makes it ready again.
        self.ring.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// Calls `each` for every refusal that is in the buffer now.
    pub fn drain(&mut self, mut each: impl FnMut(KernelRefusal)) {
        while let Some(bytes) = self.ring.get_mut().next() {
            if let Some(refusal) = parse(&bytes) {
                each(refusal);
            }
        }
    }

    /// What was only counted, by class, and not yet [`told`](Self::told).
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn untold(&self) -> io::Result<Vec<Counted>> {
        let mut found = Vec::new();
        for code in codes() {
            let tally = self.counts.tallies.get(&code, 0).map_err(io_error)?.0;
            let told = self.counts.told.get(&code, 0).map_err(io_error)?.0;
            let suppressed = tally.suppressed.saturating_sub(told.suppressed);
            let lost = tally.lost.saturating_sub(told.lost);
            if suppressed > 0 || lost > 0 {
                let now = abi::Told { suppressed: tally.suppressed, lost: tally.lost };
                found.push(Counted { vector: vector_of(code), suppressed, lost, code, now });
            }
        }
        Ok(found)
    }

    /// Notes that the audit has it, for this gateway and for one that takes over.
    ///
    /// # Errors
    /// When the note cannot be written; then the same refusals are counted again.
    pub fn told(&mut self, counted: &Counted) -> io::Result<()> {
        self.counts.told.set(counted.code, Wire(counted.now), 0).map_err(io_error)
    }
}

fn io_error(error: MapError) -> io::Error {
    io::Error::other(error)
}

/// Every `REFUSED_*` code. Entry 0 of the arrays is nobody's.
fn codes() -> impl Iterator<Item = u32> {
    1..u32::try_from(abi::REFUSED_CODES).unwrap_or_default()
}

fn vector_of(code: u32) -> Vector {
    match u16::try_from(code).unwrap_or_default() {
        abi::REFUSED_UNKNOWN_NAMESPACE => Vector::UnknownNamespace,
        abi::REFUSED_UDP => Vector::Udp,
        abi::REFUSED_SOCKET => Vector::SocketFamily,
        abi::REFUSED_GATEWAY_PORT => Vector::GatewayPortConnect,
        abi::REFUSED_STORAGE => Vector::StorageExhausted,
        abi::REFUSED_DEVICE => Vector::DeviceBound,
        abi::REFUSED_NO_IPV6 => Vector::NoIpv6,
        abi::REFUSED_GATEWAY_PORT_BIND => Vector::GatewayPortBind,
        abi::REFUSED_FENCE_EGRESS => Vector::FenceEgress,
        abi::REFUSED_FENCE_INGRESS => Vector::FenceIngress,
        abi::REFUSED_WIRE_OUT => Vector::WireOut,
        abi::REFUSED_WIRE_IN => Vector::WireIn,
        abi::REFUSED_FLOWS_FULL => Vector::FlowTableFull,
        abi::REFUSED_RATE => Vector::RateExceeded,
        _ => Vector::Unknown,
    }
}

/// Reads an [`abi::Refusal`] field by field: the bytes come from a map that only the kernel programs write, but a
/// checked read costs nothing.
fn parse(bytes: &[u8]) -> Option<KernelRefusal> {
    let mut rest = Bytes(bytes);
    let cgroup_id = u64::from_ne_bytes(rest.take()?);
    let at_ns = u64::from_ne_bytes(rest.take()?);
    let address: [u8; 16] = rest.take()?;
    let source: [u8; 16] = rest.take()?;
    let comm: [u8; 16] = rest.take()?;
    let pid = u32::from_ne_bytes(rest.take()?);
    let device = u32::from_ne_bytes(rest.take()?);
    let protocol = u32::from_ne_bytes(rest.take()?);
    let port = u16::from_ne_bytes(rest.take()?);
    let source_port = u16::from_ne_bytes(rest.take()?);
    let why = u16::from_ne_bytes(rest.take()?);
    let _family_and_kind: [u8; 4] = rest.take()?;
    let ethertype = u16::from_ne_bytes(rest.take()?);
    Some(KernelRefusal {
        vector: vector_of(why.into()),
        destination: end_of(address, port),
        source: end_of(source, source_port),
        protocol: protocol_name(protocol, ethertype),
        process: (pid != 0).then(|| Process { pid, comm: comm_of(&comm), exe: None }),
        cgroup_id: (cgroup_id != 0).then_some(cgroup_id),
        device: (device != 0).then_some(device),
        at_ns,
    })
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }
}

fn end_of(address: [u8; 16], port: u16) -> Option<SocketAddr> {
    let address = abi::Address::from_octets(address);
    let ip: IpAddr = ip_of(address);
    (address != abi::Address::NONE || port != 0).then(|| SocketAddr::new(ip, port))
}

fn protocol_name(protocol: u32, ethertype: u16) -> &'static str {
    const IP: [u16; 3] = [0, 0x0800, 0x86dd];
    match ethertype {
        0x0806 => "arp",
        other if !IP.contains(&other) => "other",
        _ => match protocol {
            1 => "icmp",
            2 => "igmp",
            6 => "tcp",
            17 => "udp",
            58 => "icmpv6",
            132 => "sctp",
            136 => "udplite",
            255 => "raw",
            262 => "mptcp",
            _ => "other",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_and_a_cut_one_is_not() {
        let mut bytes = Vec::new();
        bytes.extend(77_u64.to_ne_bytes());
        bytes.extend(123_u64.to_ne_bytes());
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 9]);
        bytes.extend([0; 16]);
        bytes.extend(*b"dig\0\0\0\0\0\0\0\0\0\0\0\0\0");
        bytes.extend(4711_u32.to_ne_bytes());
        bytes.extend(3_u32.to_ne_bytes());
        bytes.extend(17_u32.to_ne_bytes());
        bytes.extend(443_u16.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(abi::REFUSED_UDP.to_ne_bytes());
        bytes.extend([0; 6]);
        assert_eq!(bytes.len(), size_of::<abi::Refusal>());
        let expected = KernelRefusal {
            vector: Vector::Udp,
            destination: Some("203.0.113.9:443".parse().unwrap()),
            source: None,
            protocol: "udp",
            process: Some(Process { pid: 4711, comm: "dig".to_owned(), exe: None }),
            cgroup_id: Some(77),
            device: Some(3),
            at_ns: 123,
        };
        assert_eq!(parse(&bytes), Some(expected));
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), None);
        }
    }

    #[test]
    fn every_code_has_a_class_of_its_own() {
        let classes: std::collections::BTreeSet<Vector> = codes().map(vector_of).collect();
        assert_eq!(classes.len(), codes().count());
        assert!(!classes.contains(&Vector::Unknown));
    }
}
