//! The gate of Tollgate's slice: closed for whatever is not admitted, with a daemon and without.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::land::{Agent, Land, REFUSED, SERVED, hierarchy, id_of};
use crate::tollgate::{AGENT, wait_for};

/// What a process gets from everything that leads out, or in.
const ATTEMPTS: &str = r"
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(b'x', ('203.0.113.9', 53))
def raw():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).sendto(b'x' * 8, ('203.0.113.9', 0))
def own():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        socket.create_connection(s.getsockname(), 10)
def tcp():
    with socket.socket() as s:
        s.setblocking(False)
        try: s.connect(('203.0.113.9', 80))
        except BlockingIOError: pass
print(*(error_of(call) for call in (tcp, udp, raw, own)))";
const ALL_REFUSED: &str = "ECONNREFUSED ECONNREFUSED EPROTONOSUPPORT ECONNREFUSED";
const ALL_DONE: &str = "done done done done";

/// Where the gate of a land's daemon is pinned.
fn pins(land: &Land) -> PathBuf {
    let slice = id_of(&hierarchy().join("tollgate.slice"));
    land.host.seen(&format!("/sys/fs/bpf/tollgate/slice-{slice}"))
}

fn wait_for_gate(land: &Land) {
    wait_for("the slice is closed", || {
        let last = hierarchy().join("tollgate.slice").exists().then(|| pins(land))?;
        last.join("tollgate_slice_connect6").exists().then_some(())
    });
}

/// A process with a network of its own, with a way out, below `name` in the slice.
fn agent_with_a_way_out(land: &Land, name: &str) -> Agent {
    let agent = land.agent(&land.cgroup(name));
    land.give_device(&agent);
    agent
}

fn tries(land: &Land, agent: &Agent) -> String {
    land.python(agent, ATTEMPTS).trim().to_owned()
}

#[test]
fn whatever_is_below_the_slice_reaches_nothing_however_deep_until_an_agent_matches_it() {
    let Some(land) = Land::in_slice() else { return };
    land.configure(&land.glob("matched/*"));
    let daemon = land.daemon();
    wait_for_gate(&land);
    let agent = agent_with_a_way_out(&land, "matched/agent/deep/er");
    let nobodys = land.agent(&land.cgroup("nobodys/deep"));
    assert_eq!(tries(&land, &nobodys), ALL_REFUSED);
    land.served(&agent);
    let frames = land.frames();
    assert_eq!(land.python_outside(&agent, ATTEMPTS).trim(), ALL_DONE, "the control");
    assert!(land.frames() > frames, "the control");
    // Once, with the remedy.
    let is_it = |record: &Value| record["workload"].as_str().unwrap().ends_with("nobodys/deep");
    let records = wait_for("the record", || {
        let found: Vec<_> = land.records_of("workload_refused").into_iter().filter(is_it).collect();
        (!found.is_empty()).then_some(found)
    });
    assert_eq!(records.len(), 1);
    assert!(records[0]["detail"].as_str().unwrap().contains("tollgate.agent=NAME"), "{records:?}");
    // When nobody's, it is as closed as before it was an agent's; and back.
    land.configure(&land.glob("other"));
    daemon.signal(Signal::SIGHUP);
    wait_for("it is closed", || (land.fetch(&agent) == REFUSED).then_some(()));
    assert_eq!(tries(&land, &agent), ALL_REFUSED);
    land.configure(&land.glob("matched/*"));
    daemon.signal(Signal::SIGHUP);
    land.served(&agent);
    daemon.signal(Signal::SIGTERM);
    daemon.finish().success();
}

#[test]
fn the_gate_outlives_the_daemon_and_the_next_one_takes_it_over() {
    let Some(land) = Land::in_slice() else { return };
    let daemon = land.daemon();
    wait_for_gate(&land);
    let served = land.agent(&land.cgroup("served"));
    land.served(&served);
    daemon.signal(Signal::SIGKILL);
    daemon.finish();
    let agent = agent_with_a_way_out(&land, "started-without-a-daemon");
    assert_eq!(tries(&land, &agent), ALL_REFUSED);
    assert_eq!(land.frames(), 0);
    assert_eq!(land.python_outside(&agent, ATTEMPTS).trim(), ALL_DONE, "the control");
    assert!(land.frames() > 0, "the control");
    assert_eq!(land.fetch(&served), REFUSED);
    let daemon = land.daemon();
    land.served(&served);
    land.served(&agent);
    let never_open = land.records_of("workload_was_open");
    assert_eq!(never_open, Vec::<Value>::new(), "both were closed all the time");
    assert_eq!(daemon_pins(&land), 1, "one gate");
    daemon.signal(Signal::SIGTERM);
    daemon.finish().success();
    assert_eq!(daemon_pins(&land), 1, "it stays");
}

/// How many gates are pinned.
fn daemon_pins(land: &Land) -> usize {
    let names = fs::read_dir(land.host.seen("/sys/fs/bpf/tollgate")).unwrap().flatten();
    names.filter(|entry| entry.file_name().to_str().unwrap().starts_with("slice-")).count()
}

#[test]
fn pins_of_the_gate_that_somebody_removes_are_made_again_and_nothing_was_open_meanwhile() {
    let Some(land) = Land::in_slice() else { return };
    land.configure(&land.glob("agent"));
    let _daemon = land.daemon();
    wait_for_gate(&land);
    let nobodys = land.agent(&land.cgroup("nobodys"));
    let agent = land.agent(&land.cgroup("agent"));
    land.served(&agent);
    // The map with the links.
    fs::remove_dir_all(pins(&land)).unwrap();
    assert_eq!(tries(&land, &nobodys), ALL_REFUSED);
    wait_for_gate(&land);
    assert_eq!(land.fetch(&agent), SERVED);
    let record = wait_for("the record", || land.records_of("enforcement_broken").pop());
    assert_eq!(record["workload"], "/tollgate.slice");
    assert_eq!(tries(&land, &nobodys), ALL_REFUSED);
}

#[test]
fn what_was_governed_before_the_gate_came_goes_on() {
    let Some(land) = Land::in_slice() else { return };
    let first = land.daemon();
    let agent = land.agent(&land.cgroup("agent"));
    land.served(&agent);
    // Another host's daemon closes its own gate over the same slice.
    let Some(other) = Land::in_slice() else { return };
    let second = other.daemon();
    wait_for_gate(&other);
    assert_eq!(land.fetch(&agent), SERVED);
    let later = land.agent(&land.cgroup("later"));
    land.served(&later);
    for daemon in [first, second] {
        daemon.signal(Signal::SIGTERM);
        daemon.finish().success();
    }
}

#[test]
fn who_was_there_before_the_daemon_is_told_with_its_window() {
    let Some(land) = Land::new() else { return };
    let agent = land.agent(&land.cgroup("agent"));
    let _daemon = land.daemon();
    land.served(&agent);
    let records = land.records_of("workload_was_open");
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!((&records[0]["agent"], &records[0]["kind"]), (&AGENT.into(), &"operator".into()));
    let detail = records[0]["detail"].as_str().unwrap();
    let ms: u64 = detail.split(" ms;").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(ms > 0, "{detail}");
    // The control: one that is closed while it is empty.
    let empty = land.cgroup("empty");
    land.closed(&empty);
    let later = land.agent(&empty);
    land.served(&later);
    assert_eq!(land.records_of("workload_was_open").len(), 1);
}
