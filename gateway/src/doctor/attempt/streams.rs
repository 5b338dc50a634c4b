//! Attempts over TCP.

use std::net::Ipv4Addr;

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    AGENT_V4, At as _, GATEWAY_PORT, Ground, SPOOFED_V4, SPOOFED_V6, Stopped, address, connect, tcp,
};
use crate::capture::attempt::{connect_by_ring, disconnect, set_option};

/// `TCP_FASTOPEN_CONNECT` (linux/tcp.h).
const FASTOPEN_CONNECT: i32 = 30;
/// `TCP_MD5SIG` (linux/tcp.h).
const MD5SIG: i32 = 14;
/// `IPPROTO_MPTCP`.
const MPTCP: i32 = 262;
/// `IPV6_FREEBIND`.
const IPV6_FREEBIND: i32 = 78;

pub(crate) fn v4(ground: &Ground) -> Result<(), Stopped> {
    connect(&tcp(Domain::IPV4)?, &ground.outside_v4())
}

pub(crate) fn v6(ground: &Ground) -> Result<(), Stopped> {
    connect(&tcp(Domain::IPV6)?, &ground.outside_v6())
}

pub(crate) fn mapped(ground: &Ground) -> Result<(), Stopped> {
    connect(&tcp(Domain::IPV6)?, &ground.outside_mapped())
}

pub(crate) fn ring(ground: &Ground) -> Result<(), Stopped> {
    connect_by_ring(&tcp(Domain::IPV4)?, &ground.outside_v4()).at("connect")
}

pub(crate) fn fast_open(ground: &Ground) -> Result<(), Stopped> {
    let socket = tcp(Domain::IPV4)?;
    socket.set_nonblocking(true).at("set up")?;
    let sent = socket.send_to_with_flags(
        &ground.payload(),
        &ground.outside_v4(),
        libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL,
    );
    match sent {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other.map(drop).at("send"),
    }
}

pub(crate) fn fast_open_connect(ground: &Ground) -> Result<(), Stopped> {
    let socket = tcp(Domain::IPV4)?;
    set_option(&socket, libc::IPPROTO_TCP, FASTOPEN_CONNECT, &1_i32.to_ne_bytes()).at("set up")?;
    connect(&socket, &ground.outside_v4())?;
    match socket.send_with_flags(&ground.payload(), libc::MSG_NOSIGNAL) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
        other => other.map(drop).at("send"),
    }
}

/// First to a server of its own, then elsewhere with the same socket.
pub(crate) fn reconnect(ground: &Ground) -> Result<(), Stopped> {
    let (_server, port) = server()?;
    let socket = tcp(Domain::IPV4)?;
    connect(&socket, &address(Ipv4Addr::LOCALHOST, port))?;
    disconnect(&socket).at("disconnect")?;
    connect(&socket, &ground.outside_v4())
}

pub(crate) fn multipath(ground: &Ground) -> Result<(), Stopped> {
    let socket =
        Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(MPTCP))).at("socket")?;
    connect(&socket, &ground.outside_v4())
}

pub(crate) fn own_source(ground: &Ground) -> Result<(), Stopped> {
    let socket = tcp(Domain::IPV4)?;
    socket.bind(&address(AGENT_V4, 0)).at("bind")?;
    connect(&socket, &ground.outside_v4())
}

pub(crate) fn transparent(ground: &Ground) -> Result<(), Stopped> {
    let socket = tcp(Domain::IPV4)?;
    socket.set_ip_transparent_v4(true).at("set up")?;
    socket.bind(&address(SPOOFED_V4, ground.mark.port())).at("bind")?;
    connect(&socket, &ground.outside_v4())
}

/// To the gateway straight, which only an unguarded one would answer, and by the redirect.
pub(crate) fn free_bind(ground: &Ground) -> Result<(), Stopped> {
    let spoofed = || -> Result<Socket, Stopped> {
        let socket = tcp(Domain::IPV6)?;
        set_option(&socket, libc::IPPROTO_IPV6, IPV6_FREEBIND, &1_i32.to_ne_bytes())
            .at("set up")?;
        socket.bind(&address(SPOOFED_V6, ground.mark.port())).at("bind")?;
        Ok(socket)
    };
    let direct = connect(&spoofed()?, &address(std::net::Ipv6Addr::LOCALHOST, GATEWAY_PORT));
    connect(&spoofed()?, &ground.outside_v6()).or(direct)
}

/// Uses up the memory that options and storage of one socket share, then connects.
pub(crate) fn exhausted(ground: &Ground) -> Result<(), Stopped> {
    let socket = tcp(Domain::IPV4)?;
    for number in 0..KEYS_MAX {
        match add_key(&socket, number) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                return connect(&socket, &ground.outside_v4());
            }
            other => return other.at("add keys"),
        }
    }
    Err(std::io::Error::from(std::io::ErrorKind::StorageFull)).at("use up memory")
}

/// More keys than fit below any usual `net.core.optmem_max`.
const KEYS_MAX: u32 = 20_000;

/// `struct tcp_md5sig` (linux/tcp.h): an address of 128 bytes, flags, prefix length, key length, interface, key of 80.
fn add_key(socket: &Socket, number: u32) -> std::io::Result<()> {
    let mut value = [0_u8; 128 + 8 + 80];
    let [a, b, c, d] = (0x0a00_0000 + number).to_be_bytes();
    let family = u16::try_from(libc::AF_INET).map_err(std::io::Error::other)?.to_ne_bytes();
    let head = [&family[..], &[0, 0, a, b, c, d]].concat();
    let key_length = 1_u16.to_ne_bytes();
    for (place, byte) in [(130, key_length), (136, [7, 0])] {
        for (slot, byte) in value.iter_mut().skip(place).zip(byte) {
            *slot = byte;
        }
    }
    for (slot, byte) in value.iter_mut().zip(head) {
        *slot = byte;
    }
    set_option(socket, libc::IPPROTO_TCP, MD5SIG, &value)
}

/// A server of the attempt's own, and its port.
pub(super) fn server() -> Result<(Socket, u16), Stopped> {
    let server = tcp(Domain::IPV4)?;
    server.bind(&address(Ipv4Addr::LOCALHOST, 0)).at("bind")?;
    server.listen(4).at("listen")?;
    let port = server.local_addr().at("listen")?.as_socket().map_or(0, |own| own.port());
    Ok((server, port))
}
