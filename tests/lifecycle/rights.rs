//! Workloads that could undo their own government.

use std::process::Stdio;

use serde_json::Value;

use crate::land::{Agent, Land, REFUSED, SERVED};
use crate::tollgate::{finish, permit_everything, wait_for};

fn details(land: &Land) -> Vec<String> {
    let detail = |record: &Value| record["detail"].as_str().unwrap_or_default().to_owned();
    land.records_of("workload_refused").iter().map(detail).collect()
}

fn permitting(land: &Land, permit: &str) {
    let glob = land.glob("*");
    land.host.configure_permitting(permit, &format!("match = {{ cgroup = \"{glob}\" }}\n"));
}

#[test]
fn a_workload_with_rights_of_the_host_stays_closed_and_each_objection_names_its_waiver() {
    let Some(land) = Land::new() else { return };
    permitting(&land, "[]");
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    let agent = land.agent(&cgroup);
    wait_for("it is refused", || (!details(&land).is_empty()).then_some(()));
    let said = details(&land).concat();
    for word in ["host-mounts", "host-pids", "cap-sys-admin", "cap-bpf", "cap-net-admin"] {
        assert!(
            said.contains(&format!("permit = [\"{word}\"] under [discover]")),
            "{word}: {said}"
        );
    }
    assert_eq!(land.fetch(&agent), REFUSED);

    // The control: the same workload, with its objections waived.
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.finish().success();
    permitting(&land, &permit_everything());
    let _daemon = land.daemon();
    land.served(&agent);
}

/// What a request of the workload gets, made by a process without CAP_SYS_ADMIN.
fn fetch(land: &Land, agent: &Agent) -> String {
    let mut command = land.python_as(agent, &["setpriv", "--bounding-set", "-sys_admin"]);
    finish(command.stdin(Stdio::null())).success().trim().to_owned()
}

#[test]
fn a_process_that_joins_with_more_rights_closes_the_workload_until_it_is_gone() {
    let Some(land) = Land::new() else { return };
    let permit = permit_everything().replace("\"cap-sys-admin\", ", "");
    assert!(!permit.contains("sys-admin"));
    permitting(&land, &permit);
    let cgroup = land.cgroup("agent");
    let _daemon = land.daemon();
    let reduced = ["unshare", "--net", "setpriv", "--bounding-set", "-sys_admin"];
    let agent = land.agent_with(&cgroup, &reduced);
    let is_served = || (fetch(&land, &agent) == SERVED).then_some(());
    wait_for("the agent is served", is_served);
    assert_eq!(details(&land), Vec::<String>::new(), "the control");

    let joined = land.agent_in_host_network(&cgroup);
    wait_for("the workload is closed", || (fetch(&land, &agent) == REFUSED).then_some(()));
    assert!(details(&land).concat().contains("CAP_SYS_ADMIN"), "{:?}", details(&land));
    drop(joined);
    wait_for("the agent is served again", is_served);
}
