//! Attempts by being elsewhere: another namespace, another's socket, another's port.

use std::io::Read as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, SockAddr, Socket};

use super::{
    AGENT_V6, At as _, GATEWAY_PORT, Ground, HEAR_WAIT, Stopped, address, connect, tcp, udp,
    wait_for_the_doctor,
};
use crate::capture::loopback_up;

/// An address of the loopback that the gateway does not use.
const OTHER_LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);

/// Nothing but being there: the kernel answers for the workload.
pub(crate) fn wait(_ground: &Ground) -> Result<(), Stopped> {
    wait_for_the_doctor()
}

/// A server that anybody may reach.
pub(crate) fn serve(ground: &Ground) -> Result<(), Stopped> {
    let server = tcp(Domain::IPV4)?;
    server.bind(&address(Ipv4Addr::UNSPECIFIED, ground.mark.port())).at("bind")?;
    server.listen(4).at("listen")?;
    wait_for_the_doctor()
}

/// A server that anybody may send to.
pub(crate) fn receive(ground: &Ground) -> Result<(), Stopped> {
    let socket = udp(Domain::IPV4)?;
    socket.bind(&address(Ipv4Addr::UNSPECIFIED, ground.mark.port())).at("bind")?;
    socket.set_read_timeout(Some(HEAR_WAIT)).at("set up")?;
    wait_for_the_doctor()?;
    (&socket).read(&mut [0; 512]).map(drop).at("receive")
}

pub(crate) fn foreign_send(ground: &Ground) -> Result<(), Stopped> {
    let socket = gift()?;
    socket.send_to(&ground.payload(), &ground.outside_v4()).map(drop).at("send")
}

/// Its own port tells whose the connection is.
pub(crate) fn foreign_connect(ground: &Ground) -> Result<(), Stopped> {
    let socket = gift()?;
    socket.bind(&ground.local_v4()).at("bind")?;
    connect(&socket, &gateway_v4())
}

/// A namespace without rules, in which the gateway's port is free. Users may make one wherever they may make user
/// namespaces.
pub(crate) fn nested(ground: &Ground) -> Result<(), Stopped> {
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET;
    unshare(flags).map_err(std::io::Error::from).at("make a namespace")?;
    loopback_up().at("bring lo up")?;
    // There is no way out of it; what matters is what happens to those that try.
    let out = connect(&tcp(Domain::IPV4)?, &ground.outside_v4());
    let server = tcp(Domain::IPV4)?;
    server.bind(&gateway_v4()).at("bind")?;
    server.listen(1).at("listen")?;
    connect(&tcp(Domain::IPV4)?, &gateway_v4()).or(out)
}

pub(crate) fn take_port_v4(_ground: &Ground) -> Result<(), Stopped> {
    tcp(Domain::IPV4)?.bind(&address(OTHER_LOOPBACK, GATEWAY_PORT)).at("bind")
}

pub(crate) fn take_port_v6(_ground: &Ground) -> Result<(), Stopped> {
    tcp(Domain::IPV6)?.bind(&address(AGENT_V6, GATEWAY_PORT)).at("bind")
}

pub(crate) fn direct_v4(_ground: &Ground) -> Result<(), Stopped> {
    connect(&tcp(Domain::IPV4)?, &gateway_v4())
}

pub(crate) fn direct_v6(_ground: &Ground) -> Result<(), Stopped> {
    connect(&tcp(Domain::IPV6)?, &address(Ipv6Addr::LOCALHOST, GATEWAY_PORT))
}

fn gateway_v4() -> SockAddr {
    address(Ipv4Addr::LOCALHOST, GATEWAY_PORT)
}

/// The socket that the doctor gave: it was made in another cgroup.
fn gift() -> Result<Socket, Stopped> {
    std::io::stdin().as_fd().try_clone_to_owned().map(Socket::from).at("take the socket")
}
