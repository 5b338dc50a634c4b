//! Vectors 35 and 38 to 42: sockets from elsewhere or from before, and processes that go elsewhere.

use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::common::running::Running;
use crate::layers::Layer::{self, Egress, Redirect, Wire};
use crate::layers::State;
use crate::prove::{Attempt, prove};
use crate::workload::{Rights, TestCgroup};
use crate::world::{MARKER, World};

const PROGRAM: &str = "escapes/places.py";
const PORT: u16 = 7100;
const VARIABLES: [(&str, &str); 2] = [("MARKER", "escape:"), ("PORT", "7100")];

fn start(world: &World, word: &str) -> Running {
    world.start_as(Rights::Docker, &VARIABLES, PROGRAM, &[word])
}

/// Starts it in a cgroup that nobody governs, in the workload's network.
fn start_elsewhere(world: &World, cgroup: &TestCgroup, word: &str) -> Running {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/");
    let mut command = world.workload.command_in(cgroup.path(), Rights::Docker);
    command.args(["/usr/bin/python3", &format!("{fixtures}{PROGRAM}"), word]).envs(VARIABLES);
    world.spawn(command)
}

fn go(world: &World) {
    fs::write(world.path("go"), "").unwrap();
}

fn marked(world: &World, word: &str) -> bool {
    world.arrived().iter().any(|frame| frame.contains(&[MARKER, word.as_bytes()].concat()))
}

/// Vector 38: what was made before anything governed.
#[test]
fn sockets_from_before_the_capture_are_cut_off_with_their_open_connections() {
    let words = ["flow", "known", "free", "lite", "raw"];
    for state in [State::Off, State::Governed, State::Only(&[Egress]), State::Only(&[Wire])] {
        let Some(mut world) = World::ungoverned() else { return };
        world.serve_outside(PORT);
        let mut attack = start(&world, "before");
        attack.wait_until_printed("ready");
        world.govern(state);
        go(&world);
        let said = attack.wait();
        said.ok();
        if state == State::Off {
            for word in words {
                world.wait_for_frame(word, |f| f.contains(&[MARKER, word.as_bytes()].concat()));
            }
            assert!(said.stdout.contains("idle an answer from outside"), "{said:#?}");
        } else {
            world.assert_nothing_arrived(&format!("{said:#?} in {state:?}"));
        }
    }
}

/// Vector 38: by SCM_RIGHTS from a process that is not governed. No hook sees such a socket.
#[test]
fn a_socket_that_another_process_hands_over_stays_behind_the_wire_fence() {
    for state in [State::GovernedBut(&[Wire]), State::Governed, State::Only(&[Wire])] {
        let Some(mut world) = World::ungoverned() else { return };
        world.serve_outside(PORT);
        world.govern(state);
        let elsewhere = TestCgroup::beside(&world.workload);
        let mut donor = start_elsewhere(&world, &elsewhere, "give");
        donor.wait_until_printed("ready");
        let said = start(&world, "take").wait();
        assert!(said.ok().starts_with("known ok\n"), "{said:#?}");
        if state == State::GovernedBut(&[Wire]) {
            assert!(marked(&world, "known"), "the control: {said:#?}");
            assert!(said.stdout.contains("stream an answer from outside"), "{said:#?}");
        } else {
            assert!(said.stdout.contains("stream TimeoutError"), "{said:#?}");
            world.assert_nothing_arrived(&format!("{said:#?} in {state:?}"));
        }
    }
}

/// Vector 38: by exec. The process is moved into the workload with a socket from outside it.
#[test]
fn a_socket_that_a_program_inherits_stays_behind_the_wire_fence() {
    for state in [State::GovernedBut(&[Wire]), State::Governed, State::Only(&[Wire])] {
        let Some(mut world) = World::ungoverned() else { return };
        world.govern(state);
        let elsewhere = TestCgroup::beside(&world.workload);
        let mut attack = start_elsewhere(&world, &elsewhere, "inherit");
        attack.wait_until_printed("ready");
        world.workload.cgroup.take(attack.pid());
        go(&world);
        let said = attack.wait();
        assert_eq!(said.ok(), "ready\ninherited ok\n");
        if state == State::GovernedBut(&[Wire]) {
            assert!(marked(&world, ""), "the control: {said:#?}");
        } else {
            world.assert_nothing_arrived(&format!("{said:#?} in {state:?}"));
        }
    }
}

