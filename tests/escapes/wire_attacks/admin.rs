//! Vectors 36 and 37: the network of the workload changed from inside. Docker's default capabilities do not allow it;
//! with CAP_NET_ADMIN the fences must hold all the same.

use crate::layers::Layer::{Egress, Wire};
use crate::layers::State::{self, Only};
use crate::workload::Rights::{Docker, NetAdmin};

use super::programs::programs;
use super::rows::Sign::{Marker, MarkerOrPort};
use super::rows::{FIRST_PORT, Row, Trial, prove};

#[test]
fn without_its_capability_nothing_of_the_network_can_be_changed() {
    let Some(programs) = programs() else { return };
    let Some(trial) = Trial::new(programs, State::Governed) else { return };
    let changes = |rights| {
        let said = trial.attempt("admin refused", rights, FIRST_PORT);
        let count = |what: &str| said.split(", ").filter(|step| step.ends_with(what)).count();
        (count(" OK"), count(" EPERM"), said.clone())
    };
    let (made, refused, said) = changes(Docker);
    assert_eq!((made, refused), (0, 13), "{said}");
    let (made, refused, said) = changes(NetAdmin);
    assert!(made >= 8 && refused == 0, "the control, by who may: {said}");
    trial.all_held();
}

/// The redirect leads to `lo`, and rules of the workload's own lead on from there.
#[test]
fn translated_and_rerouted_packets_of_a_network_admin_do_not_leave() {
    let row =
        |name, free, governed| Row { name, rights: NetAdmin, sign: MarkerOrPort, free, governed };
    // What one has changed would be in the way of the next: each in a world of its own.
    for row in [
        row("admin dnat", "nft OK, sendto OK", "nft OK, sendto EPERM"),
        row("admin dnat-gateway", "nft OK, connect OK, send OK", "nft OK, connect TimeoutError"),
        row(
            "admin policy-route",
            "local later OK, local gone OK, rule OK, route OK, sendto OK",
            "local later OK, local gone OK, rule OK, route OK, sendto EPERM",
        ),
    ] {
        prove(&[Egress, Wire], &[Only(&[Egress]), Only(&[Wire])], &[row]);
    }
}

/// What was allowed to `lo` is sent on below IP, or a device of the workload's own is put before the wire. A daemon that
/// lives sets such devices down; the wire fence must hold without it.
#[test]
fn devices_and_redirections_of_a_network_admin_end_at_the_wire() {
    let Some(programs) = programs() else { return };
    let row = |name, free| Row { name, rights: NetAdmin, sign: Marker, free, governed: "" };
    for row in [
        row("forwarded", "forwarding OK, socket OK, sendto OK"),
        row("admin mirred", "address OK, clsact OK, filter OK, sendto OK"),
        row("admin vxlan", "link OK, up OK, send OK"),
        row("admin macvlan", "link OK, up OK, send OK"),
        row(
            "admin tap-bridge",
            "tap OK, bridge OK, port one OK, port eth0 OK, up one OK, up two OK, write OK",
        ),
    ] {
        let Some(free) = Trial::new(programs, State::Off) else { return };
        assert_eq!(free.arrives(&row, FIRST_PORT), row.free, "{}", row.name);
        drop(free);
        for state in [State::Governed, Only(&[Wire])] {
            let mut trial = Trial::new(programs, state).expect("there was one already");
            if state != State::Governed {
                trial.world.kill_daemon();
            }
            trial.is_held(&row, FIRST_PORT);
        }
        let but = State::GovernedBut(&[Wire]);
        let mut open = Trial::new(programs, but).expect("there was one already");
        open.world.kill_daemon();
        assert_eq!(open.arrives(&row, FIRST_PORT), row.free, "{} in {but:?}", row.name);
    }
}

/// Without its listener the workload has no way out, and nobody in it can take the place.
#[test]
fn a_network_admin_who_destroys_the_listener_is_refused_from_then_on() {
    let Some(programs) = programs() else { return };
    let Some(trial) = Trial::new(programs, State::Governed) else { return };
    trial.world.serve_outside(FIRST_PORT);
    let said = trial.attempt("admin destroy-listener", NetAdmin, FIRST_PORT);
    // Its port stays taken; a kernel that gave it back would refuse it by a hook.
    let place = |errno| format!("destroy OK, bind {errno}, bind6 {errno}, connect ECONNREFUSED");
    assert!([place("EADDRINUSE"), place("EPERM")].contains(&said), "{said}");
    trial.all_held();
}
