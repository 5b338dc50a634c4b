//! Attempts over UDP and its kin.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    AGENT_V4, At as _, GATEWAY_PORT, Ground, SPOOFED_V4, SPOOFED_V6, Stopped, address, udp,
};
use crate::capture::attempt::{send_by_ring, send_message, send_several, set_option};

/// `IPPROTO_UDPLITE`.
const UDPLITE: i32 = 136;
/// `IPV6_FREEBIND`.
const IPV6_FREEBIND: i32 = 78;
const DNS_PORT: u16 = 53;

pub(crate) fn v4(ground: &Ground) -> Result<(), Stopped> {
    send(&udp(Domain::IPV4)?, ground, &ground.outside_v4())
}

pub(crate) fn v6(ground: &Ground) -> Result<(), Stopped> {
    let socket = udp(Domain::IPV6)?;
    send_message(&socket, &ground.outside_v6(), &ground.payload(), &[]).at("send")
}

pub(crate) fn mapped(ground: &Ground) -> Result<(), Stopped> {
    send(&udp(Domain::IPV6)?, ground, &ground.outside_mapped())
}

pub(crate) fn connected(ground: &Ground) -> Result<(), Stopped> {
    let socket = udp(Domain::IPV4)?;
    socket.connect(&ground.outside_v4()).at("connect")?;
    socket.send(&ground.payload()).map(drop).at("send")
}

pub(crate) fn several(ground: &Ground) -> Result<(), Stopped> {
    send_several(&udp(Domain::IPV4)?, &ground.outside_v4(), &ground.payload()).at("send")
}

pub(crate) fn other(ground: &Ground) -> Result<(), Stopped> {
    let socket = udp(Domain::IPV4)?;
    // Of its own, the kernel would choose a loopback source, with which nothing leaves.
    socket.bind(&address(AGENT_V4, 0)).at("bind")?;
    socket.connect(&ground.local_v4()).at("connect")?;
    send(&socket, ground, &ground.outside_v4())
}

pub(crate) fn ring(ground: &Ground) -> Result<(), Stopped> {
    send_by_ring(&udp(Domain::IPV4)?, &ground.outside_v4(), &ground.payload()).at("send")
}

pub(crate) fn spoofed_v4(ground: &Ground) -> Result<(), Stopped> {
    let socket = udp(Domain::IPV4)?;
    socket.set_ip_transparent_v4(true).at("set up")?;
    socket.bind(&address(SPOOFED_V4, ground.mark.port())).at("bind")?;
    ask(&socket, ground, Ipv4Addr::LOCALHOST.into())
}

pub(crate) fn spoofed_v6(ground: &Ground) -> Result<(), Stopped> {
    let socket = udp(Domain::IPV6)?;
    set_option(&socket, libc::IPPROTO_IPV6, IPV6_FREEBIND, &1_i32.to_ne_bytes()).at("set up")?;
    socket.bind(&address(SPOOFED_V6, ground.mark.port())).at("bind")?;
    ask(&socket, ground, Ipv6Addr::LOCALHOST.into())
}

pub(crate) fn lite(ground: &Ground) -> Result<(), Stopped> {
    let socket =
        Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::from(UDPLITE))).at("socket")?;
    socket.connect(&ground.outside_v4()).at("connect")?;
    socket.send(&ground.payload()).map(drop).at("send")
}

pub(crate) fn ping(ground: &Ground) -> Result<(), Stopped> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).at("socket")?;
    // An echo request; the kernel fills in identifier and checksum.
    let request = [&[8, 0, 0, 0, 0, 0, 0, 1][..], &ground.payload()].concat();
    socket.send_to(&request, &ground.outside_v4()).map(drop).at("send")
}

fn send(socket: &Socket, ground: &Ground, to: &SockAddr) -> Result<(), Stopped> {
    socket.send_to(&ground.payload(), to).map(drop).at("send")
}

/// The resolver straight, which only an unguarded one would answer, and by the redirect.
fn ask(socket: &Socket, ground: &Ground, loopback: IpAddr) -> Result<(), Stopped> {
    let direct = send(socket, ground, &address(loopback, GATEWAY_PORT));
    send(socket, ground, &address(loopback, DNS_PORT)).or(direct)
}
