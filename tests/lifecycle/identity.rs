//! A workload is its cgroup's id and its network, whatever it is called.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use nix::sys::signal::Signal;

use crate::land::{Agent, Land, REFUSED, SERVED, WITHOUT_NET_RAW, destroy, id_of};
use crate::tollgate::{Running, wait_for};

#[test]
fn an_empty_cgroup_is_closed_before_its_first_process_comes() {
    let Some(land) = Land::new() else { return };
    let daemon = land.daemon();
    let first = land.cgroup("first");
    land.closed(&first);
    let mut waits = Vec::new();
    for number in 0..10 {
        let made = std::time::Instant::now();
        let cgroup = land.cgroup(&format!("agent-{number}"));
        land.closed(&cgroup);
        waits.push(made.elapsed().as_millis());
    }
    println!("from mkdir to all programs attached: {waits:?} ms");
    // In the host's own network, where everything would otherwise be within reach.
    let agent = land.agent_in_host_network(&first);
    let server = "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n\
                  print(error_of(lambda: socket.create_connection(s.getsockname(), 10)))";
    assert_eq!(land.python_outside(&agent, server).trim(), "done", "the control");
    assert_eq!(land.python(&agent, server).trim(), REFUSED);
    daemon.signal(Signal::SIGTERM);
    daemon.finish().success();
}

#[test]
fn a_workload_in_the_host_s_network_stays_closed_is_named_once_and_served_when_it_has_its_own() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    // With it, nobody would be served who shares a cgroup with this one.
    let wrong = land.agent_with(&cgroup, &WITHOUT_NET_RAW);
    let daemon = land.daemon();
    let record = wait_for("the record", || land.records_of("workload_refused").pop());
    assert_eq!((&record["kind"], &record["agent"]), (&"operator".into(), &"tester".into()));
    let detail = record["detail"].as_str().unwrap();
    assert!(detail.contains("share the host's network namespace"), "{detail}");
    assert!(record["workload"].as_str().unwrap().ends_with("/agent"), "{record}");
    assert_eq!(land.fetch(&wrong), REFUSED);
    // It was tried again meanwhile, as this shows: it is served some tries later.
    let right = land.agent(&cgroup);
    land.served(&right);
    assert_eq!(land.records_of("workload_refused").len(), 1);
    assert_eq!(land.fetch(&wrong), REFUSED, "who is in the host's network is served in no case");
    daemon.signal(Signal::SIGTERM);
    let said = daemon.finish().stderr;
    assert_eq!(said.matches("not governed").count(), 1, "{said}");
}

#[test]
fn a_port_that_is_taken_keeps_the_workload_closed_until_it_is_free() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let agent = land.agent(&cgroup);
    let hold =
        "s = socket.socket(); s.bind(('127.0.0.1', 10255)); s.listen()\nsys.stdin.readline()";
    let mut holder = land.start_python(&agent, hold);
    wait_for("the holder", || is_listening(&agent).then_some(()));
    let _daemon = land.daemon();
    let record = wait_for("the record", || land.records_of("workload_refused").pop());
    assert!(record["detail"].as_str().unwrap().contains("port 10255 is taken"), "{record}");
    // Not to whoever listens there, neither.
    assert_eq!(land.fetch(&agent), REFUSED);
    drop(holder.stdin());
    holder.finish();
    land.served(&agent);
}

fn is_listening(agent: &Agent) -> bool {
    // 280F is 10255, state 0A is LISTEN.
    fs::read_to_string(format!("/proc/{}/net/tcp", agent.pid())).is_ok_and(|table| {
        table.lines().any(|line| line.contains(":280F") && line.contains(" 0A "))
    })
}

#[test]
fn a_cgroup_of_the_same_name_is_another_workload_and_the_first_one_leaves_nothing() {
    let Some(land) = Land::new() else { return };
    let _daemon = land.daemon();
    let cgroup = land.cgroup("agent");
    let agent = land.agent(&cgroup);
    land.served(&agent);
    let first = id_of(&cgroup);
    let network = namespace(&agent);
    drop(agent);
    destroy(&cgroup);
    wait_for("the pins are gone", || (!land.pins(first).exists()).then_some(()));
    wait_for("the network is gone", || (!is_held(&land, network)).then_some(()));
    let cgroup = land.cgroup("agent");
    assert_ne!(id_of(&cgroup), first);
    let agent = land.agent(&cgroup);
    land.served(&agent);
}

/// Inode number of a process's network namespace.
fn namespace(agent: &Agent) -> u64 {
    fs::metadata(format!("/proc/{}/ns/net", agent.pid())).unwrap().ino()
}

/// Whether a process on the land's host has a descriptor of this namespace, or of a socket that keeps it.
fn is_held(land: &Land, inode: u64) -> bool {
    let shared = fs::read_link(format!("/proc/{}/ns/mnt", land.host.keeper())).unwrap();
    let name = format!("net:[{inode}]");
    let holds = |process: &std::path::Path| {
        fs::read_dir(process.join("fd")).is_ok_and(|mut fds| {
            fds.any(|fd| {
                fd.is_ok_and(|fd| {
                    fs::read_link(fd.path()).is_ok_and(|to| to.to_str() == Some(&name))
                })
            })
        })
    };
    fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).any(|process| {
        fs::read_link(process.join("ns/mnt")).is_ok_and(|mounts| mounts == shared)
            && holds(&process)
    })
}

#[test]
fn a_workload_that_moves_to_another_network_as_a_whole_is_served_there_and_no_longer_in_the_first()
{
    let Some(land) = Land::new() else { return };
    let _daemon = land.daemon();
    let cgroup = land.cgroup("agent");
    let first = land.agent(&cgroup);
    land.served(&first);
    let second = land.agent(&cgroup);
    assert_eq!(land.fetch(&second), REFUSED, "as long as the first one lives, it is the workload");
    assert_eq!(land.fetch(&first), SERVED);
    // Held from outside, so that the network outlives the processes in it.
    let kept = Keep::network(&land, &first);
    drop(first);
    land.served(&second);
    assert_eq!(kept.fetch(&land, &cgroup), REFUSED, "the first one is closed");
}

/// A process of no cgroup of the land that keeps a network alive.
struct Keep {
    run: Running,
}

impl Keep {
    fn network(land: &Land, agent: &Agent) -> Self {
        let target = agent.pid().to_string();
        let words = ["nsenter", "--net", "--target", &target, "sleep", "1000"];
        let run = Running::start(land.host.plain(words).stdin(std::process::Stdio::null()));
        let inode = namespace(agent);
        wait_for("the keeper", || {
            let own = fs::metadata(format!("/proc/{}/ns/net", run.pid())).ok()?;
            (own.ino() == inode).then_some(())
        });
        Self { run }
    }

    fn fetch(&self, land: &Land, cgroup: &std::path::Path) -> String {
        land.fetch_in(self.run.pid(), cgroup)
    }
}

#[test]
fn a_cgroup_that_empties_lets_its_network_go_and_is_served_again_with_the_next_process() {
    let Some(land) = Land::new() else { return };
    let _daemon = land.daemon();
    let cgroup = land.cgroup("agent");
    for _ in 0..3 {
        let agent = land.agent(&cgroup);
        land.served(&agent);
        let network = namespace(&agent);
        drop(agent);
        wait_for("the network is gone", || (!is_held(&land, network)).then_some(()));
    }
    assert!(land.records_of("workload_refused").is_empty());
}
