//! Attempts below TCP and UDP: raw sockets, frames, group membership.

use std::fs;
use std::io::{self, Read as _};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::{
    AGENT_V4, At as _, Ground, HEAR_WAIT, Mark, OUTSIDE_V4, Stopped, udp, wait_for_the_doctor,
};
use crate::capture::attempt::{send_by_xdp, send_frame, set_option};

/// An IP protocol for experiments (RFC 3692).
const EXPERIMENT: u8 = 253;
/// `PACKET_QDISC_BYPASS`.
const QDISC_BYPASS: i32 = 20;

pub(crate) fn raw_v4(ground: &Ground) -> Result<(), Stopped> {
    let socket = raw(Domain::IPV4, i32::from(EXPERIMENT))?;
    socket.send_to(&ground.payload(), &ground.outside_v4()).map(drop).at("send")
}

pub(crate) fn raw_v6(ground: &Ground) -> Result<(), Stopped> {
    let socket = raw(Domain::IPV6, i32::from(EXPERIMENT))?;
    // The port of a raw address would be a protocol number here.
    let to = super::address(super::OUTSIDE_V6, 0);
    socket.send_to(&ground.payload(), &to).map(drop).at("send")
}

pub(crate) fn raw_connected(ground: &Ground) -> Result<(), Stopped> {
    let socket = raw(Domain::IPV4, i32::from(EXPERIMENT))?;
    socket.connect(&ground.outside_v4()).at("connect")?;
    socket.send(&ground.payload()).map(drop).at("send")
}

pub(crate) fn raw_header(ground: &Ground) -> Result<(), Stopped> {
    let socket = raw(Domain::IPV4, libc::IPPROTO_RAW)?;
    socket.send_to(&packet_of(ground), &ground.outside_v4()).map(drop).at("send")
}

pub(crate) fn sctp(ground: &Ground) -> Result<(), Stopped> {
    if_loaded("SCTP", Type::STREAM, libc::IPPROTO_SCTP, ground)
}

pub(crate) fn dccp(ground: &Ground) -> Result<(), Stopped> {
    /// `SOCK_DCCP`.
    const DCCP: i32 = 6;
    if_loaded("DCCP", Type::from(DCCP), libc::IPPROTO_DCCP, ground)
}

pub(crate) fn l2tp(ground: &Ground) -> Result<(), Stopped> {
    /// `IPPROTO_L2TP`.
    const L2TP: i32 = 115;
    if_loaded("L2TP/IP", Type::DGRAM, L2TP, ground)
}

pub(crate) fn packet(ground: &Ground) -> Result<(), Stopped> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).at("socket")?;
    send_frame(&socket, ground.interface, &frame_of(ground)).at("send")
}

pub(crate) fn packet_bypass(ground: &Ground) -> Result<(), Stopped> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).at("socket")?;
    set_option(&socket, libc::SOL_PACKET, QDISC_BYPASS, &1_i32.to_ne_bytes()).at("set up")?;
    send_frame(&socket, ground.interface, &frame_of(ground)).at("send")
}

/// Whether a frame from outside is heard: a way for orders to come in.
pub(crate) fn hear(ground: &Ground) -> Result<(), Stopped> {
    /// `ETH_P_IP`.
    const IPV4: u16 = 0x0800;
    let protocol = Protocol::from(i32::from(IPV4.to_be()));
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).at("socket")?;
    socket.set_read_timeout(Some(HEAR_WAIT)).at("set up")?;
    wait_for_the_doctor()?;
    let mut frame = [0; 512];
    loop {
        let length = socket.read(&mut frame).at("receive")?;
        if Mark::on(frame.get(..length).unwrap_or_default()) == Some(ground.mark) {
            return Ok(());
        }
    }
}

pub(crate) fn xdp(ground: &Ground) -> Result<(), Stopped> {
    send_by_xdp(ground.interface, &frame_of(ground)).at("send")
}

pub(crate) fn join_v4(ground: &Ground) -> Result<(), Stopped> {
    let interface = InterfaceIndexOrAddress::Index(ground.interface);
    udp(Domain::IPV4)?.join_multicast_v4_n(&ground.mark.group_v4(), &interface).at("join")
}

pub(crate) fn join_v6(ground: &Ground) -> Result<(), Stopped> {
    udp(Domain::IPV6)?.join_multicast_v6(&ground.mark.group_v6(), ground.interface).at("join")
}

fn raw(domain: Domain, protocol: i32) -> Result<Socket, Stopped> {
    Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).at("socket")
}

/// Only where the kernel has the protocol already: asking for it would load a module that nobody wants.
fn if_loaded(name: &str, kind: Type, protocol: i32, ground: &Ground) -> Result<(), Stopped> {
    let loaded = fs::read_to_string("/proc/net/protocols").at("look for the protocol")?;
    if !loaded.lines().any(|line| line.split_whitespace().next() == Some(name)) {
        let missing = io::Error::from_raw_os_error(libc::EPROTONOSUPPORT);
        return Err(missing).at("find the protocol");
    }
    let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::from(protocol))).at("socket")?;
    super::connect(&socket, &ground.outside_v4())?;
    match socket.send(&ground.payload()) {
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
        other => other.map(drop).at("send"),
    }
}

/// An IPv4 packet of the experimental protocol; where the kernel sends it raw, it fills in length and checksum.
fn packet_of(ground: &Ground) -> Vec<u8> {
    const HEADER: u16 = 20;
    const TTL: u8 = 64;
    let payload = ground.payload();
    let length = HEADER + u16::try_from(payload.len()).unwrap_or_default();
    let [high, low] = length.to_be_bytes();
    let head = [0x45, 0, high, low, 0, 0, 0, 0, TTL, EXPERIMENT, 0, 0];
    [&head[..], &AGENT_V4.octets(), &OUTSIDE_V4.octets(), &payload].concat()
}

/// The same as a broadcast frame.
fn frame_of(ground: &Ground) -> Vec<u8> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    const SOURCE: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0a];
    const IPV4: [u8; 2] = [0x08, 0x00];
    [&BROADCAST[..], &SOURCE, &IPV4, &packet_of(ground)].concat()
}
