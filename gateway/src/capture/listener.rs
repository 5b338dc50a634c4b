//! The gateway's sockets inside the workload's network namespace.
//!
//! On loopback addresses only, and bound to device `lo`: a connection with a spoofed source cannot make the gateway
//! answer out of another interface. No address is shared (`SO_REUSEPORT` stays off, and `SO_REUSEADDR` where it would
//! share), so that nobody can take a part of the traffic.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Listeners, Namespace, NamespaceError};

/// The listeners cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// Somebody in the workload's namespace has the port.
    #[error(
        "{protocol} port {port} is taken in the workload's network namespace; set another `port` under [gateway]"
    )]
    PortTaken {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// The gateway's port.
        port: u16,
    },
    /// A socket cannot be made.
    #[error("cannot listen on {address} in the workload's network namespace")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel has no cookie for the namespace.
    #[error(
        "the kernel does not tell the cookie of a network namespace (SO_NETNS_COOKIE, Linux 5.14)"
    )]
    NoCookie(#[source] io::Error),
}

/// Listeners and the identity of the namespace that they stand in.
pub(super) struct Opened {
    pub(super) listeners: Listeners,
    pub(super) netns_cookie: u64,
    pub(super) has_ipv6: bool,
}

/// Connections that wait for accept; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

pub(super) fn open(namespace: &Namespace, port: u16) -> Result<Opened, ListenError> {
    namespace.run(|| {
        let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
        let first = tcp(v4)?;
        let netns_cookie = cookie_of(&first).map_err(ListenError::NoCookie)?;
        let mut listeners = Listeners { tcp: vec![first], udp: vec![udp(v4)?], ipv6: None };
        let has_ipv6 = ipv6_is_on();
        if has_ipv6 {
            listeners.tcp.push(tcp(v6)?);
            listeners.udp.push(udp(v6)?);
            let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
            listeners.ipv6 = Some(Arc::new(udp(any)?));
        }
        Ok(Opened { listeners, netns_cookie, has_ipv6 })
    })
}

/// Whether `::1` can be bound here: `disable_ipv6` and kernels without IPv6 leave it out.
fn ipv6_is_on() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

fn tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let socket = bound(address, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG).map_err(|source| ListenError::Socket { address, source })?;
    Ok(socket.into())
}

fn udp(address: SocketAddr) -> Result<UdpSocket, ListenError> {
    Ok(bound(address, Type::DGRAM, Protocol::UDP)?.into())
}

fn bound(address: SocketAddr, kind: Type, protocol: Protocol) -> Result<Socket, ListenError> {
    let make = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind_device(Some(b"lo"))?;
        if kind == Type::STREAM {
            // What a gateway that died has left of its connections would hold the port for a minute. Of TCP, Linux
            // gives an address to nobody else while one socket listens on it, whatever both have set.
            socket.set_reuse_address(true)?;
        }
        socket.bind(&SockAddr::from(address))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    make().map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            let protocol = if protocol == Protocol::TCP { "TCP" } else { "UDP" };
            ListenError::PortTaken { protocol, port: address.port() }
        } else {
            ListenError::Socket { address, source }
        }
    })
}

/// Whether the kernel tells the cookie of a network namespace.
pub(crate) fn tells_netns_cookie() -> bool {
    Socket::new(Domain::IPV4, Type::DGRAM, None).is_ok_and(|socket| cookie_of(&socket).is_ok())
}

/// The cookie of the socket's network namespace (socket(7), `SO_NETNS_COOKIE`).
#[expect(unsafe_code, reason = "no safe crate here reads this socket option")]
fn cookie_of(socket: &impl AsRawFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; the kernel writes at most `length` bytes, the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// From `asm-generic/socket.h`; the libc crate does not have it for every target.
const SO_NETNS_COOKIE: libc::c_int = 71;

#[cfg(test)]
mod tests {
    use super::*;

    /// A namespace of the test's own; `None` at a desk without the right to make one.
    fn namespace() -> Option<Namespace> {
        if nix::unistd::geteuid().is_root() {
            return Some(Namespace::isolated().unwrap());
        }
        assert!(std::env::var_os("CI").is_none(), "a privileged test cannot run: not root");
        println!("SKIPPED: not root, so no namespaces");
        None
    }

    const PORT: u16 = 10255;

    #[test]
    fn a_port_that_is_taken_is_named_with_its_remedy() {
        for (protocol, kind) in [(Protocol::TCP, Type::STREAM), (Protocol::UDP, Type::DGRAM)] {
            let Some(namespace) = namespace() else { return };
            // Whoever shares the address on purpose gets no part of the traffic either.
            let taken = namespace.run(|| -> Result<Socket, NamespaceError> {
                let socket = Socket::new(Domain::IPV4, kind, Some(protocol)).unwrap();
                socket.set_reuse_port(true).unwrap();
                socket.set_reuse_address(true).unwrap();
                socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into()).unwrap();
                if kind == Type::STREAM {
                    socket.listen(1).unwrap();
                }
                Ok(socket)
            });
            let error = open(&namespace, PORT).map(drop).unwrap_err();
            let name = if kind == Type::STREAM { "TCP" } else { "UDP" };
            assert_eq!(
                error.to_string(),
                format!(
                    "{name} port 10255 is taken in the workload's network namespace; set another `port` under [gateway]"
                )
            );
            drop(taken);
            assert!(open(&namespace, PORT).is_ok(), "the control: a free port is opened");
        }
    }

    #[test]
    fn nobody_can_take_a_part_of_the_traffic_by_sharing_an_address() {
        let Some(namespace) = namespace() else { return };
        let opened = open(&namespace, PORT).unwrap();
        for (address, kind) in [
            (IpAddr::V4(Ipv4Addr::LOCALHOST), Type::STREAM),
            (IpAddr::V4(Ipv4Addr::LOCALHOST), Type::DGRAM),
            (IpAddr::V6(Ipv6Addr::LOCALHOST), Type::DGRAM),
        ] {
            let address = SocketAddr::new(address, PORT);
            let bound = namespace.run(|| -> Result<io::Result<()>, NamespaceError> {
                let socket = Socket::new(Domain::for_address(address), kind, None).unwrap();
                socket.set_reuse_port(true).unwrap();
                socket.set_reuse_address(true).unwrap();
                Ok(socket.bind(&address.into()))
            });
            assert_eq!(bound.unwrap().unwrap_err().kind(), io::ErrorKind::AddrInUse, "{address}");
        }
        drop(opened);
    }

    #[test]
    fn ipv6_that_is_switched_off_later_is_no_way_to_the_gateway_any_more() {
        let Some(namespace) = namespace() else { return };
        let opened = open(&namespace, PORT).unwrap();
        let is_reachable = opened.listeners.reachable_over_ipv6();
        assert!(is_reachable() && is_reachable(), "the control");
        for (value, expected) in [("1", false), ("0", true)] {
            let switched = namespace.run(|| -> Result<io::Result<()>, NamespaceError> {
                Ok(std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", value))
            });
            switched.unwrap().unwrap();
            assert_eq!(is_reachable(), expected, "disable_ipv6 = {value}");
        }
    }
}
