//! Attempts past the hooks of a socket's own way: source routes, io_uring, frames, groups, what the kernel sends by
//! itself, other families, other conventions of system calls. Vectors 8, 13–16, 29–34, 36, 37, 39, 47, 52, 54, 55, 58.

#[path = "wire_attacks/admin.rs"]
mod admin;
#[path = "wire_attacks/neighbours.rs"]
mod neighbours;
#[path = "wire_attacks/programs.rs"]
mod programs;
#[path = "wire_attacks/refusals.rs"]
mod refusals;
#[path = "wire_attacks/rows.rs"]
mod rows;

use crate::layers::Layer::{Egress, Redirect, Sockets, Wire};
use crate::layers::State::Only;
use crate::workload::Rights::{Docker, Nobody};
use rows::Sign::{Marker, MarkerOrPort, Part};
use rows::{Row, prove};

/// Vectors 13, 14 and 15. The redirect sees the end of the route, the packet goes to its first hop.
#[test]
fn an_ipv4_source_route_leads_nowhere() {
    let sends = |name, free, governed| Row { name, rights: Docker, sign: Marker, free, governed };
    prove(
        &[Egress, Wire],
        &[Only(&[Egress]), Only(&[Wire])],
        &[
            sends(
                "lsrr-sendto",
                "socket OK, setsockopt OK, sendto OK",
                "socket OK, setsockopt OK, sendto EPERM",
            ),
            sends(
                "ssrr-sendto",
                "socket OK, setsockopt OK, sendto OK",
                "socket OK, setsockopt OK, sendto EPERM",
            ),
            sends(
                "lsrr-connect",
                "socket OK, setsockopt OK, connect EINPROGRESS",
                "socket OK, setsockopt OK, connect EINPROGRESS",
            ),
            sends(
                "ssrr-connect",
                "socket OK, setsockopt OK, connect EINPROGRESS",
                "socket OK, setsockopt OK, connect EINPROGRESS",
            ),
            sends("lsrr-per-message", "socket OK, sendmsg OK", "socket OK, sendmsg EPERM"),
            sends(
                "lsrr-fastopen",
                "socket OK, setsockopt OK, no cookie OK, sendto OK",
                "socket OK, setsockopt OK, no cookie OK, sendto OK",
            ),
        ],
    );
}

/// Vector 16, without any capability.
#[test]
fn an_ipv6_segment_route_leads_nowhere() {
    let sends = |name, free, governed| Row { name, rights: Nobody, sign: Marker, free, governed };
    prove(
        &[Egress, Wire],
        &[Only(&[Egress]), Only(&[Wire])],
        &[
            sends(
                "srv6-connect",
                "socket OK, setsockopt OK, connect EINPROGRESS",
                "socket OK, setsockopt OK, connect EINPROGRESS",
            ),
            sends(
                "srv6-fastopen",
                "socket OK, setsockopt OK, no cookie OK, sendto OK",
                "socket OK, setsockopt OK, no cookie OK, sendto OK",
            ),
            sends(
                "srv6-sendto",
                "socket OK, setsockopt OK, sendto OK",
                "socket OK, setsockopt OK, sendto EPERM",
            ),
        ],
    );
}

/// Vector 8, without any capability: as submitted, polled by a thread of the kernel, and by workers.
#[test]
fn io_uring_is_governed_like_the_calls_it_stands_for() {
    let free = "setup OK, datagram socket OK, sendmsg OK, second socket OK, sendto OK, udp socket OK, \
                udp connect OK, udp send OK, tcp socket OK, tcp connect OK, tcp send OK, last socket OK, \
                sendto without copy OK";
    let governed = "setup OK, datagram socket OK, sendmsg ECONNREFUSED, second socket OK, \
                    sendto ECONNREFUSED, udp socket OK, udp connect ECONNREFUSED, tcp socket OK, \
                    tcp connect OK, tcp send OK, last socket OK, sendto without copy ECONNREFUSED";
    let row = |name| Row { name, rights: Nobody, sign: MarkerOrPort, free, governed };
    prove(
        &[Redirect, Egress, Wire],
        &[Only(&[Redirect]), Only(&[Egress]), Only(&[Wire])],
        &[row("uring"), row("uring-sqpoll"), row("uring-async")],
    );
}

