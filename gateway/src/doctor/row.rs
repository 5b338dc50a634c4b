//! The attempts: one row each, numbered as the escape vectors of `SECURITY.md`.

use super::attempt::{Attempt, around, datagrams, frames, places, streams};

/// One way out, and what is to close it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Number of the vector.
    pub(super) vector: u8,
    /// Name, unique.
    pub(super) name: &'static str,
    /// What is attempted, for people.
    pub(super) what: &'static str,
    pub(super) rights: Rights,
    pub(super) closer: Closer,
    pub(super) attempt: Attempt,
    /// What comes from outside while the attempt waits.
    pub(super) poke: Option<Poke>,
    /// The attempt gets a socket of another cgroup as its standard input.
    pub(super) gift: Option<Gift>,
    /// Part of the quick form.
    pub(super) is_quick: bool,
    /// Without having seen it, nothing is proven.
    pub(super) is_vital: bool,
}

/// What the attempt may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rights {
    /// No capability at all.
    Nothing,
    /// What Docker leaves a container by default, NET_RAW among it.
    Docker,
}

/// What closes a way, and by which sign that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closer {
    /// The connection arrives at the gateway, with a record of where it wanted to go.
    Redirect,
    /// The connect is refused.
    Connect,
    /// The datagram is refused, as the hook refuses: the fence would say something else.
    Send,
    /// The datagram is refused by the hook or, with the same word, by the fence.
    Device,
    /// The socket is refused.
    Socket,
    /// Nothing is refused, and nothing leaves.
    Fence,
    /// What comes in does not arrive.
    Deaf,
    /// The gateway's own answer does not leave.
    Listener,
    /// Leaves the sockets' hooks behind; the wire stops it.
    Wire,
    /// What comes in past the sockets' hooks; the wire stops it.
    Inward,
    /// Binding the gateway's port is refused.
    Port,
    /// A connect that would reach somebody on loopback is refused.
    Local,
    /// A connection that the gateway has no record of.
    Record,
}

/// What happens outside while an attempt waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Poke {
    /// A connection to the attempt's port.
    Tcp,
    /// A datagram to it.
    Udp,
}

/// A socket that was made outside the cgroup, in the workload's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gift {
    Tcp,
    Udp,
}

impl Closer {
    /// The layer, for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Redirect => "connect hook (redirected)",
            Self::Connect | Self::Local => "connect hook (refused)",
            Self::Send => "sendmsg hook",
            Self::Device => "sendmsg hook or socket fence",
            Self::Socket => "sock_create hook",
            Self::Fence => "socket fence (cgroup_skb)",
            Self::Deaf => "socket fence (inward)",
            Self::Listener => "listener on lo",
            Self::Wire => "wire fence",
            Self::Inward => "wire fence (inward)",
            Self::Port => "post_bind hook",
            Self::Record => "no record, no service",
        }
    }

    /// What the kernel says when this refuses; without, anything counts.
    pub(super) fn says(self) -> Option<i32> {
        (self == Self::Send).then_some(libc::ECONNREFUSED)
    }

    /// The step at which the attempt is to be refused.
    pub(super) fn refuses(self) -> Option<&'static str> {
        match self {
            Self::Connect | Self::Local => Some("connect"),
            Self::Send | Self::Device => Some("send"),
            Self::Deaf => Some("receive"),
            Self::Socket => Some("socket"),
            Self::Port => Some("bind"),
            Self::Redirect
            | Self::Fence
            | Self::Listener
            | Self::Wire
            | Self::Inward
            | Self::Record => None,
        }
    }
}

impl Row {
    const fn quick(mut self) -> Self {
        self.is_quick = true;
        self
    }

    const fn vital(mut self) -> Self {
        self.is_vital = true;
        self.quick()
    }

    const fn poked(mut self, poke: Poke) -> Self {
        self.poke = Some(poke);
        self
    }

