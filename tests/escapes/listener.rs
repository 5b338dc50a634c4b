//! Vectors 22 to 24, 43 to 45 and 48 to 50: the gateway's own sockets inside the workload's network, and what the
//! workload has there itself.

use std::net::IpAddr;

use gateway::capture::NamespaceError;

use crate::common::running::Running;
use crate::layers::Layer::{self, Egress, Ingress, Ports, Redirect, Wire};
use crate::layers::State;
use crate::prove::{Attempt, prove};
use crate::tap::Frame;
use crate::workload::{Rights, TestCgroup};
use crate::world::World;

const PROGRAM: &str = "escapes/listener.py";
/// What the spoofing programs give as their own addresses.
const SPOOFED: [&str; 2] = ["203.0.113.201", "2001:db8:3::201"];

const fn row(
    name: &'static str,
    rights: Rights,
    arguments: &'static [&'static str],
    [free, governed]: [&'static str; 2],
    alone: &'static [(Layer, &'static str)],
) -> Attempt {
    Attempt { name, rights, program: PROGRAM, arguments, free, governed, alone }
}

fn start_elsewhere(world: &World, cgroup: &TestCgroup, word: &str) -> Running {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/");
    let mut command = world.workload.command_in(cgroup.path(), Rights::Docker);
    command.args(["/usr/bin/python3", &format!("{fixtures}{PROGRAM}"), word]);
    let mut running = world.spawn(command);
    running.wait_until_printed("ready");
    running
}

/// Vectors 22 and 23: the connection comes to the gateway from an address of somebody outside, who is to be answered.
#[test]
fn a_spoofed_source_gets_nothing_out_of_the_workload_nor_out_of_the_gateway() {
    const STREAM: &[(Layer, &str)] =
        &[(Redirect, "TimeoutError"), (Egress, "TimeoutError"), (Wire, "TimeoutError")];
    // The gateway is bound to `lo`: its answer stays there, where the socket takes it.
    const ANSWERED: &[(Layer, &str)] =
        &[(Redirect, "ok"), (Egress, "TimeoutError"), (Wire, "TimeoutError")];
    const DATAGRAM: &[(Layer, &str)] =
        &[(Redirect, "ECONNREFUSED"), (Egress, "EPERM"), (Wire, "ok")];
    let streams = ["TimeoutError", "TimeoutError"];
    let datagrams = ["ok", "ECONNREFUSED"];
    prove(&[
        row("transparent4", Rights::Docker, &["transparent4"], ["TimeoutError", "ok"], ANSWERED),
        row("transparent6", Rights::Docker, &["transparent6"], streams, STREAM),
        row("freebind6", Rights::Nobody, &["freebind6"], streams, STREAM),
        row("datagram4", Rights::Docker, &["datagram4"], datagrams, DATAGRAM),
        row("datagram6", Rights::Nobody, &["datagram6"], datagrams, DATAGRAM),
    ]);
}

/// Vector 22: the kernel itself does not route a connection of IPv4 from an address that is only bound.
#[test]
fn an_address_that_is_only_bound_connects_nowhere_in_ipv4() {
    let Some(free) = World::new(State::Off) else { return };
    assert_eq!(free.attack(PROGRAM, &["freebind4"]).ok(), "freebind4 ENETUNREACH\n");
    let world = World::new(State::Governed).expect("there was one already");
    assert_eq!(world.attack(PROGRAM, &["freebind4"]).ok(), "freebind4 ENETUNREACH\n");
    world.assert_nothing_arrived("a bound address");
}

