//! Vectors 56 and 57: a workload that fills what the programs keep.

use nix::sys::signal::Signal;

use crate::layers::Layer::{Egress, Redirect, Wire};
use crate::layers::State;
use crate::workload::Rights;
use crate::world::World;

const PROGRAM: &str = "escapes/exhaust.py";
const PORT: u16 = 7100;

/// Vector 56.
#[test]
fn a_destination_that_there_is_no_room_for_is_refused() {
    let run = |world: &World| {
        world.serve_outside(PORT);
        let variables = [("PORT", "7100")];
        world.start_as(Rights::Nobody, &variables, PROGRAM, &["keys"]).wait()
    };
    let Some(free) = World::new(State::Off) else { return };
    let control = run(&free);
    // The socket demands signed answers by then, so that it gets none: what counts is that its packet is out.
    assert!(control.ok().starts_with("keys True ENOMEM\n"), "the control: {control:#?}");
    free.wait_for_frame("the control", |f| f.packet().is_some_and(|(_, _, _, to)| to == PORT));
    drop(free);
    for (state, said) in [
        (State::Governed, "ECONNREFUSED"),
        (State::Only(&[Redirect]), "ECONNREFUSED"),
        (State::Only(&[Egress]), "TimeoutError"),
        (State::Only(&[Wire]), "TimeoutError"),
    ] {
        let world = World::new(state).expect("there was one already");
        assert_eq!(run(&world).ok(), format!("keys True ENOMEM\nkeys {said}\n"), "{state:?}");
        world.assert_nothing_arrived(&format!("exhausted storage in {state:?}"));
    }
}

/// Vector 57: while the gateway takes nothing, the table of connections fills up; what has no record is reset, and
/// nothing goes out instead.
#[test]
fn a_flood_of_connections_gets_nothing_out_and_nothing_wrongly_addressed() {
    let Some(world) = World::new(State::Governed) else { return };
    world.signal_daemon(Signal::SIGSTOP);
    let said = world.start_as(Rights::Nobody, &[], PROGRAM, &["flood"]).wait();
    assert_eq!(said.ok(), "flood EINPROGRESS\n");
    world.signal_daemon(Signal::SIGCONT);
    world.assert_nothing_arrived("a flood");
    let audit = world.path("audit.jsonl");
    crate::common::wait_until("the flood is worked off", || {
        let said = world.start_as(Rights::Nobody, &[("PORT", "80")], PROGRAM, &["one"]).wait();
        said.stdout.contains("HTTP/1.1")
    });
    let audit = std::fs::read_to_string(audit).unwrap();
    assert!(!audit.contains("\"decision\":\"allow\""), "nothing of it is allowed");
    assert!(audit.contains("flow_table_full"), "the table was full");
    world.assert_nothing_arrived("the end of a flood");
}
