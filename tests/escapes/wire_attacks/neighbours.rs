//! Vectors 32 and 47, with somebody on the same bridge who takes part.

use std::path::PathBuf;
use std::process::Command;

use crate::common::wait_until;
use crate::layers::Layer::{Egress, Ingress, Sockets, Wire};
use crate::layers::State::{self, Governed, GovernedBut, Off, Only};
use crate::tap::{Frame, Point};
use crate::workload::Rights::Docker;
use crate::world::{NEAR, OWN, WORKLOAD_MAC, World};

use super::programs::{Programs, programs};
use super::rows::{FIRST_PORT, Trial, marker, steps, strs, text, words};

/// Runs an attempt of the neighbour against the workload.
fn neighbour(trial: &Trial, name: &'static str) {
    let program: PathBuf = trial.programs.attack.clone();
    let said = trial.world.outside.run(move || {
        let words = words(name, "near", OWN, &marker(name), FIRST_PORT);
        Command::new(program).args(words).output().unwrap()
    });
    let printed = String::from_utf8_lossy(&said.stdout);
    assert!(printed.contains("\"sendto\":\"OK\""), "{name}: {said:?}");
}

/// Vector 32: the kernel answers whoever asks, and belongs to nobody's cgroup when it does.
#[test]
fn what_a_neighbour_asks_of_the_kernel_is_not_answered() {
    let Some(programs) = programs() else { return };
    let attempts = ["provoke-echo", "provoke-unreachable", "provoke-reset"];
    let answers = |frame: &Frame, name: &str| {
        frame.source_mac() == WORKLOAD_MAC && frame.contains(&marker(name).as_bytes()[..4])
    };
    for state in [Off, GovernedBut(&[Wire])] {
        let Some(trial) = Trial::new(programs, state) else { return };
        for name in attempts {
            neighbour(&trial, name);
            wait_until(&format!("an answer to {name} in {state:?}"), || {
                trial.has_arrived(|frame| answers(frame, name))
            });
        }
    }
    for state in [Governed, Only(&[Wire])] {
        let trial = Trial::new(programs, state).expect("there was one already");
        for name in attempts {
            neighbour(&trial, name);
            assert!(!trial.has_arrived(|frame| answers(frame, name)), "{name} in {state:?}");
        }
        assert!(!trial.has_arrived(|frame| frame.source_mac() == WORKLOAD_MAC), "{state:?}");
    }
}

/// Vector 32: a connection that ended before Tollgate came still makes the kernel acknowledge.
#[test]
fn a_connection_of_before_the_capture_says_nothing_from_its_grave() {
    let Some(programs) = programs() else { return };
    for state in [Off, GovernedBut(&[Wire]), Governed, Only(&[Wire])] {
        let Some(acknowledged) = acknowledges(programs, state) else { return };
        let is_open = matches!(state, Off | GovernedBut(_));
        assert_eq!(acknowledged, is_open, "{state:?}");
    }
}

/// Whether the kernel acknowledges, when Tollgate comes in `state` after the connection.
fn acknowledges(programs: &'static Programs, state: State) -> Option<bool> {
    let mut world = World::ungoverned()?;
    world.serve_outside(FIRST_PORT);
    let trial = Trial { world, programs, state: Off };
    let said = trial.attempt("time-wait", Docker, FIRST_PORT);
    assert_eq!(said, "socket OK, bind OK, connect OK, recv OK");
    let acknowledgements = |trial: &Trial| {
        let is_one = |frame: &&Frame| {
            let to = frame.packet().map(|(_, _, protocol, to)| (protocol, to));
            frame.at != Point::Offered && to == Some((6, FIRST_PORT))
        };
        trial.world.frames().iter().filter(is_one).count()
    };
    world = trial.world;
    world.govern(state);
    let trial = Trial { world, programs, state };
    let before = acknowledgements(&trial);
    trial.attempt("reflect-time-wait", Docker, FIRST_PORT);
    Some(acknowledgements(&trial) > before)
}

/// Vector 47: a neighbour broadcasts, and the workload listens to every frame.
#[test]
fn nobody_can_tell_a_workload_anything_by_frames() {
    let Some(programs) = programs() else { return };
    let states = [
        (Off, true),
        (GovernedBut(&[Wire]), true),
        (Only(&[Sockets, Egress, Ingress]), true),
        (Governed, false),
        (Only(&[Wire]), false),
    ];
    for (state, expected) in states {
        let Some(trial) = Trial::new(programs, state) else { return };
        let words = words("listen", "eth0", NEAR, &marker("packet-raw"), FIRST_PORT);
        let mut listens = trial.world.start_as(Docker, &[], text(&programs.attack), &strs(&words));
        while !listens.has_ended() {
            neighbour(&trial, "packet-raw");
        }
        let said = steps(listens.wait().ok());
        let heard = if expected { marker("packet-raw").replace(':', " ") } else { String::new() };
        assert_eq!(said, format!("socket OK, heard {heard}"), "{state:?}");
    }
}
