//! Many workloads at once.

use serde_json::Value;

use crate::land::{Land, SERVED};
use crate::tollgate::{TOLLGATE, finish, wait_for};

/// Workloads at once: more than a machine of this size runs as containers.
const CROWD: usize = 200;

#[test]
fn two_hundred_workloads_are_served_by_one_daemon() {
    let Some(land) = Land::new() else { return };
    let agents: Vec<_> =
        (0..CROWD).map(|number| land.agent(&land.cgroup(&format!("agent-{number}")))).collect();
    let daemon = land.daemon();
    let status = || -> Option<Vec<Value>> {
        let said = finish(&mut land.host.plain([TOLLGATE, "status", "--json"]));
        let report: Value = serde_json::from_str(&said.stdout).ok()?;
        report["workloads"].as_array().cloned()
    };
    let served = wait_for("all are served", || {
        let mut workloads = status()?;
        workloads.retain(|workload| workload["state"] == "served");
        (workloads.len() == CROWD).then_some(workloads)
    });
    let number = |workload: &Value| workload["armed_ms"].as_u64().unwrap();
    let slowest = served.iter().map(number).max().unwrap();
    // nsenter(1) has become the daemon.
    let memory = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let resident = memory.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    println!("{CROWD} workloads: the last is served after {slowest} ms; the daemon's {resident}");
    for agent in [&agents[0], &agents[CROWD - 1]] {
        assert_eq!(land.fetch(agent), SERVED);
    }
}
