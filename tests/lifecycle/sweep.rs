//! What is left behind, and what somebody takes away.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::land::{Land, REFUSED, destroy, id_of};
use crate::tollgate::{Running, finish, wait_for};

#[test]
fn pins_of_a_cgroup_that_went_away_while_no_daemon_lived_are_swept_by_the_next_one() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    land.closed(&cgroup);
    daemon.signal(Signal::SIGKILL);
    daemon.finish();
    let pins = land.pins(id_of(&cgroup));
    destroy(&cgroup);
    assert!(pins.exists(), "the control: nobody else removes them");
    let _daemon = land.daemon();
    wait_for("the sweep", || (!pins.exists()).then_some(()));
}

#[test]
fn a_cgroup_that_no_agent_matches_any_more_stays_closed_and_is_reported_once() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    daemon.signal(Signal::SIGKILL);
    daemon.finish();
    land.configure(&land.glob("another"));
    let daemon = land.daemon();
    let record = wait_for("the record", || land.records_of("workload_refused").pop());
    assert!(
        record["detail"].as_str().unwrap().contains("no agent matches it any more"),
        "{record}"
    );
    assert!(record["workload"].as_str().unwrap().ends_with("/agent"), "{record}");
    assert_eq!(land.fetch(&agent), REFUSED);
    // Another sweep, as this shows: it comes later, and is swept.
    let another = land.cgroup("another");
    land.closed(&another);
    let pins = land.pins(id_of(&another));
    destroy(&another);
    wait_for("the other one's sweep", || (!pins.exists()).then_some(()));
    assert_eq!(land.records_of("workload_refused").len(), 1);
    daemon.signal(Signal::SIGTERM);
    daemon.finish().success();
}

/// Leaves its cgroup with a socket that was made in it, then uses that socket each time it is asked.
const LEAVER: &str = r#"
made = socket.socket()
open('OUTSIDE/cgroup.procs', 'w').write('0')
new = lambda: socket.socket().connect(('203.0.113.66', 9))
for line in sys.stdin:
    print(error_of(lambda: made.connect(('203.0.113.66', 9))), error_of(new), flush=True)
    open('PATH/' + line.strip(), 'w').close()
"#;

#[test]
fn a_socket_that_outlives_its_cgroup_stays_governed_and_the_pins_go_with_it() {
    use std::io::Write as _;
    let Some(land) = Land::new() else { return };
    // Not below the pattern, so that nobody governs it.
    let outside = land.cgroup("one/two");
    land.configure(&land.glob("agent"));
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    let folder = land.host.folder().display().to_string();
    let code = LEAVER.replace("OUTSIDE", outside.to_str().unwrap()).replace("PATH", &folder);
    let mut leaver = land.start_python(&agent, &code);
    let mut orders = leaver.stdin();
    let mut ask = |name: &str| {
        writeln!(orders, "{name}").unwrap();
        wait_for("its answer", || land.host.folder().join(name).exists().then_some(()));
    };
    wait_for("it has left", || {
        let procs = fs::read_to_string(outside.join("cgroup.procs")).unwrap();
        (!procs.is_empty()).then_some(())
    });
    let id = id_of(&cgroup);
    drop(agent);
    destroy(&cgroup);
    let pins = land.pins(id);
    // Another one comes and goes: the sweep was there.
    land.configure(&land.glob("a*"));
    daemon.signal(Signal::SIGHUP);
    let another = land.cgroup("another");
    land.closed(&another);
    let swept = land.pins(id_of(&another));
    destroy(&another);
    wait_for("the sweep", || (!swept.exists()).then_some(()));
    assert!(pins.exists(), "as long as the socket lives, its programs are kept");
    ask("first");
    drop(orders);
    let said = leaver.finish().success();
    assert_eq!(
        said.trim(),
        format!("{REFUSED} ENETUNREACH"),
        "a socket of another cgroup is not held"
    );
    wait_for("the pins go with the socket", || (!pins.exists()).then_some(()));
}

/// Detaches what is pinned at PIN, as an administrator's tools can.
const DETACH: &str = r#"
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
path = ctypes.create_string_buffer(b'PIN')
attributes = struct.pack('<QII', ctypes.addressof(path), 0, 0)
link = libc.syscall(321, 7, attributes, len(attributes))
attributes = struct.pack('<I', link)
if link < 0 or libc.syscall(321, 34, attributes, len(attributes)) < 0: raise OSError(ctypes.get_errno(), 'bpf')
"#;

#[test]
fn programs_that_somebody_detaches_are_put_to_work_again_and_recorded() {
    let Some(land) = Land::new() else { return };
    if cfg!(not(target_arch = "x86_64")) {
        return println!("SKIPPED: the probe knows the system call's number on x86-64 only");
    }
    let cgroup = land.cgroup("agent");
    let _daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    let raw = "print(error_of(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 200)))";
    assert_eq!(land.python(&agent, raw).trim(), "EPROTONOSUPPORT");
    let pin = format!("/sys/fs/bpf/tollgate/cg-{}/tollgate_sock_create", id_of(&cgroup));
    finish(&mut land.host.plain(["python3", "-c", &DETACH.replace("PIN", &pin)])).success();
    let record = wait_for("the record", || land.records_of("enforcement_broken").pop());
    let detail = record["detail"].as_str().unwrap();
    assert!(detail.contains("`tollgate_sock_create` is not at work"), "{detail}");
    wait_for("the programs", || {
        (land.python(&agent, raw).trim() == "EPROTONOSUPPORT").then_some(())
    });
    land.served(&agent);
}

#[test]
fn pins_that_somebody_removes_are_made_again_and_nothing_was_open_meanwhile() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    let watch = "seen = set()\nopen('PATH/watching', 'w').close()\n\
        while not os.path.exists('PATH/enough'):\n  \
        seen.add(error_of(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 200)))\nprint(seen)";
    let folder = land.host.folder();
    let watcher = land.start_python(&agent, &watch.replace("PATH", folder.to_str().unwrap()));
    wait_for("the watcher", || folder.join("watching").exists().then_some(()));
    let pins = land.pins(id_of(&cgroup));
    let all = fs::read_dir(&pins).unwrap().count();
    fs::remove_dir_all(&pins).unwrap_or_else(|error| panic!("{}: {error}", pins.display()));
    let record = wait_for("the record", || land.records_of("enforcement_broken").pop());
    assert!(record["detail"].as_str().unwrap().contains("its pin was removed"), "{record}");
    wait_for("all pins", || {
        fs::read_dir(&pins).is_ok_and(|pins| pins.count() == all).then_some(())
    });
    land.served(&agent);
    fs::write(folder.join("enough"), "").unwrap();
    assert_eq!(watcher.finish().success().trim(), "{'EPROTONOSUPPORT'}");
    daemon.signal(Signal::SIGKILL);
    daemon.finish();
    assert_eq!(land.fetch(&agent), REFUSED, "the new pins hold");
}

#[test]
fn pins_of_a_run_without_a_directory_are_swept_when_they_are_old() {
    let Some(land) = Land::new() else { return };
    let script = "set -e; cd /sys/fs/bpf; mkdir -p tollgate/run-old tollgate/run-new; chmod 700 tollgate; \
                  touch -d '2 minutes ago' tollgate/run-old";
    finish(&mut land.host.plain(["sh", "-c", script])).success();
    let run = Running::start(land.host.run(&["true"]).stdin(Stdio::null()));
    run.finish().success();
    let pins = land.host.seen("/sys/fs/bpf/tollgate");
    assert!(!pins.join("run-old").exists());
    assert!(pins.join("run-new").exists(), "it may belong to a run that is just starting");
}
