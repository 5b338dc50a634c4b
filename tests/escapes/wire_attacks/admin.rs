//! Vectors 36 and 37: the network of the workload changed from inside. Docker's default capabilities do not allow it;
//! with CAP_NET_ADMIN the fences must hold all the same.

use crate::layers::Layer::{Egress, Wire};
use crate::layers::State::{self, Only};
use crate::workload::Rights::{Docker, NetAdmin};

use super::programs::programs;
use super::rows::Sign::Marker;
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
    let row = |name, free, governed| Row { name, rights: NetAdmin, sign: Marker, free, governed };
    prove(
        &[Egress, Wire],
        &[Only(&[Egress]), Only(&[Wire])],
        &[row("admin dnat", "nft OK, sendto OK", "nft OK, sendto EPERM")],
    );
    let routed = |last| format!("local later OK, local gone OK, rule OK, route OK, sendto {last}");
    prove(
        &[Egress, Wire],
        &[Only(&[Egress]), Only(&[Wire])],
        &[row("admin policy-route", routed("OK").leak(), routed("EPERM").leak())],
    );
    prove(
        &[Egress, Wire],
        &[Only(&[Egress]), Only(&[Wire])],
        &[row("admin dnat-gateway", "nft OK, connect OK, send OK", "nft OK, connect TimeoutError")],
    );
}

/// What was allowed to `lo` is sent on below IP, or a device of the workload's own is put before the wire.
#[test]
fn devices_and_redirections_of_a_network_admin_end_at_the_wire() {
    let row = |name, said| Row { name, rights: NetAdmin, sign: Marker, free: said, governed: said };
    for row in [
        row("admin mirred", "address OK, clsact OK, filter OK, sendto OK"),
        row("admin vxlan", "link OK, up OK, send OK"),
        row("admin macvlan", "link OK, up OK, send OK"),
        row(
            "admin tap-bridge",
            "tap OK, bridge OK, port one OK, port eth0 OK, up one OK, up two OK, write OK",
        ),
    ] {
        prove(&[Wire], &[Only(&[Wire])], &[row]);
    }
}
