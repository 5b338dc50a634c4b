//! Refusals of the kernel programs, on their way to the audit.

use std::io;
use std::net::{IpAddr, SocketAddr};

use aya::maps::{MapData, RingBuf};
use gateway_ebpf::abi;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::maps::{comm_of, ip_of};
use crate::audit::Process;

/// The ring buffer of refusals.
pub struct Refusals {
    ring: RingBuf<MapData>,
}

/// One refused socket, datagram or connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRefusal {
    /// Where it was to go; none for a socket that was never made.
    pub destination: Option<SocketAddr>,
    /// Why, in words for people.
    pub why: &'static str,
    /// Name of the IP protocol, `other` for those that hardly anybody uses.
    pub protocol: &'static str,
    /// Who tried.
    pub process: Process,
}

impl Refusals {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Calls `each` for every refusal until the kernel's buffer fails. Must run inside a runtime.
    ///
    /// # Errors
    /// When the buffer cannot be waited for.
    #[expect(unsafe_code, reason = "waiting for a ring buffer's descriptor")]
    pub async fn watch(self, mut each: impl FnMut(KernelRefusal)) -> io::Result<()> {
        // SAFETY: a map owns its descriptor as long as it lives, and the map moves into the `AsyncFd`: the descriptor
        // stays open and the same until it is deregistered. Safe code has no way to promise that.
        let mut ring = unsafe { AsyncFd::register_with_interest(self.ring, Interest::READABLE) }?;
        loop {
            let mut ready = ring.readable_mut().await?;
            drain(ready.get_inner_mut(), &mut each);
            ready.clear_ready();
        }
    }

    /// Calls `each` for every refusal that is in the buffer now.
    pub fn drain(&mut self, mut each: impl FnMut(KernelRefusal)) {
        drain(&mut self.ring, &mut each);
    }
}

fn drain(ring: &mut RingBuf<MapData>, each: &mut impl FnMut(KernelRefusal)) {
    while let Some(bytes) = ring.next() {
        if let Some(refusal) = parse(&bytes) {
            each(refusal);
        }
    }
}

/// Reads an [`abi::Refusal`] field by field: the bytes come from a map that only the kernel programs write, but a
/// checked read costs nothing.
fn parse(bytes: &[u8]) -> Option<KernelRefusal> {
    let (address, rest) = bytes.split_first_chunk::<16>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (why, rest) = rest.split_first_chunk::<2>()?;
    let (_family, rest) = rest.split_first_chunk::<2>()?;
    let (_kind, rest) = rest.split_first_chunk::<2>()?;
    let (protocol, rest) = rest.split_first_chunk::<4>()?;
    let (pid, rest) = rest.split_first_chunk::<4>()?;
    let (comm, _end) = rest.split_first_chunk::<16>()?;
    let address = abi::Address::from_octets(*address);
    let ip: IpAddr = ip_of(address);
    let port = u16::from_ne_bytes(*port);
    let destination =
        (address != abi::Address::NONE || port != 0).then(|| SocketAddr::new(ip, port));
    Some(KernelRefusal {
        destination,
        why: words(u16::from_ne_bytes(*why)),
        protocol: protocol_name(u32::from_ne_bytes(*protocol)),
        process: Process { pid: u32::from_ne_bytes(*pid), comm: comm_of(comm), exe: None },
    })
}

fn words(why: u16) -> &'static str {
    match why {
        abi::REFUSED_UNKNOWN_NAMESPACE => "a network namespace that is not armed",
        abi::REFUSED_UDP => "UDP to anywhere but DNS",
        abi::REFUSED_SOCKET => "a socket that is neither TCP nor UDP",
        abi::REFUSED_GATEWAY_PORT => "the gateway's own port",
        abi::REFUSED_STORAGE => "the destination could not be recorded",
        abi::REFUSED_DEVICE => "a socket bound to a device other than lo",
        abi::REFUSED_NO_IPV6 => "IPv6 without an IPv6 listener",
        _ => "unknown",
    }
}

fn protocol_name(protocol: u32) -> &'static str {
    match protocol {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "icmpv6",
        132 => "sctp",
        136 => "udplite",
        255 => "raw",
        262 => "mptcp",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_and_a_cut_one_is_not() {
        let mut bytes = Vec::new();
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 9]);
        bytes.extend(443_u16.to_ne_bytes());
        bytes.extend(abi::REFUSED_UDP.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(17_u32.to_ne_bytes());
        bytes.extend(4711_u32.to_ne_bytes());
        bytes.extend(*b"dig\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(bytes.len(), size_of::<abi::Refusal>());
        let refusal = parse(&bytes).unwrap();
        assert_eq!(refusal.destination, Some("203.0.113.9:443".parse().unwrap()));
        assert_eq!((refusal.why, refusal.protocol), ("UDP to anywhere but DNS", "udp"));
        assert_eq!(refusal.process, Process { pid: 4711, comm: "dig".to_owned(), exe: None });
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), None);
        }
    }
}
