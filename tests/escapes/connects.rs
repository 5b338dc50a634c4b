//! Vectors 1 to 12: what an ordinary program does.

use crate::layers::Layer::{self, Egress, Redirect, Sockets, Wire};
use crate::prove::{Attempt, prove};
use crate::workload::Rights;

/// What outside says when it was reached.
const ANSWER: &str = "an answer from outside";

const fn row(
    name: &'static str,
    arguments: &'static [&'static str],
    free: &'static str,
    governed: &'static str,
    alone: &'static [(Layer, &'static str)],
) -> Attempt {
    let program = "escapes/connects.py";
    Attempt { name, rights: Rights::Nobody, program, arguments, free, governed, alone }
}

/// A connection of TCP is answered by the gateway, which does not know the protocol; behind the other layers nobody
/// answers.
const fn stream(name: &'static str, arguments: &'static [&'static str]) -> Attempt {
    const ALONE: &[(Layer, &str)] =
        &[(Redirect, "no answer"), (Egress, "TimeoutError"), (Wire, "TimeoutError")];
    row(name, arguments, ANSWER, "no answer", ALONE)
}

const fn datagram(name: &'static str, arguments: &'static [&'static str]) -> Attempt {
    const ALONE: &[(Layer, &str)] =
        &[(Redirect, "ECONNREFUSED"), (Egress, "EPERM"), (Wire, "no answer")];
    row(name, arguments, ANSWER, "ECONNREFUSED", ALONE)
}

/// Vectors 1, 2, 3 and 11.
#[test]
fn a_connection_of_tcp_is_the_gateways_or_goes_nowhere() {
    prove(&[
        stream("tcp4-near", &["tcp4-near"]),
        stream("tcp4-far", &["tcp4-far"]),
        stream("tcp6-near", &["tcp6-near"]),
        stream("tcp6-far", &["tcp6-far"]),
        stream("tcp-mapped", &["tcp-mapped"]),
        stream("reconnected", &["reconnected"]),
    ]);
}

/// Vectors 4, 5, 6 and 7.
#[test]
fn a_datagram_goes_nowhere_however_its_destination_is_named() {
    prove(&[
        datagram("udp-mapped", &["udp-mapped"]),
        datagram("udp4-connected", &["udp4-connected"]),
        datagram("udp6-connected", &["udp6-connected"]),
        datagram("udp4-near", &["udp4-near"]),
        datagram("udp4-sent", &["udp4-sent"]),
        datagram("udp6-sent", &["udp6-sent"]),
        datagram("udp-many", &["udp-many"]),
        row(
            "udp-another",
            &["udp-another"],
            "ok",
            "ECONNREFUSED",
            &[(Redirect, "ECONNREFUSED"), (Egress, "EPERM"), (Wire, "ok")],
        ),
    ]);
}

/// Vectors 5 to 7: to everybody, to a group, to an address of one link, and by a socket that changes its family.
#[test]
fn a_datagram_to_many_or_by_a_converted_socket_goes_nowhere() {
    const fn silent(name: &'static str, arguments: &'static [&'static str]) -> Attempt {
        const ALONE: &[(Layer, &str)] =
            &[(Redirect, "ECONNREFUSED"), (Egress, "EPERM"), (Wire, "ok")];
        row(name, arguments, "ok", "ECONNREFUSED", ALONE)
    }
    prove(&[
        silent("udp-broadcast", &["udp-broadcast"]),
        silent("udp-everybody", &["udp-everybody"]),
        silent("udp-group", &["udp-group"]),
        silent("udp-scope", &["udp-scope"]),
        silent("udp-converted", &["udp-converted"]),
        row(
            "tcp-scope",
            &["tcp-scope"],
            "ECONNREFUSED",
            "ok",
            &[(Redirect, "ok"), (Egress, "TimeoutError"), (Wire, "TimeoutError")],
        ),
    ]);
}

/// Vectors 9 and 10.
#[test]
fn fast_open_carries_no_byte_outside_at_once_or_deferred() {
    prove(&[
        row(
            "fast-open4",
            &["fast-open4"],
            ANSWER,
            "no answer",
            &[(Redirect, "no answer"), (Egress, "no answer"), (Wire, "no answer")],
        ),
        row(
            "fast-open6",
            &["fast-open6"],
            ANSWER,
            "no answer",
            &[(Redirect, "no answer"), (Egress, "no answer"), (Wire, "no answer")],
        ),
        row(
            "fast-open-deferred",
            &["fast-open-deferred"],
            ANSWER,
            "no answer",
            &[(Redirect, "no answer"), (Egress, "no answer"), (Wire, "no answer")],
        ),
    ]);
}

/// Vector 12.
#[test]
fn a_socket_of_mptcp_cannot_be_made_and_would_not_get_out() {
    const ALONE: &[(Layer, &str)] = &[
        (Sockets, "EPROTONOSUPPORT"),
        (Redirect, "no answer"),
        (Egress, "TimeoutError"),
        (Wire, "TimeoutError"),
    ];
    prove(&[
        row("mptcp4", &["mptcp4"], ANSWER, "EPROTONOSUPPORT", ALONE),
        row("mptcp6", &["mptcp6"], ANSWER, "EPROTONOSUPPORT", ALONE),
    ]);
}