/// Vector 23: the answer is the server's, not the workload's: only the server can hold it back, by its binding to `lo`.
#[test]
fn the_answer_to_a_spoofed_source_would_leave_by_a_server_that_is_not_bound_to_the_loopback() {
    let attempts = ["reflect6", "reflect-datagram4", "reflect-datagram6"];
    for (server, state, leaves) in [
        ("serve-careless", State::GovernedBut(&[Wire]), true),
        ("serve-careful", State::GovernedBut(&[Wire]), false),
        ("serve-careless", State::Governed, false),
    ] {
        let Some(world) = World::new(state) else { return };
        let elsewhere = TestCgroup::beside(&world.workload);
        let _server = start_elsewhere(&world, &elsewhere, server);
        let said = world.attack(PROGRAM, &attempts);
        assert!(said.ok().contains("reflect-datagram6 ok"), "{said:#?}");
        if leaves {
            for spoofed in SPOOFED {
                world.wait_for_frame(&format!("{spoofed}: {said:#?}"), |f| is_to(f, spoofed));
            }
        } else {
            world.assert_nothing_arrived(&format!("{said:#?} at {server} in {state:?}"));
        }
    }
}

fn is_to(frame: &Frame, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    frame.packet().is_some_and(|(_, to, _, _)| to == address)
}

/// Vector 24: without the wire's fence, so that only the gateway's own binding holds its answers.
#[test]
fn the_gateways_resolver_does_not_answer_a_spoofed_source_by_the_wire() {
    for state in [State::GovernedBut(&[Wire]), State::Governed] {
        let Some(world) = World::new(state) else { return };
        let said = world.attack(PROGRAM, &["query4", "query6"]);
        assert_eq!(said.ok(), "query4 ok\nquery6 ok\n");
        // The same question from the own address is answered: the resolver is there.
        let asked = world.attack(PROGRAM, &["ask-datagram"]);
        assert_eq!(asked.ok(), "ask-datagram somebody else\n");
        world.assert_nothing_arrived(&format!("spoofed queries in {state:?}"));
    }
}

/// Vector 43.
#[test]
fn the_gateways_place_cannot_be_taken_while_the_daemon_is_dead() {
    let Some(mut open) = World::new(State::GovernedBut(&[Ports, Ingress])) else { return };
    open.kill_daemon();
    let mut thief = open.start(PROGRAM, &["serve-stolen"]);
    thief.wait_until_printed("ready");
    let robbed = open.start_as(Rights::Nobody, &[], "escapes/connects.py", &["tcp4-far"]).wait();
    assert_eq!(robbed.ok(), "tcp4-far stolen\n", "the control");
    drop((thief, open));

    let mut world = World::new(State::Governed).expect("there was one already");
    let tried = |world: &World| world.attack(PROGRAM, &["impersonate"]).ok().to_owned();
    assert!(
        tried(&world).lines().all(|line| line.ends_with("EPERM") || line.ends_with("EADDRINUSE"))
    );
    world.kill_daemon();
    let said = tried(&world);
    assert_eq!(said.lines().filter(|line| line.ends_with("EPERM")).count(), 8, "{said}");
    let refused = world.attack("escapes/connects.py", &["tcp4-far", "tcp6-far", "udp4-sent"]);
    assert_eq!(
        refused.ok(),
        "tcp4-far ECONNREFUSED\ntcp6-far ECONNREFUSED\nudp4-sent ECONNREFUSED\n"
    );
    world.assert_nothing_arrived("a dead daemon");
}

/// Vector 43: without a bind, the kernel chooses the port, from a range that the socket may narrow to one. Engines are
/// often told to widen the range for all.
#[test]
fn a_port_that_the_kernel_chooses_is_not_the_gateways() {
    for (state, stolen) in [(State::GovernedBut(&[Ingress]), true), (State::Governed, false)] {
        let Some(mut world) = World::new(state) else { return };
        let widened: Result<(), NamespaceError> = world.workload.namespace.run(|| {
            let range = "/proc/sys/net/ipv4/ip_local_port_range";
            std::fs::write(range, "1024 65535").unwrap();
            Ok(())
        });
        widened.unwrap();
        world.kill_daemon();
        let mut thief = world.start(PROGRAM, &["serve-unbound"]);
        thief.wait_until_printed("ready");
        if thief.stdout().starts_with("ENOPROTOOPT") {
            println!("this kernel does not let a socket narrow its range of ports (before 6.3)");
            return;
        }
        assert!(thief.stdout().contains("listens on 10255\n"), "{}", thief.stdout());
        assert!(thief.stdout().contains("hears on 10255\n"), "{}", thief.stdout());
        let asks = [("escapes/connects.py", "tcp4-far"), (PROGRAM, "ask-datagram")];
        for (program, word) in asks {
            let robbed = world.start_as(Rights::Nobody, &[], program, &[word]).wait();
            let expected = if stolen { "stolen" } else { "TimeoutError" };
            assert_eq!(robbed.ok(), format!("{word} {expected}\n"), "{state:?}");
        }
    }
}

