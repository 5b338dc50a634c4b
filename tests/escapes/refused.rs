//! Vectors 43 and 51: a workload that cannot be held is closed and stays so.

use std::process::Command;

use crate::governor::Governor;
use crate::workload::Rights;
use crate::world::{FAR, MARKER, World};

/// A process of the workload's cgroup in the host's own network, as with `--network host`, that sends one datagram.
fn send_from_host(world: &World, word: &str) -> String {
    let code = "import os, socket, sys\n\
                open(sys.argv[1] + '/cgroup.procs', 'w').write('0')\n\
                try: socket.socket(2, 2).sendto(sys.argv[2].encode(), (sys.argv[3], 7100)); print('ok')\n\
                except OSError as error: print(error.strerror)";
    let mut command = Command::new("/usr/bin/python3");
    let text = format!("{}{word}", MARKER.escape_ascii());
    command.args(["-c", code]).arg(world.workload.cgroup.path()).args([&text, FAR[0]]);
    world.spawn(command).wait().ok().to_owned()
}

/// Vector 51.
#[test]
fn a_workload_in_the_hosts_network_is_closed_and_not_opened() {
    let Some(world) = World::ungoverned() else { return };
    // Nobody of the workload is left in a network of its own.
    world.end_resident();
    let mut waits = Command::new("sh");
    let script = "echo $$ > \"$1/cgroup.procs\"; echo up; exec sleep infinity";
    waits.args(["-c", script, "sh"]).arg(world.workload.cgroup.path());
    let mut resident = world.spawn(waits);
    resident.wait_until_printed("up");

    assert_eq!(send_from_host(&world, "before"), "ok\n");
    world.wait_for_frame("the control", |frame| frame.contains(b"escape:before"));
    let refuses = "the host's network namespace";
    let _daemon = Governor::start_until(refuses, &world.host, &world.workload, &world.path(""));
    assert_eq!(send_from_host(&world, "after"), "Connection refused\n");
    let arrived = world.arrived();
    assert!(!arrived.iter().any(|frame| frame.contains(b"escape:after")), "{arrived:#?}");
}

/// Vector 43: the gateway's place was taken before there was a gateway.
#[test]
fn a_workload_that_has_taken_the_gateways_port_beforehand_is_closed_and_not_opened() {
    let Some(world) = World::ungoverned() else { return };
    world.serve_outside(7100);
    let connect = |expected: &str| {
        let variables = [("PORT", "7100"), ("MARKER", "escape:")];
        let program = "escapes/connects.py";
        let said = world.start_as(Rights::Nobody, &variables, program, &["tcp4-far"]).wait();
        assert_eq!(said.ok(), format!("tcp4-far {expected}\n"));
    };
    connect("an answer from outside");
    let mut squatter = world.start("escapes/listener.py", &["serve-stolen"]);
    squatter.wait_until_printed("ready");
    let refuses = "port 10255 is taken in the workload's network namespace";
    let _daemon = Governor::start_until(refuses, &world.host, &world.workload, &world.path(""));
    let before = world.arrived().len();
    connect("ECONNREFUSED");
    assert_eq!(world.arrived().len(), before);
}
