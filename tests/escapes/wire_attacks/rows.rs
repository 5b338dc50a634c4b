//! What each attempt must come to, as a table, and its proof.

use std::path::Path;

use super::programs::{Programs, programs};
use crate::common::wait_until;
use crate::layers::{Layer, State};
use crate::tap::{Frame, Point};
use crate::workload::Rights;
use crate::world::{MARKER, NEAR, World};

/// One attempt, and how it goes.
pub(super) struct Row {
    /// What the program calls it.
    pub(super) name: &'static str,
    pub(super) rights: Rights,
    /// How its frames are known.
    pub(super) sign: Sign,
    /// Its steps where nothing stops it.
    pub(super) free: &'static str,
    /// Its steps when it is governed.
    pub(super) governed: &'static str,
}

/// How a frame of an attempt is known.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sign {
    /// It holds the marker.
    Marker,
    /// It holds the marker, or goes to the port of the attempt: a SYN carries nothing.
    MarkerOrPort,
    /// It holds as much of the marker as there is room for, behind some bytes of the protocol.
    Part(&'static [u8], usize),
}

impl Sign {
    pub(super) fn is_on(self, frame: &Frame, name: &str, port: u16) -> bool {
        let marker = marker(name);
        match self {
            Self::Marker => frame.contains(marker.as_bytes()),
            Self::MarkerOrPort => {
                frame.contains(marker.as_bytes())
                    || frame.packet().is_some_and(|(_, _, _, to)| to == port)
            }
            Self::Part(before, length) => {
                frame.contains(&[before, &marker.as_bytes()[..length]].concat())
            }
        }
    }
}

/// The destination port of the first row; each has its own.
pub(super) const FIRST_PORT: u16 = 7600;

/// Proves every row: it arrives without Tollgate; governed, not one frame does; in each state of `alone`, in which one
/// of the `closers` is left, neither; and with everything but the closers it arrives again.
pub(super) fn prove(closers: &'static [Layer], alone: &[State], rows: &[Row]) {
    let Some(programs) = programs() else { return };
    let rows: Vec<&Row> = rows.iter().filter(|row| programs.can_run(row.name)).collect();
    let Some(free) = Trial::new(programs, State::Off) else { return };
    for (row, port) in rows.iter().zip(FIRST_PORT..) {
        assert_eq!(free.arrives(row, port), row.free, "{} without Tollgate", row.name);
    }
    drop(free);
    let governed = Trial::new(programs, State::Governed).expect("there was one already");
    for (row, port) in rows.iter().zip(FIRST_PORT..) {
        assert_eq!(governed.is_held(row, port), row.governed, "{} governed", row.name);
    }
    governed.all_held();
    drop(governed);
    for state in alone {
        let trial = Trial::new(programs, *state).expect("there was one already");
        for (row, port) in rows.iter().zip(FIRST_PORT..) {
            trial.is_held(row, port);
        }
        trial.all_held();
    }
    let open = Trial::new(programs, State::GovernedBut(closers)).expect("there was one already");
    for (row, port) in rows.iter().zip(FIRST_PORT..) {
        open.arrives(row, port);
    }
}

/// A world, and in which state it is.
pub(super) struct Trial {
    pub(super) world: World,
    pub(super) programs: &'static Programs,
    pub(super) state: State,
}

impl Trial {
    pub(super) fn new(programs: &'static Programs, state: State) -> Option<Self> {
        Some(Self { world: World::new(state)?, programs, state })
    }

    /// Runs the attempt, waits until a frame of it has arrived, and gives its steps.
    pub(super) fn arrives(&self, row: &Row, port: u16) -> String {
        self.world.serve_outside(port);
        let said = self.attempt(row.name, row.rights, port);
        let what = format!("{} arrives in {:?}: {said}", row.name, self.state);
        wait_until(&what, || self.has_arrived(|frame| row.sign.is_on(frame, row.name, port)));
        said
    }

    /// Runs the attempt, finds that nothing has arrived, and gives its steps.
    pub(super) fn is_held(&self, row: &Row, port: u16) -> String {
        self.world.serve_outside(port);
        let said = self.attempt(row.name, row.rights, port);
        let after = format!("{} in {:?}: {said}", row.name, self.state);
        self.world.assert_nothing_arrived(&after);
        let signed = self.has_arrived(|frame| row.sign.is_on(frame, row.name, port));
        assert!(!signed, "a frame after {after}");
        said
    }

    /// What the kernel sends again, or late, counts as well.
    pub(super) fn all_held(&self) {
        self.world.assert_nothing_arrived(&format!("everything in {:?}", self.state));
    }

    /// Whether such a frame is past the fence, the upkeep of a link included.
    pub(super) fn has_arrived(&self, matches: impl Fn(&Frame) -> bool) -> bool {
        self.world.frames().iter().any(|frame| frame.at != Point::Offered && matches(frame))
    }

    /// Runs one attempt in the workload to its end, and gives its steps as `socket OK, sendto EPERM`.
    pub(super) fn attempt(&self, name: &str, rights: Rights, port: u16) -> String {
        let (program, word) = self.programs.of(name);
        let words = words(word, "eth0", NEAR, &marker(name), port);
        let said = self.world.start_as(rights, &[], text(program), &strs(&words)).wait();
        steps(said.ok())
    }
}

/// The command line that every attack program understands.
pub(super) fn words(
    name: &str,
    device: &str,
    to: [&str; 2],
    marker: &str,
    port: u16,
) -> Vec<String> {
    let port = port.to_string();
    let [to, to6] = to;
    [name, "--device", device, "--to", to, "--to6", to6, "--marker", marker, "--port", &port]
        .map(str::to_owned)
        .to_vec()
}

pub(super) fn marker(name: &str) -> String {
    let name = name.rsplit(' ').next().unwrap_or_default();
    format!("{}{name}", MARKER.escape_ascii())
}

/// What a program printed, without its name and the marks of JSON.
pub(super) fn steps(line: &str) -> String {
    let line = line.trim().trim_start_matches('{').trim_end_matches('}');
    let (_name, steps) = line.split_once(',').unwrap_or((line, ""));
    steps.replace('"', "").replace(':', " ").replace(',', ", ")
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("the checkout has a name in UTF-8")
}

pub(super) fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}