/// Vector 44.
#[test]
fn the_gateways_port_cannot_be_connected_to_directly() {
    let Some(open) = World::new(State::GovernedBut(&[Redirect])) else { return };
    let control = open.attack(PROGRAM, &["direct"]);
    // The gateway resets what no hook has recorded, at times before the connect has returned.
    let reached = |line: &&str| line.ends_with(" ok") || line.ends_with(" ECONNRESET");
    assert_eq!(control.ok().lines().filter(reached).count(), 11, "the control: {control:#?}");
    drop(open);
    let world = World::new(State::Governed).expect("there was one already");
    let said = world.attack(PROGRAM, &["direct"]);
    assert_eq!(said.ok().matches(" ECONNREFUSED\n").count(), 12, "{said:#?}");
    world.assert_nothing_arrived("direct connects");
}

/// Vector 45: where the handshake succeeds, it is worth nothing.
#[test]
fn a_handshake_that_is_made_of_frames_has_no_destination_and_is_reset() {
    let Some(world) = World::new(State::Governed) else { return };
    let said = world.attack(PROGRAM, &["handshake"]);
    assert_eq!(said.ok(), "no answer\n", "the kernel takes no frame for 127/8");
    let opened: Result<(), NamespaceError> = world.workload.namespace.run(|| {
        std::fs::write("/proc/sys/net/ipv4/conf/lo/route_localnet", "1").unwrap();
        Ok(())
    });
    opened.unwrap();
    let said = world.attack(PROGRAM, &["handshake"]);
    assert_eq!(said.ok(), "handshake SYN-ACK\nended by RST after 0 bytes\n");
    world.assert_nothing_arrived("a handshake by hand");
    let audit = std::fs::read_to_string(world.path("audit.jsonl")).unwrap();
    assert!(audit.contains("no_flow_record"), "{audit}");
}

/// Vector 48.
#[test]
fn the_workloads_own_loopback_is_its_own() {
    for state in [State::Off, State::Governed] {
        let Some(world) = World::new(state) else { return };
        let said = world.attack(PROGRAM, &["local"]);
        assert_eq!(said.ok().matches(" own\n").count(), 12, "{state:?}: {said:#?}");
    }
}

/// Vector 49.
#[test]
fn the_workloads_own_address_on_the_device_is_its_own_and_nothing_of_it_leaves() {
    for state in [State::Off, State::Governed] {
        let Some(world) = World::new(state) else { return };
        assert_eq!(world.attack(PROGRAM, &["own-address"]).ok(), "own-address own\n", "{state:?}");
        world.assert_nothing_arrived("the own address");
    }
}

/// Vector 50.
#[test]
fn a_resolver_that_an_engine_puts_on_the_loopback_is_not_asked() {
    for (state, answers) in [
        (State::Off, "the engine"),
        (State::Governed, "somebody else"),
        (State::Only(&[Redirect]), "somebody else"),
    ] {
        let Some(world) = World::new(state) else { return };
        let elsewhere = TestCgroup::beside(&world.workload);
        let _engine = start_elsewhere(&world, &elsewhere, "engine");
        let said = world.attack(PROGRAM, &["ask-stream", "ask-datagram"]);
        assert_eq!(
            said.ok(),
            format!("ask-stream {answers}\nask-datagram {answers}\n"),
            "{state:?}"
        );
    }
}
