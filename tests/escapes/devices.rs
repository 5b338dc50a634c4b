//! Vectors 17 to 21: a socket that is told to send by another device than its destination says. The redirect does
//! not see it; what it lets pass as local, the fences have to hold.

use crate::layers::Layer::{self, Egress, Redirect, Wire};
use crate::layers::State;
use crate::prove::{Attempt, prove, prove_against, prove_closed_in};
use crate::workload::Rights;

/// What the redirect alone is able to do: the control of whatever it cannot see.
const REDIRECT_ALONE: State = State::GovernedBut(&[Egress, Wire]);

const fn row(
    name: &'static str,
    arguments: &'static [&'static str],
    free: &'static str,
    governed: &'static str,
    alone: &'static [(Layer, &'static str)],
) -> Attempt {
    let program = "escapes/devices.py";
    Attempt { name, rights: Rights::Nobody, program, arguments, free, governed, alone }
}

/// Both fences close it; the redirect takes it for local and lets it pass.
const fn datagram(name: &'static str, arguments: &'static [&'static str]) -> Attempt {
    row(name, arguments, "ok", "EPERM", &[(Egress, "EPERM"), (Wire, "ok")])
}

/// Vectors 17 and 18.
#[test]
fn a_datagram_to_the_own_loopback_does_not_leave_by_the_device_that_it_names() {
    prove_against(
        REDIRECT_ALONE,
        &[
            datagram("info4-loopback", &["info4-loopback"]),
            datagram("unicast4-loopback", &["unicast4-loopback"]),
        ],
    );
}

/// Vector 17 for what is not local.
#[test]
fn packet_info_does_not_get_a_datagram_outside() {
    const ALONE: &[(Layer, &str)] = &[(Redirect, "ECONNREFUSED"), (Egress, "EPERM"), (Wire, "ok")];
    prove(&[
        row("info4-far", &["info4-far"], "ok", "ECONNREFUSED", ALONE),
        row("info6-far", &["info6-far"], "ok", "ECONNREFUSED", ALONE),
        datagram("info6-loopback", &["info6-loopback"]),
        datagram("unicast6-loopback", &["unicast6-loopback"]),
    ]);
}

/// Vector 18 for streams: the kernel heeds it for datagrams only, so that the redirect holds.
#[test]
fn a_unicast_device_does_not_turn_a_connection_outside() {
    const ALONE: &[(Layer, &str)] =
        &[(Redirect, "ok"), (Egress, "TimeoutError"), (Wire, "TimeoutError")];
    prove(&[
        row("unicast4-stream", &["unicast4-stream"], "ok", "ok", ALONE),
        row("unicast6-stream", &["unicast6-stream"], "ok", "ok", ALONE),
    ]);
}

/// Vector 19.
#[test]
fn a_socket_that_is_bound_to_the_device_may_not_connect() {
    const ALONE: &[(Layer, &str)] =
        &[(Redirect, "EPERM"), (Egress, "TimeoutError"), (Wire, "TimeoutError")];
    prove(&[
        row("before4-far", &["before4-far"], "ok", "EPERM", ALONE),
        row("before6-far", &["before6-far"], "ok", "EPERM", ALONE),
        row("before4-loopback", &["before4-loopback"], "TimeoutError", "EPERM", ALONE),
        row(
            "before4-datagram",
            &["before4-datagram"],
            "ok",
            "EPERM",
            &[(Redirect, "EPERM"), (Egress, "EPERM"), (Wire, "ok")],
        ),
    ]);
}

/// Vector 20: each fence beside the redirect closes it.
#[test]
fn a_connection_that_is_bound_to_the_device_afterwards_sends_nothing_by_it() {
    let rows = [
        row("after4-far", &["after4-far"], "no answer", "no answer", &[]),
        row("after6-far", &["after6-far"], "no answer", "no answer", &[]),
    ];
    prove_against(REDIRECT_ALONE, &rows);
    prove_closed_in(State::GovernedBut(&[Wire]), &rows);
    prove_closed_in(State::GovernedBut(&[Egress]), &rows);
}

/// Vector 21.
#[test]
fn a_source_address_of_the_device_does_not_keep_a_connection_from_the_gateway() {
    const ALONE: &[(Layer, &str)] =
        &[(Redirect, "no answer"), (Egress, "TimeoutError"), (Wire, "TimeoutError")];
    const ANSWER: &str = "an answer from outside";
    prove(&[
        row("own-source4", &["own-source4"], ANSWER, "no answer", ALONE),
        // The gateway, which is bound to `lo`, finds no way back to an IPv6 address of another device.
        row(
            "own-source6",
            &["own-source6"],
            ANSWER,
            "TimeoutError",
            &[(Redirect, "TimeoutError"), (Egress, "TimeoutError"), (Wire, "TimeoutError")],
        ),
    ]);
}
