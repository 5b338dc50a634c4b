//! Workloads that could undo their own government.

use std::process::Stdio;

use serde_json::Value;

use gateway::discover::{Objection, Waiver, can_send_raw, examine};
use nix::unistd::Pid;

use crate::land::{Agent, Land, REFUSED, SERVED, WITHOUT_NET_RAW};
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
    let daemon = land.daemon();
    land.served(&agent);

    // What is waived no more closes it, without a restart.
    permitting(&land, "[]");
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    wait_for("it is closed", || (land.fetch(&agent) == REFUSED).then_some(()));
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

#[test]
fn a_process_that_can_send_raw_frames_in_the_host_s_network_closes_the_workload_until_it_is_gone() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let _daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    // The control: it is there first, and is in no record.
    let harmless = land.agent_with(&cgroup, &WITHOUT_NET_RAW);
    let joined = land.agent_in_host_network(&cgroup);
    assert!(!can_send_raw(pid_of(&harmless)).unwrap());
    assert!(can_send_raw(pid_of(&joined)).unwrap());
    wait_for("the workload is closed", || (land.fetch(&agent) == REFUSED).then_some(()));
    let [said] = <[String; 1]>::try_from(details(&land)).unwrap();
    assert!(said.contains("CAP_NET_RAW"), "{said}");
    let named = format!("its process {} is in the host's network namespace", joined.pid());
    assert!(said.contains(&named), "{said}");
    drop(joined);
    land.served(&agent);
    assert_eq!(details(&land).len(), 1);
}

fn pid_of(agent: &Agent) -> Pid {
    Pid::from_raw(agent.pid().try_into().unwrap())
}

#[test]
fn rights_that_only_a_second_thread_has_are_seen() {
    let Some(land) = Land::new() else { return };
    let agent = land.agent(&land.cgroup("agent"));
    // PR_CAPBSET_DROP and capset(2) are about the calling thread alone.
    let drops = "
import ctypes
libc = ctypes.CDLL(None)
for capability in range(64): libc.prctl(24, capability, 0, 0, 0)
libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
sys.stdin.readline()";
    let keeps = format!(
        "import threading
threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()
{drops}"
    );
    let rights = |code: &str| {
        let process = land.start_python(&agent, code);
        let pid = Pid::from_raw(process.pid().try_into().unwrap());
        wait_for("the first thread has no rights", || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let is_left =
                |line: &&str| line.starts_with("Cap") && !line.ends_with("\t0000000000000000");
            (status.lines().filter(is_left).count() == 0).then_some(())
        });
        let is_right = |objection: &Objection| {
            matches!(objection, Objection::Waivable(Waiver::Capability(_), _))
        };
        let found = examine(pid).unwrap().iter().filter(|found| is_right(found)).count();
        (found > 0, can_send_raw(pid).unwrap())
    };
    assert_eq!(rights(drops), (false, false), "the control");
    assert_eq!(rights(&keeps), (true, true));
}

/// Puts a file system over its own `/dev` that answers nothing, and becomes the command of its arguments.
const SILENT: &str = r#"
import ctypes, os, sys
fd = os.open("/dev/fuse", os.O_RDWR)
os.set_inheritable(fd, True)
data = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fd
assert ctypes.CDLL(None).mount(b"silent", b"/dev", b"fuse", 0, data) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_workload_whose_files_do_not_answer_stays_closed_and_holds_up_no_other() {
    let Some(land) = Land::new() else { return };
    if !std::path::Path::new("/dev/fuse").exists() {
        assert!(std::env::var_os("CI").is_none(), "there is no FUSE, and CI is set");
        return println!("SKIPPED: there is no FUSE");
    }
    let program = land.host.folder().join("silent.py");
    std::fs::write(&program, SILENT).unwrap();
    let _daemon = land.daemon();
    let before = ["unshare", "--net", "--mount", "python3", program.to_str().unwrap()];
    let silent = land.agent_with(&land.cgroup("silent"), &before);
    let other = land.agent(&land.cgroup("other"));
    land.served(&other);
    wait_for("it is said", || {
        details(&land).iter().any(|said| said.contains("in time")).then_some(())
    });
    assert_eq!(land.fetch(&silent), REFUSED);
}