/// Vectors 29 and 30. No program of the cgroup sees these: the wire fence is all that holds them.
#[test]
fn frames_past_ip_end_at_the_host_s_end_of_the_wire() {
    let row = |name, said| Row { name, rights: Docker, sign: Marker, free: said, governed: said };
    prove(
        &[Wire],
        &[Only(&[Wire])],
        &[
            row("packet-raw", "socket OK, sendto OK"),
            row("packet-raw-bypass", "socket OK, bypass OK, sendto OK"),
            row("packet-dgram", "socket OK, sendto OK"),
            row("packet-dgram-bypass", "socket OK, bypass OK, sendto OK"),
            row("packet-ring", "socket OK, version OK, ring OK, bind OK, mmap OK, send OK"),
            row(
                "xdp",
                "socket OK, memory OK, fill ring OK, completion ring OK, send ring OK, offsets OK, mmap OK, \
                 bind OK, sendto OK",
            ),
        ],
    );
}

/// Vector 31, without any capability; the older versions where root may write settings.
#[test]
fn what_the_kernel_announces_of_a_joined_group_ends_at_the_wire() {
    let row = |name, rights, sign, said| Row { name, rights, sign, free: said, governed: said };
    let group = Part(b"\xff\x0e", 14);
    prove(
        &[Wire],
        &[Only(&[Wire])],
        &[
            row("igmp-join", Nobody, Marker, "socket OK, join OK, sources OK"),
            row("mld-join", Nobody, group, "socket OK, join OK"),
            row(
                "igmp2-join",
                Docker,
                Part(b"\xef", 3),
                "older version OK, socket OK, join OK, sources OK",
            ),
            row("mld1-join", Docker, group, "older version OK, socket OK, join OK"),
        ],
    );
}

/// Vector 32: the workload asks its own kernel, over `lo`, in the name of somebody outside.
#[test]
fn what_the_kernel_answers_by_itself_ends_at_the_wire() {
    let row = |name, sign| Row {
        name,
        rights: Docker,
        sign,
        free: "socket OK, sendto OK",
        governed: "socket OK, sendto OK",
    };
    prove(
        &[Wire],
        &[Only(&[Wire])],
        &[
            row("reflect-echo", Marker),
            row("reflect-echo6", Marker),
            row("reflect-unreachable", Marker),
            row("reflect-reset", Part(b"", 4)),
            row("reflect-solicitation", Part(b"", 8)),
        ],
    );
}

/// Vector 58: `socketcall` from a 32-bit program, and from a 64-bit one by the gate of 32-bit programs.
#[test]
fn the_calls_of_32_bit_programs_are_governed_like_the_others() {
    let row =
        |name, free, governed| Row { name, rights: Nobody, sign: MarkerOrPort, free, governed };
    let closers = &[Redirect, Egress, Wire];
    let alone = [Only(&[Redirect]), Only(&[Egress]), Only(&[Wire])];
    let names = "socket OK, patience OK, connect OK, send OK";
    let numbers = "socket 0, patience 0, connect 0, send 0";
    prove(
        closers,
        &alone,
        &[
            row("int80-tcp", names, names),
            row("int80-udp", "socket OK, sendto OK", "socket OK, sendto ECONNREFUSED"),
            row("i386 tcp", numbers, numbers),
            row("i386 udp", "socket 0, sendto 0", "socket 0, sendto 111"),
        ],
    );
    let row = |name, free, governed| Row { name, rights: Docker, sign: Marker, free, governed };
    prove(
        &[Sockets, Egress, Wire],
        &[Only(&[Sockets]), Only(&[Egress]), Only(&[Wire])],
        &[
            row("int80-raw", "socket OK, sendto OK", "socket EPROTONOSUPPORT"),
            row("i386 raw", "socket 0, sendto 0", "socket 93"),
        ],
    );
}
