//! What becomes of a connect or a datagram: pure functions over `Copy` types, the same code in kernel and tests.

use crate::abi::{
    Address, HAS_IPV6, REFUSED_GATEWAY_PORT, REFUSED_NO_IPV6, REFUSED_SOCKET, REFUSED_UDP, Workload,
};

/// Where a destination is, beyond what its address tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// An address of the workload's own interfaces.
    Own,
    /// Address and port of a neighbour that the operator names.
    Neighbour,
    /// Anywhere else.
    Elsewhere,
}

/// What a hook does with a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The workload's own loopback: left alone.
    Local,
    /// A neighbour on the wire: left alone.
    Neighbour,
    /// To the gateway's listener at this address; the destination is stored first.
    Redirect(Address),
    /// Refused with this errno, for this `REFUSED_*` code.
    Refuse(i32, u16),
}

/// `ECONNREFUSED`: clients fail at once, and QUIC falls back to TCP.
pub const ECONNREFUSED: i32 = 111;
/// `ENETUNREACH`: clients try the other address family.
pub const ENETUNREACH: i32 = 101;
/// `EPROTONOSUPPORT`: the errno of a kernel without the protocol.
pub const EPROTONOSUPPORT: i32 = 93;
/// `EPERM`: the errno of a refusing cgroup program.
pub const EPERM: i32 = 1;

/// `IPPROTO_TCP`.
pub const TCP: u32 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u32 = 17;

/// The port of DNS: redirected whatever the server's address is, the own loopback included, so that no resolver
/// that somebody placed there answers unpoliced.
const DNS_PORT: u16 = 53;

/// Decides about a TCP connect or a UDP connect or datagram to `address`:`port`.
#[must_use]
#[inline(always)]
pub const fn destination(
    workload: Workload,
    protocol: u32,
    address: Address,
    port: u16,
    place: Place,
) -> Action {
    if protocol != TCP && protocol != UDP {
        return Action::Refuse(EPROTONOSUPPORT, REFUSED_SOCKET);
    }
    let local = address.is_own_loopback() || matches!(place, Place::Own);
    if port != DNS_PORT {
        if local && port == workload.gateway_port {
            return Action::Refuse(ECONNREFUSED, REFUSED_GATEWAY_PORT);
        }
        if local {
            return Action::Local;
        }
        if protocol == TCP && matches!(place, Place::Neighbour) {
            return Action::Neighbour;
        }
        if protocol == UDP {
            return Action::Refuse(ECONNREFUSED, REFUSED_UDP);
        }
    }
    if address.is_v4() {
        Action::Redirect(Address::LOOPBACK_V4)
    } else if workload.flags & HAS_IPV6 != 0 {
        Action::Redirect(Address::LOOPBACK_V6)
    } else {
        Action::Refuse(ENETUNREACH, REFUSED_NO_IPV6)
    }
}

