//! A second daemon, and runs beside a daemon.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::land::{Land, SERVED, failed, id_of};
use crate::tollgate::{Running, TOLLGATE, finish, run_name, wait_for};

#[test]
fn a_second_daemon_is_refused_and_told_which_process_is_the_first_whatever_its_configuration() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let first = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    let expected = format!(
        "tollgate: another `tollgate daemon` governs this machine (process {}); stop it first",
        first.pid()
    );
    let said = land.daemon().finish();
    assert!(failed(&said).contains(&expected), "{said:?}");
    let other = land.host.folder().join("other.toml");
    fs::write(&other, "[[agent]]\nname = \"other\"\n").unwrap();
    let words = [TOLLGATE, "daemon", "--config", other.to_str().unwrap()];
    let said = finish(&mut land.host.plain(words));
    assert!(failed(&said).contains(&expected), "{said:?}");
    assert_eq!(land.fetch(&agent), SERVED);
    // Its lock dies with it.
    first.signal(Signal::SIGKILL);
    first.finish();
    let _third = land.daemon();
    land.served(&agent);
}

/// What Python prints of a request in a run.
const FETCH: &str = "import socket\ns = socket.create_connection(('203.0.113.9', 80), 10)\n\
    s.sendall(b'GET / HTTP/1.1\\r\\nHost: 203.0.113.9\\r\\n\\r\\n')\nprint(s.recv(1000).split(b' ')[1].decode())";

#[test]
fn a_run_and_a_daemon_live_side_by_side() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    assert_eq!(land.host.python(FETCH).trim(), SERVED);
    assert_eq!(land.fetch(&agent), SERVED);
    daemon.signal(Signal::SIGTERM);
    daemon.finish().success();
    assert_eq!(land.host.python(FETCH).trim(), SERVED);
}

#[test]
fn a_match_that_names_the_cgroup_of_a_run_does_not_govern_it_a_second_time() {
    let Some(land) = Land::new() else { return };
    land.configure("/tollgate-run/run-*");
    let _daemon = land.daemon();
    let script = format!("read go; python3 -c \"{}\"", FETCH.replace('"', "\\\""));
    let mut run = Running::start(land.host.run(&["sh", "-c", &script]).stdin(Stdio::piped()));
    let name = run_name(run.pid());
    // Runs of other tests match as well.
    let record = wait_for("the record", || {
        let is_about_it =
            |record: &serde_json::Value| record["workload"].as_str().unwrap().ends_with(&name);
        land.records_of("workload_refused").into_iter().find(is_about_it)
    });
    assert!(record["detail"].as_str().unwrap().contains("governed already"), "{record}");
    drop(run.stdin());
    assert_eq!(run.finish().success().trim(), SERVED);
}

#[test]
fn the_daemon_s_own_cgroup_is_never_closed() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("system");
    let config = land.host.config();
    let script = format!(
        "echo $$ > {}/cgroup.procs; exec {TOLLGATE} daemon --config {}",
        cgroup.display(),
        config.display()
    );
    let daemon = Running::start(land.host.plain(["sh", "-c", &script]).stdin(Stdio::null()));
    let record = wait_for("the record", || land.records_of("workload_refused").pop());
    assert!(record["detail"].as_str().unwrap().contains("holds the daemon itself"), "{record}");
    assert!(!land.pins(id_of(&cgroup)).exists());
    // The control: its neighbour is closed.
    let neighbour = land.cgroup("agent");
    land.closed(&neighbour);
    daemon.signal(Signal::SIGTERM);
    daemon.finish().success();
}

#[test]
fn a_cgroup_below_one_that_another_host_s_daemon_governs_is_refused() {
    let Some(land) = Land::new() else { return };
    let Some(other) = Land::new() else { return };
    let outer = land.cgroup("outer");
    let inner = land.cgroup("outer/inner");
    let _daemon = land.daemon();
    land.closed(&outer);
    // The same machine's cgroups, with run directory and pins of its own.
    other.configure(&land.glob("outer/*"));
    let _second = other.daemon();
    let record = wait_for("the record", || other.records_of("workload_refused").pop());
    let detail = record["detail"].as_str().unwrap();
    assert!(detail.contains("is governed by Tollgate already"), "{detail}");
    assert!(!other.pins(id_of(&inner)).exists(), "nothing of it is kept");
    let agent = land.agent(&inner);
    land.served(&agent);
}