/// Vector 41: whoever can move a process out of its cgroup leaves the hooks behind for what it makes then, not for what
/// it has.
#[test]
fn a_process_that_is_moved_out_stays_behind_the_wire_fence_and_its_sockets_behind_all() {
    for state in [State::GovernedBut(&[Wire]), State::Governed, State::Only(&[Wire])] {
        let Some(mut world) = World::ungoverned() else { return };
        world.serve_outside(PORT);
        world.govern(state);
        let elsewhere = TestCgroup::beside(&world.workload);
        let mut attack = start(&world, "migrate");
        attack.wait_until_printed("ready");
        elsewhere.take(attack.pid());
        go(&world);
        let said = attack.wait();
        let [old, new] = match state {
            State::GovernedBut(_) => {
                [["ECONNREFUSED", "no answer"], ["ok", "an answer from outside"]]
            }
            State::Only(_) => [["ok", "TimeoutError"], ["ok", "TimeoutError"]],
            _governed => [["ECONNREFUSED", "no answer"], ["ok", "TimeoutError"]],
        };
        let expected = format!(
            "ready\nold-datagram {}\nold-stream {}\nnew-datagram {}\nnew-stream {}\n",
            old[0], old[1], new[0], new[1]
        );
        assert_eq!(said.ok(), expected, "{state:?}");
        if state == State::GovernedBut(&[Wire]) {
            assert!(marked(&world, ""), "the control: {said:#?}");
        } else {
            world.assert_nothing_arrived(&format!("{said:#?} in {state:?}"));
        }
    }
}

/// Vector 40.
#[test]
fn a_cgroup_of_its_own_making_does_not_free_a_process() {
    const fn row(
        name: &'static str,
        arguments: &'static [&'static str],
        [free, governed]: [&'static str; 2],
        alone: &'static [(Layer, &'static str)],
    ) -> Attempt {
        Attempt { name, rights: Rights::Docker, program: PROGRAM, arguments, free, governed, alone }
    }
    prove(&[
        row(
            "child-stream",
            &["child-stream"],
            ["an answer from outside", "no answer"],
            &[(Redirect, "no answer"), (Egress, "TimeoutError")],
        ),
        row(
            "child-datagram",
            &["child-datagram"],
            ["ok", "ECONNREFUSED"],
            &[(Redirect, "ECONNREFUSED"), (Egress, "EPERM")],
        ),
    ]);
}

/// Vector 42.
#[test]
fn a_nested_network_namespace_has_no_way_out_and_nothing_in_it_is_governed_open() {
    let Some(free) = World::new(State::Off) else { return };
    let control = start(&free, "nested").wait();
    let unreachable = "ENETUNREACH";
    assert_eq!(
        control.ok(),
        format!(
            "own-port ok\nown ok\nfar {unreachable}\ndatagram {unreachable}\nown-datagram ok\ndevices lo\npacket ok\n"
        ),
        "the control"
    );
    drop(free);
    let world = World::new(State::Governed).expect("there was one already");
    let said = start(&world, "nested").wait();
    let refused = "ECONNREFUSED";
    assert_eq!(
        said.ok(),
        format!(
            "own-port ok\nown {refused}\nfar {refused}\ndatagram {refused}\nown-datagram {refused}\ndevices lo\npacket ok\n"
        )
    );
    world.assert_nothing_arrived("nested namespaces");
}

/// Vector 35: a socket without a file is reached by its network namespace, so a workload reaches its own alone. One
/// with a file is reached where it is mounted, which discovery names.
#[test]
fn a_local_socket_of_the_host_is_not_the_workloads() {
    let Some(world) = World::new(State::Governed) else { return };
    let name = format!("engine-{}", std::process::id());
    let address = name.clone();
    let _engine = world.host.run(move || {
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&address).unwrap()).unwrap()
    });
    let code = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\n\
                try: s.connect(chr(0) + sys.argv[1]); print('connected')\n\
                except OSError as error: print(error.strerror)";
    let mut free = std::process::Command::new("/usr/bin/python3");
    free.args(["-c", code, &name]);
    assert_eq!(world.spawn(free).wait().ok(), "connected\n", "the control");
    let mut command = world.workload.command(Rights::Docker);
    command.args(["/usr/bin/python3", "-c", code, &name]);
    assert_eq!(world.spawn(command).wait().ok(), "Connection refused\n");
    let mut mounted = world.workload.command(Rights::Docker);
    mounted.args(["sh", "-c", "find /run -type s"]);
    assert_eq!(world.spawn(mounted).wait().ok(), "", "the host's sockets are not mounted");
}