/// Whether a socket of this family, type and protocol may exist: TCP and UDP over IPv4 and IPv6, nothing else.
///
/// The kernel asks only for the inet families, after it has resolved protocol 0.
#[must_use]
#[inline(always)]
pub const fn socket_is_allowed(family: u32, kind: u32, protocol: u32) -> bool {
    const AF_INET: u32 = 2;
    const AF_INET6: u32 = 10;
    const SOCK_STREAM: u32 = 1;
    const SOCK_DGRAM: u32 = 2;
    (family == AF_INET || family == AF_INET6)
        && ((kind == SOCK_STREAM && protocol == TCP) || (kind == SOCK_DGRAM && protocol == UDP))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH_V6: Workload = Workload { gateway_port: 10255, flags: HAS_IPV6, pad: 0 };
    const V4_ONLY: Workload = Workload { gateway_port: 10255, flags: 0, pad: 0 };

    fn v4(octets: [u8; 4]) -> Address {
        Address::from_v4_be(u32::from_ne_bytes(octets))
    }

    fn v6(text: &str) -> Address {
        extern crate std;
        let address: std::net::Ipv6Addr = text.parse().unwrap();
        Address::from_octets(address.octets())
    }

    #[test]
    fn every_destination_is_local_redirected_or_refused_as_the_table_says() {
        let to_v4 = Action::Redirect(Address::LOOPBACK_V4);
        let to_v6 = Action::Redirect(Address::LOOPBACK_V6);
        let public = v4([203, 0, 113, 9]);
        let loopback = v4([127, 0, 0, 1]);
        let rows = [
            (WITH_V6, TCP, public, 443, to_v4),
            (WITH_V6, TCP, public, 10255, to_v4),
            (WITH_V6, TCP, v6("2001:db8::9"), 443, to_v6),
            (WITH_V6, TCP, v6("::ffff:203.0.113.9"), 443, to_v4),
            (V4_ONLY, TCP, v6("2001:db8::9"), 443, Action::Refuse(ENETUNREACH, REFUSED_NO_IPV6)),
            (WITH_V6, TCP, loopback, 8080, Action::Local),
            (WITH_V6, TCP, v4([0, 0, 0, 0]), 8080, Action::Local),
            (WITH_V6, TCP, v6("::1"), 8080, Action::Local),
            (WITH_V6, TCP, loopback, 10255, Action::Refuse(ECONNREFUSED, REFUSED_GATEWAY_PORT)),
            (WITH_V6, TCP, v6("::"), 10255, Action::Refuse(ECONNREFUSED, REFUSED_GATEWAY_PORT)),
            (WITH_V6, UDP, loopback, 10255, Action::Refuse(ECONNREFUSED, REFUSED_GATEWAY_PORT)),
            (WITH_V6, UDP, public, 443, Action::Refuse(ECONNREFUSED, REFUSED_UDP)),
            (WITH_V6, UDP, v6("ff02::fb"), 5353, Action::Refuse(ECONNREFUSED, REFUSED_UDP)),
            (WITH_V6, UDP, loopback, 9999, Action::Local),
            (WITH_V6, UDP, public, 53, to_v4),
            (WITH_V6, UDP, loopback, 53, to_v4),
            (WITH_V6, TCP, v4([127, 0, 0, 53]), 53, to_v4),
            (WITH_V6, UDP, v6("2001:db8::53"), 53, to_v6),
            (WITH_V6, 1, public, 0, Action::Refuse(EPROTONOSUPPORT, REFUSED_SOCKET)),
            (WITH_V6, 132, loopback, 53, Action::Refuse(EPROTONOSUPPORT, REFUSED_SOCKET)),
            (WITH_V6, 136, public, 53, Action::Refuse(EPROTONOSUPPORT, REFUSED_SOCKET)),
        ];
        for (workload, protocol, address, port, expected) in rows {
            assert_eq!(
                destination(workload, protocol, address, port, Place::Elsewhere),
                expected,
                "{protocol} {address:?} {port}"
            );
        }
    }

    #[test]
    fn own_addresses_are_local_and_neighbours_are_reached_by_tcp_alone() {
        let eth0 = v4([10, 0, 0, 2]);
        let db = v4([10, 0, 0, 3]);
        let gateway = Action::Refuse(ECONNREFUSED, REFUSED_GATEWAY_PORT);
        let to_v4 = Action::Redirect(Address::LOOPBACK_V4);
        let rows = [
            (TCP, eth0, 8080, Place::Own, Action::Local),
            (UDP, eth0, 8080, Place::Own, Action::Local),
            (TCP, eth0, 8080, Place::Elsewhere, to_v4),
            (TCP, eth0, 10255, Place::Own, gateway),
            (UDP, eth0, 10255, Place::Own, gateway),
            (TCP, eth0, 53, Place::Own, to_v4),
            (TCP, db, 5432, Place::Neighbour, Action::Neighbour),
            (UDP, db, 5432, Place::Neighbour, Action::Refuse(ECONNREFUSED, REFUSED_UDP)),
            (TCP, db, 53, Place::Neighbour, to_v4),
            (TCP, db, 5433, Place::Elsewhere, to_v4),
        ];
        for (protocol, address, port, place, expected) in rows {
            let said = destination(WITH_V6, protocol, address, port, place);
            assert_eq!(said, expected, "{protocol} {address:?} {port} {place:?}");
        }
    }

    #[test]
    fn only_tcp_and_udp_sockets_may_exist() {
        for (family, kind, protocol) in [(2, 1, 6), (10, 1, 6), (2, 2, 17), (10, 2, 17)] {
            assert!(socket_is_allowed(family, kind, protocol));
        }
        // raw, ping, MPTCP, SCTP, DCCP, UDP-Lite, L2TP, TCP as datagram, unknown family
        let refused = [
            (2, 3, 255),
            (2, 2, 1),
            (10, 2, 58),
            (2, 1, 262),
            (2, 1, 132),
            (2, 6, 33),
            (2, 2, 136),
            (2, 2, 115),
            (2, 2, 6),
            (17, 3, 768),
        ];
        for (family, kind, protocol) in refused {
            assert!(!socket_is_allowed(family, kind, protocol), "{family} {kind} {protocol}");
        }
    }
}
