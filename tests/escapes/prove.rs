//! What a vector is and is not able to do, as a table: free, governed, and with one layer alone.

use crate::common::running::Ended;
use crate::layers::{Layer, State};
use crate::tap::Frame;
use crate::workload::Rights;
use crate::world::{MARKER, World};

/// One way to send something out, and what becomes of it.
pub(crate) struct Attempt {
    /// The word that its payload carries after [`MARKER`].
    pub(crate) name: &'static str,
    pub(crate) rights: Rights,
    /// The program below `tests/fixtures`, and its arguments.
    pub(crate) program: &'static str,
    pub(crate) arguments: &'static [&'static str],
    /// What it prints where nothing stops it; it must arrive then. In all three outputs, its name and a space may be
    /// left out when it is the only line.
    pub(crate) free: &'static str,
    /// What it prints when governed.
    pub(crate) governed: &'static str,
    /// Each layer that closes it by itself, and what it prints then.
    pub(crate) alone: &'static [(Layer, &'static str)],
}

/// The destination port of the first attempt of a table; each has one of its own, so that a SYN without a payload can
/// be told from another's.
const FIRST_PORT: u16 = 7100;

/// Proves every row: it arrives without Tollgate; governed, not one frame does; and each layer that it names holds
/// alone.
pub(crate) fn prove(attempts: &[Attempt]) {
    prove_against(State::Off, attempts);
}

/// The same, with `control` as the state in which every row must arrive.
pub(crate) fn prove_against(control: State, attempts: &[Attempt]) {
    let Some(free) = World::new(control) else { return };
    for (attempt, port) in attempts.iter().zip(FIRST_PORT..) {
        free.serve_outside(port);
        let said = run(&free, attempt, port);
        attempt.check(&said, attempt.free, control);
        let what = format!("{} arrives in {control:?}: {said:#?}", attempt.name);
        free.wait_for_frame(&what, |frame| is_of(frame, attempt, port));
    }
    drop(free);
    check(State::Governed, attempts, |attempt| Some(attempt.governed));
    for layer in Layer::ALL {
        let alone = |attempt: &Attempt| {
            attempt.alone.iter().find(|(named, _)| *named == layer).map(|(_, said)| *said)
        };
        if attempts.iter().any(|attempt| alone(attempt).is_some()) {
            check(only(layer), attempts, alone);
        }
    }
}

/// Proves that in `state` too every row prints what it prints when governed, and not one frame of it arrives.
pub(crate) fn prove_closed_in(state: State, attempts: &[Attempt]) {
    if crate::common::is_privileged() {
        check(state, attempts, |attempt| Some(attempt.governed));
    }
}

/// In one world in `state`, runs the rows for which `expected` says what they print; nothing of them may arrive.
fn check(state: State, attempts: &[Attempt], expected: impl Fn(&Attempt) -> Option<&'static str>) {
    let world = World::new(state).expect("there was one already");
    for (attempt, port) in attempts.iter().zip(FIRST_PORT..) {
        let Some(expected) = expected(attempt) else { continue };
        world.serve_outside(port);
        let said = run(&world, attempt, port);
        attempt.check(&said, expected, state);
        world.assert_nothing_arrived(&format!("{} in {state:?}", attempt.name));
    }
    // What the kernel sends again, or late, counts as well.
    world.assert_nothing_arrived(&format!("everything in {state:?}"));
}

impl Attempt {
    #[track_caller]
    fn check(&self, said: &Ended, expected: &str, state: State) {
        let whole = format!("{} {expected}\n", self.name);
        let as_expected = said.stdout == expected || said.stdout == whole;
        assert!(as_expected, "{} in {state:?}: {said:#?}, expected {expected:?}", self.name);
    }
}

fn run(world: &World, attempt: &Attempt, port: u16) -> Ended {
    let marker = format!("{}{}", MARKER.escape_ascii(), attempt.name);
    let port = port.to_string();
    let variables = [("MARKER", marker.as_str()), ("PORT", port.as_str())];
    let said =
        world.start_as(attempt.rights, &variables, attempt.program, attempt.arguments).wait();
    assert_eq!(said.code, Some(0), "{} did not run to its end: {said:#?}", attempt.name);
    said
}

fn is_of(frame: &Frame, attempt: &Attempt, port: u16) -> bool {
    frame.contains(&[MARKER, attempt.name.as_bytes()].concat())
        || frame.packet().is_some_and(|(_, _, _, to)| to == port)
}

const fn only(layer: Layer) -> State {
    match layer {
        Layer::Redirect => State::Only(&[Layer::Redirect]),
        Layer::Sockets => State::Only(&[Layer::Sockets]),
        Layer::Ports => State::Only(&[Layer::Ports]),
        Layer::Egress => State::Only(&[Layer::Egress]),
        Layer::Ingress => State::Only(&[Layer::Ingress]),
        Layer::Wire => State::Only(&[Layer::Wire]),
    }
}
