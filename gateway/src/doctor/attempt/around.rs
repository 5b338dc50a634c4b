//! Attempts that let the hooks see a harmless address and have the packet go elsewhere.

use std::net::Ipv4Addr;

use socket2::{Domain, Socket};

use super::streams::server;
use super::{
    AGENT_V4, At as _, Ground, OUTSIDE_V4, OUTSIDE_V6, Stopped, address, connect, tcp, udp,
};
use crate::capture::attempt::{Control, send_message, set_option};
use crate::doctor::scratch::INTERFACE;

/// `TCP_FASTOPEN_NO_COOKIE` (linux/tcp.h).
const FASTOPEN_NO_COOKIE: i32 = 34;
/// `IPV6_UNICAST_IF`.
const IPV6_UNICAST_IF: i32 = 76;
/// `IPTOS_LOWDELAY`.
const LOW_DELAY: u32 = 0x10;
/// `IP_UNICAST_IF`.
const IP_UNICAST_IF: i32 = 50;

pub(crate) fn lsrr_connect(ground: &Ground) -> Result<(), Stopped> {
    let socket = tcp(Domain::IPV4)?;
    set_route(&socket)?;
    connect(&socket, &ground.local_v4())
}

pub(crate) fn lsrr_send(ground: &Ground) -> Result<(), Stopped> {
    let socket = udp(Domain::IPV4)?;
    set_route(&socket)?;
    socket.send_to(&ground.payload(), &ground.local_v4()).map(drop).at("send")
}

pub(crate) fn lsrr_message(ground: &Ground) -> Result<(), Stopped> {
    let control =
        [Control { level: libc::IPPROTO_IP, kind: libc::IP_RETOPTS, data: &source_route() }];
    let socket = udp(Domain::IPV4)?;
    send_message(&socket, &ground.local_v4(), &ground.payload(), &control).at("send")
}

pub(crate) fn lsrr_fast_open(ground: &Ground) -> Result<(), Stopped> {
    let socket = tcp(Domain::IPV4)?;
    socket.set_nonblocking(true).at("set up")?;
    set_option(&socket, libc::IPPROTO_TCP, FASTOPEN_NO_COOKIE, &1_i32.to_ne_bytes())
        .at("set up")?;
    set_route(&socket)?;
    let flags = libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL;
    match socket.send_to_with_flags(&ground.payload(), &ground.local_v4(), flags) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other.map(drop).at("send"),
    }
}

/// After the connection is made, nothing but the options of the socket says where its data goes; a new type of service
/// makes the kernel look for the route again.
pub(crate) fn lsrr_after(ground: &Ground) -> Result<(), Stopped> {
    let (_server, socket) = local_connection(ground)?;
    set_route(&socket)?;
    socket.set_tos_v4(LOW_DELAY).at("set up")?;
    socket.send_with_flags(&ground.payload(), libc::MSG_NOSIGNAL).map(drop).at("send")
}

/// A segment routing header (RFC 8754) of two segments: the first is outside, the last is loopback.
pub(crate) fn segments(ground: &Ground) -> Result<(), Stopped> {
    let socket = tcp(Domain::IPV6)?;
    let header = [&[0, 4, 4, 1, 1, 0, 0, 0][..], &[0; 16], &OUTSIDE_V6.octets()].concat();
    set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &header).at("set up")?;
    connect(&socket, &ground.local_v6())
}

pub(crate) fn packet_info_v4(ground: &Ground) -> Result<(), Stopped> {
    // struct in_pktinfo: interface, source, destination.
    let info = [&ground.interface.to_ne_bytes()[..], &[0; 8]].concat();
    let control = [Control { level: libc::IPPROTO_IP, kind: libc::IP_PKTINFO, data: &info }];
    let socket = udp(Domain::IPV4)?;
    send_message(&socket, &ground.local_v4(), &ground.payload(), &control).at("send")
}

pub(crate) fn packet_info_v6(ground: &Ground) -> Result<(), Stopped> {
    // struct in6_pktinfo: source, interface.
    let info = [&[0; 16][..], &ground.interface.to_ne_bytes()].concat();
    let control = [Control { level: libc::IPPROTO_IPV6, kind: libc::IPV6_PKTINFO, data: &info }];
    let socket = udp(Domain::IPV6)?;
    send_message(&socket, &ground.local_v6(), &ground.payload(), &control).at("send")
}

pub(crate) fn unicast_v4(ground: &Ground) -> Result<(), Stopped> {
    let socket = udp(Domain::IPV4)?;
    set_option(&socket, libc::IPPROTO_IP, IP_UNICAST_IF, &ground.interface.to_be_bytes())
        .at("set up")?;
    socket.send_to(&ground.payload(), &ground.local_v4()).map(drop).at("send")
}

pub(crate) fn unicast_v6(ground: &Ground) -> Result<(), Stopped> {
    let socket = udp(Domain::IPV6)?;
    set_option(&socket, libc::IPPROTO_IPV6, IPV6_UNICAST_IF, &ground.interface.to_be_bytes())
        .at("set up")?;
    socket.send_to(&ground.payload(), &ground.local_v6()).map(drop).at("send")
}

pub(crate) fn device_connect(ground: &Ground) -> Result<(), Stopped> {
    let socket = tcp(Domain::IPV4)?;
    bind_device(&socket)?;
    connect(&socket, &ground.outside_v4())
}

pub(crate) fn device_send(ground: &Ground) -> Result<(), Stopped> {
    let socket = udp(Domain::IPV4)?;
    bind_device(&socket)?;
    socket.send_to(&ground.payload(), &ground.outside_v4()).map(drop).at("send")
}

pub(crate) fn device_after(ground: &Ground) -> Result<(), Stopped> {
    let (_server, socket) = local_connection(ground)?;
    bind_device(&socket)?;
    socket.send_with_flags(&ground.payload(), libc::MSG_NOSIGNAL).map(drop).at("send")
}

/// A connection to a server of the attempt's own, from the interface's address.
fn local_connection(ground: &Ground) -> Result<(Socket, Socket), Stopped> {
    let (server, port) = server()?;
    let socket = tcp(Domain::IPV4)?;
    socket.bind(&address(AGENT_V4, ground.mark.port())).at("bind")?;
    socket.connect(&address(Ipv4Addr::LOCALHOST, port)).at("connect")?;
    Ok((server, socket))
}

fn bind_device(socket: &Socket) -> Result<(), Stopped> {
    socket.bind_device(Some(INTERFACE.as_bytes())).at("bind to the device")
}

fn set_route(socket: &Socket) -> Result<(), Stopped> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &source_route()).at("set the route")
}

/// Loose source route (RFC 791) by way of the host outside, after a no-operation that aligns it.
fn source_route() -> Vec<u8> {
    [&[1, 131, 7, 4][..], &OUTSIDE_V4.octets()].concat()
}
