//! Vectors 25 to 28 and 53: other protocols than TCP and UDP, and marks.

use crate::layers::Layer::{self, Egress, Redirect, Sockets, Wire};
use crate::layers::State;
use crate::prove::{Attempt, prove};
use crate::workload::Rights;
use crate::world::World;

const fn row(name: &'static str, rights: Rights, arguments: &'static [&'static str]) -> Attempt {
    let alone: &[(Layer, &str)] = &[(Sockets, "EPROTONOSUPPORT"), (Egress, "EPERM"), (Wire, "ok")];
    let program = "escapes/families.py";
    Attempt { name, rights, program, arguments, free: "ok", governed: "EPROTONOSUPPORT", alone }
}

/// Vector 25.
#[test]
fn udp_lite_sends_nothing() {
    prove(&[
        row("udplite4", Rights::Nobody, &["udplite4"]),
        row("udplite4-connected", Rights::Nobody, &["udplite4-connected"]),
        row("udplite6-connected", Rights::Nobody, &["udplite6-connected"]),
    ]);
}

/// Vector 26.
#[test]
fn a_ping_socket_sends_nothing() {
    prove(&[
        row("ping4", Rights::Nobody, &["ping4"]),
        // The kernel tells a program nothing of an ICMPv6 message that it drops.
        Attempt {
            alone: &[(Sockets, "EPROTONOSUPPORT"), (Egress, "ok"), (Wire, "ok")],
            ..row("ping6", Rights::Nobody, &["ping6"])
        },
    ]);
}

/// Vector 27.
#[test]
fn a_raw_socket_sends_nothing_not_even_with_a_header_of_its_own() {
    prove(&[
        row("raw4", Rights::Docker, &["raw4"]),
        row("raw4-connected", Rights::Docker, &["raw4-connected"]),
        row("raw6", Rights::Docker, &["raw6"]),
        row("whole-packet", Rights::Docker, &["whole-packet"]),
    ]);
}

/// Vector 28.
#[test]
fn of_every_type_and_protocol_number_only_tcp_and_udp_can_be_made() {
    let Some(free) = World::new(State::Off) else { return };
    let control = free.attack("escapes/families.py", &["every-kind"]);
    let made = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with("made")).map(str::to_owned).collect()
    };
    let without = made(control.ok());
    for more in [
        "made raw4 253",
        "made raw6 253",
        "made stream4 262",
        "made datagram4 136",
        "made datagram6 58",
    ] {
        assert!(without.contains(&more.to_owned()), "the control: {without:#?}");
    }
    for line in control.stdout.lines().filter(|line| line.starts_with("refused")) {
        println!("this kernel without Tollgate: {line}");
    }
    drop(free);
    for state in [State::Governed, State::Only(&[Sockets])] {
        let world = World::new(state).expect("there was one already");
        let said = world.attack("escapes/families.py", &["every-kind"]);
        let allowed = [
            "stream4 0",
            "stream4 6",
            "datagram4 0",
            "datagram4 17",
            "stream6 0",
            "stream6 6",
            "datagram6 0",
            "datagram6 17",
        ];
        assert_eq!(made(said.ok()), allowed.map(|kind| format!("made {kind}")), "{state:?}");
        world.assert_nothing_arrived("every kind of socket");
    }
}

/// Vector 53.
#[test]
fn a_mark_exempts_from_nothing() {
    const fn marked(name: &'static str, arguments: &'static [&'static str]) -> Attempt {
        Attempt {
            name,
            rights: Rights::Docker,
            program: "escapes/families.py",
            arguments,
            free: "an answer from outside",
            governed: "no answer",
            alone: &[(Redirect, "no answer"), (Egress, "TimeoutError"), (Wire, "TimeoutError")],
        }
    }
    prove(&[
        marked("mark-1", &["mark-1"]),
        marked("mark-539", &["mark-539"]),
        marked("mark-all", &["mark-all"]),
    ]);
}
