//! What holds when the daemon is dead: what it has pinned.

use crate::layers::Layer::{Egress, Redirect, Wire};
use crate::layers::State;
use crate::workload::Rights;
use crate::world::{MARKER, World};

const PORT: u16 = 7100;

/// A program, and for each of its words what the kernel says where nobody listens.
type Tried = (Rights, &'static str, &'static [(&'static str, &'static str)]);

const TRIED: [Tried; 4] = [
    (
        Rights::Nobody,
        "escapes/connects.py",
        &[
            ("tcp4-far", "ECONNREFUSED"),
            ("tcp6-far", "ECONNREFUSED"),
            ("tcp-mapped", "ECONNREFUSED"),
            ("udp4-sent", "ECONNREFUSED"),
            ("udp6-connected", "ECONNREFUSED"),
            ("fast-open4", "ECONNREFUSED"),
            ("mptcp4", "EPROTONOSUPPORT"),
        ],
    ),
    (
        Rights::Nobody,
        "escapes/devices.py",
        &[("info4-loopback", "EPERM"), ("unicast4-loopback", "EPERM"), ("before4-far", "EPERM")],
    ),
    (
        Rights::Docker,
        "escapes/families.py",
        &[
            ("udplite4", "EPROTONOSUPPORT"),
            ("ping4", "EPROTONOSUPPORT"),
            ("raw4", "EPROTONOSUPPORT"),
        ],
    ),
    (Rights::Docker, "escapes/listener.py", &[("freebind6", "TimeoutError"), ("query6", "ok")]),
];

#[test]
fn a_killed_daemon_leaves_everything_closed() {
    let Some(mut world) = World::new(State::Governed) else { return };
    world.serve_outside(PORT);
    world.kill_daemon();
    let variables = [("PORT", "7100"), ("MARKER", "escape:dead")];
    for (rights, program, attempts) in TRIED {
        let words: Vec<&str> = attempts.iter().map(|(word, _)| *word).collect();
        let said = world.start_as(rights, &variables, program, &words).wait();
        let lines = attempts.iter().map(|(word, said)| format!("{word} {said}\n"));
        assert_eq!(said.ok(), lines.collect::<String>(), "{program}");
    }
    world.assert_nothing_arrived("everything that was tried");
}

/// The control: it is what is pinned that holds, not that nobody is there.
#[test]
fn what_is_no_longer_pinned_holds_nothing_after_the_daemon() {
    let Some(mut world) = World::new(State::GovernedBut(&[Redirect, Wire, Egress])) else {
        return;
    };
    world.serve_outside(PORT);
    world.kill_daemon();
    let variables = [("PORT", "7100"), ("MARKER", "escape:dead")];
    let said = world.start_as(Rights::Nobody, &variables, "escapes/connects.py", &["udp4-sent"]);
    said.wait().ok();
    world.wait_for_frame("the control", |frame| frame.contains(&[MARKER, b"dead"].concat()));
}