    const fn given(mut self, gift: Gift) -> Self {
        self.gift = Some(gift);
        self
    }
}

const fn row(
    vector: u8,
    name: &'static str,
    what: &'static str,
    rights: Rights,
    closer: Closer,
    attempt: Attempt,
) -> Row {
    Row {
        vector,
        name,
        what,
        rights,
        closer,
        attempt,
        poke: None,
        gift: None,
        is_quick: false,
        is_vital: false,
    }
}

/// The row of this name and its place in [`ROWS`].
pub(super) fn named(name: &str) -> Option<(usize, &'static Row)> {
    ROWS.iter().enumerate().find(|(_, row)| row.name == name)
}

use Closer as By;
use Rights::{Docker, Nothing};

#[rustfmt::skip]
pub(super) static ROWS: &[Row] = &[
    row(1, "tcp4", "TCP connect over IPv4", Nothing, By::Redirect, streams::v4).vital(),
    row(2, "tcp6", "TCP connect over IPv6", Nothing, By::Redirect, streams::v6).quick(),
    row(3, "tcp-mapped", "TCP connect to a v4-mapped address", Nothing, By::Redirect, streams::mapped),
    row(4, "udp-mapped", "datagram to a v4-mapped address", Nothing, By::Send, datagrams::mapped),
    row(5, "udp-connected", "connected UDP, as QUIC", Nothing, By::Connect, datagrams::connected),
    row(6, "udp4", "sendto over IPv4", Nothing, By::Send, datagrams::v4).vital(),
    row(6, "udp6", "sendmsg over IPv6", Nothing, By::Send, datagrams::v6).quick(),
    row(6, "udp-several", "sendmmsg", Nothing, By::Send, datagrams::several),
    row(7, "udp-other", "sendto past a connected address", Nothing, By::Send, datagrams::other),
    row(8, "uring-connect", "connect by io_uring, from a worker", Nothing, By::Redirect, streams::ring),
    row(8, "uring-send", "sendmsg by io_uring, from a worker", Nothing, By::Send, datagrams::ring),
    row(9, "fastopen", "TCP Fast Open: data with sendto", Nothing, By::Redirect, streams::fast_open),
    row(10, "fastopen-connect", "TCP_FASTOPEN_CONNECT, then a write", Nothing, By::Redirect, streams::fast_open_connect),
    row(11, "reconnect", "connect, AF_UNSPEC, connect elsewhere", Nothing, By::Redirect, streams::reconnect),
    row(12, "mptcp", "MPTCP socket", Nothing, By::Socket, streams::multipath),
    row(13, "lsrr-tcp", "IPv4 source route before connect", Docker, By::Fence, around::lsrr_connect),
    row(13, "lsrr-udp", "IPv4 source route before sendto", Docker, By::Fence, around::lsrr_send),
    row(14, "lsrr-message", "IPv4 source route per message", Docker, By::Fence, around::lsrr_message),
    row(15, "lsrr-fastopen", "source route and data in the SYN", Docker, By::Fence, around::lsrr_fast_open),
    row(16, "srv6", "IPv6 segment routing header", Nothing, By::Fence, around::segments),
    row(17, "pktinfo4", "IP_PKTINFO names the interface", Nothing, By::Fence, around::packet_info_v4).quick(),
    row(17, "pktinfo6", "IPV6_PKTINFO names the interface", Nothing, By::Fence, around::packet_info_v6),
    row(18, "unicast-if4", "IP_UNICAST_IF names the interface", Nothing, By::Fence, around::unicast_v4),
    row(18, "unicast-if6", "IPV6_UNICAST_IF names the interface", Nothing, By::Fence, around::unicast_v6),
    row(19, "device-tcp", "SO_BINDTODEVICE before connect", Nothing, By::Connect, around::device_connect),
    row(19, "device-udp", "SO_BINDTODEVICE before sendto", Nothing, By::Device, around::device_send),
    row(20, "device-after", "SO_BINDTODEVICE after connect", Nothing, By::Fence, around::device_after).quick(),
    row(20, "lsrr-after", "IPv4 source route after connect", Docker, By::Fence, around::lsrr_after),
    row(21, "own-source", "source bound to the interface's address", Nothing, By::Redirect, streams::own_source),
    row(22, "transparent4", "spoofed IPv4 source, TCP", Docker, By::Fence, streams::transparent),
    row(23, "freebind6", "spoofed IPv6 source, reflected by the gateway", Nothing, By::Listener, streams::free_bind),
    row(24, "dns-spoofed4", "spoofed IPv4 source, answered by the resolver", Docker, By::Listener, datagrams::spoofed_v4),
    row(24, "dns-spoofed6", "spoofed IPv6 source, answered by the resolver", Nothing, By::Listener, datagrams::spoofed_v6),
    row(25, "udplite", "UDP-Lite", Nothing, By::Socket, datagrams::lite).quick(),
    row(26, "ping", "ping socket", Nothing, By::Socket, datagrams::ping),
    row(27, "raw4", "raw IPv4", Docker, By::Socket, frames::raw_v4),
    row(27, "raw4-connected", "raw IPv4, connected", Docker, By::Socket, frames::raw_connected),
    row(27, "raw4-header", "raw IPv4 with a header of its own", Docker, By::Socket, frames::raw_header),
    row(27, "raw6", "raw IPv6", Docker, By::Socket, frames::raw_v6),
    row(28, "sctp", "SCTP", Nothing, By::Socket, frames::sctp),
    row(28, "dccp", "DCCP", Nothing, By::Socket, frames::dccp),
    row(28, "l2tp", "L2TP over IP", Nothing, By::Socket, frames::l2tp),
    row(29, "packet", "AF_PACKET", Docker, By::Wire, frames::packet).vital(),
    row(29, "packet-bypass", "AF_PACKET past the queueing discipline", Docker, By::Wire, frames::packet_bypass),
    row(30, "xdp", "AF_XDP in copy mode", Docker, By::Wire, frames::xdp),
    row(31, "igmp", "IPv4 multicast join", Nothing, By::Wire, frames::join_v4),
    row(31, "mld", "IPv6 multicast join", Nothing, By::Wire, frames::join_v6),
    row(32, "reset", "reset of a connection from outside", Nothing, By::Wire, places::wait).poked(Poke::Tcp),
    row(32, "unreachable", "ICMP answer to a datagram from outside", Nothing, By::Wire, places::wait).poked(Poke::Udp),
    row(38, "foreign-socket", "socket of another cgroup", Nothing, By::Wire, places::foreign_send).given(Gift::Udp),
    row(42, "nested", "network namespace below the workload's", Nothing, By::Local, places::nested),
    row(43, "gateway-port4", "taking the gateway's port, IPv4", Nothing, By::Port, places::take_port_v4).quick(),
    row(43, "gateway-port6", "taking the gateway's port, IPv6", Nothing, By::Port, places::take_port_v6).quick(),
    row(44, "gateway-direct4", "connecting to the gateway, IPv4", Nothing, By::Local, places::direct_v4),
    row(44, "gateway-direct6", "connecting to the gateway, IPv6", Nothing, By::Local, places::direct_v6),
    row(45, "gateway-forged", "connection past the hooks to the gateway", Nothing, By::Record, places::foreign_connect).given(Gift::Tcp),
    row(46, "inbound", "connection from outside to a server", Nothing, By::Fence, places::serve).poked(Poke::Tcp),
    row(46, "inbound-udp", "datagram from outside to a server", Nothing, By::Deaf, places::receive).poked(Poke::Udp).quick(),
    row(47, "eavesdrop", "AF_PACKET hears what comes in", Docker, By::Inward, frames::hear).poked(Poke::Udp).quick(),
    row(56, "storage", "no memory left to remember the destination", Nothing, By::Connect, streams::exhausted),
];
