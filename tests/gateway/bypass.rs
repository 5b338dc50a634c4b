//! Ways around the gateway: refused by the kernel, and not a frame on the wire.

use crate::client::{fixture, python};
use crate::common::has_program;
use crate::common::world::{FORBIDDEN_V4, FORBIDDEN_V6, World};

const OPEN: &str = "[[agent]]\nname = \"worker\"\ndefault = \"allow\"\n";

#[test]
fn nothing_but_tcp_leaves_and_not_a_frame_arrives() {
    let Some(world) = World::new().filter(|_| has_program("python3")) else { return };
    world.configure(OPEN);
    let probes = fixture("probes.py");
    let probes = [python(), &probes, FORBIDDEN_V4, FORBIDDEN_V6];
    let governed = world.run("worker", &probes);
    let lines: Vec<&str> = governed.ok().lines().collect();
    assert_eq!(lines.len(), 16, "{governed:#?}");
    assert!(lines.iter().all(|line| line.contains(": refused (")), "{governed:#?}");
    let arrived = || world.arrived_at(FORBIDDEN_V4) + world.arrived_at(FORBIDDEN_V6);
    assert_eq!(arrived(), 0);
    let kernel = world.audit_of("kernel");
    assert!(kernel.iter().all(|record| record["reason"] == "kernel_refused"), "{kernel:#?}");
    for (protocol, least) in [("udp", 5), ("icmp", 1), ("icmpv6", 1), ("mptcp", 2), ("udplite", 2)]
    {
        let count = kernel.iter().filter(|record| record["scheme"] == protocol).count();
        assert!(count >= least, "{count} records of {protocol}: {kernel:#?}");
    }
    // The control: without Tollgate the same attempts arrive, each protocol for itself.
    let ungoverned = world.start_ungoverned(&[], &probes).wait();
    let sent = ungoverned.ok().lines().filter(|line| line.ends_with(": sent")).count();
    assert!(sent >= 11, "{ungoverned:#?}");
    let v4: std::net::IpAddr = FORBIDDEN_V4.parse().unwrap();
    let v6: std::net::IpAddr = FORBIDDEN_V6.parse().unwrap();
    for (to, protocol) in [(v4, 17), (v6, 17), (v4, 253), (v6, 253), (v4, 1), (v4, 136)] {
        let count = world.arrived(|frame| frame.to == to && frame.protocol == protocol);
        assert!(count > 0, "protocol {protocol} to {to} does not arrive: {ungoverned:#?}");
    }
}

#[test]
fn queries_to_any_server_are_answered_by_tollgate_and_leave_nothing_on_the_wire() {
    let Some(world) = World::new().filter(|_| has_program("python3")) else { return };
    let mail = world.origin("mail.test");
    world.configure(OPEN);
    let script = fixture("dns.py");
    let ask = |name: &'static str| {
        [
            python().to_owned(),
            script.clone(),
            name.to_owned(),
            FORBIDDEN_V4.to_owned(),
            FORBIDDEN_V6.to_owned(),
            "127.0.0.1".to_owned(),
        ]
    };
    let command = ask("mail.test");
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let governed = world.run("worker", &command);
    let lines: Vec<&str> = governed.ok().lines().collect();
    assert_eq!(lines.len(), 6, "{governed:#?}");
    let addresses: Vec<&str> = lines.iter().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert!(addresses[0].starts_with("198.18."), "{governed:#?}");
    assert!(addresses.iter().all(|address| *address == addresses[0]), "{governed:#?}");
    let missing = ask("nowhere.test");
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    let answers = world.run("worker", &missing);
    assert!(answers.ok().lines().all(|line| line.ends_with("code 3")), "{answers:#?}");
    assert_eq!(world.arrived_at(FORBIDDEN_V4) + world.arrived_at(FORBIDDEN_V6), 0);
    let records = world.audit_of("dns");
    assert_eq!(records.iter().filter(|record| record["host"] == "mail.test").count(), 6);
    assert_eq!(mail.connections(), 0);
    // The control: without Tollgate the queries arrive, though nobody answers there.
    let command: Vec<&str> = vec!["timeout", "2", command[0], command[1], command[2], FORBIDDEN_V4];
    world.start_ungoverned(&[], &command).wait();
    let v4: std::net::IpAddr = FORBIDDEN_V4.parse().unwrap();
    assert!(world.arrived(|frame| frame.to == v4 && frame.port == 53) > 0);
}

#[test]
fn a_denied_name_costs_no_packet() {
    let Some(world) = World::new().filter(|_| has_program("python3")) else { return };
    world.configure("[[agent]]\nname = \"worker\"\n[[rule]]\nname = \"mail\"\nhosts = [\"mail.test\"]\naction = \"allow\"\n");
    let script = fixture("dns.py");
    let denied = world.run("worker", &[python(), &script, "sec.ret.evil.test", FORBIDDEN_V4]);
    assert!(denied.ok().lines().all(|line| line.contains(" 198.18.")), "{denied:#?}");
    assert_eq!(world.names.asked().len(), 0, "{:?}", world.names.asked());
    // The control: a permitted name is looked up.
    let permitted = world.run("worker", &[python(), &script, "mail.test", FORBIDDEN_V4]);
    assert!(permitted.ok().lines().all(|line| line.ends_with("code 3")), "{permitted:#?}");
    assert!(world.names.asked().contains(&"mail.test.".to_owned()));
}
