//! The daemon dies, and another one comes.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::land::{Land, REFUSED, SERVED, destroy, id_of, monotonic};
use crate::tollgate::wait_for;

/// Far above what is measured; only a machine that stands still is slower.
const BACK_WITHIN_SECONDS: f64 = 20.0;

/// Holds a connection open, says what becomes of it, then tries on until the gateway answers and says when.
const STEADFAST: &str = r#"
s = socket.create_connection(('203.0.113.9', 80), 30)
s.sendall(b'GET / HTTP/1.1\r\n')
print('open', flush=True); open('PATH/open', 'w').close()
try:
    print('cut', len(s.recv(100)), flush=True)
except ConnectionResetError:
    print('cut 0', flush=True)
# While the kernel takes the dead process apart, its listener may be there for a moment longer than its connections.
while (answer := fetch()) == 'ECONNRESET': pass
print(answer, flush=True); open('PATH/refused', 'w').close()
while True:
    answer = fetch()
    if answer == '403': break
    if answer != 'ECONNREFUSED': print('meanwhile', answer, flush=True)
print('back', time.monotonic(), flush=True)
"#;

#[test]
fn an_agent_of_a_killed_daemon_is_refused_until_the_next_one_serves_it_without_a_restart() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    let folder = land.host.folder().display().to_string();
    let steadfast = land.start_python(&agent, &STEADFAST.replace("PATH", &folder));
    wait_for("an open connection", || land.host.folder().join("open").exists().then_some(()));

    daemon.signal(Signal::SIGKILL);
    daemon.finish();
    wait_for("the refusal", || land.host.folder().join("refused").exists().then_some(()));
    assert_eq!(land.fetch(&agent), REFUSED);

    let start = monotonic();
    let daemon = land.daemon();
    let said = steadfast.finish().success();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["open", "cut 0", REFUSED], "{said}");
    assert_eq!(lines.len(), 4, "nothing but refusals until it was served: {said}");
    let back: f64 = lines[3].strip_prefix("back ").unwrap().parse().unwrap();
    println!("from the start of the daemon to the first answer: {:.0} ms", (back - start) * 1e3);
    assert!(back - start < BACK_WITHIN_SECONDS);
    assert!(land.records_of("workload_refused").is_empty());
    daemon.signal(Signal::SIGTERM);
    daemon.finish().success();
}

#[test]
fn nothing_leaves_and_nobody_takes_the_gateway_s_port_while_no_daemon_lives() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let agent = land.agent(&cgroup);
    land.give_device(&agent);
    let probe = r#"
raw = lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 200).sendto(b'raw', ('203.0.113.66', 0))
udp = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'udp', ('203.0.113.66', 9))
def syn():
    s = socket.socket(); s.setblocking(False); s.connect_ex(('203.0.113.66', 80))
    if not select.select([], [s], [], 0.3)[1]: raise OSError(errno.EINPROGRESS, '')
    if error := s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR): raise OSError(error, '')
def take():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('127.0.0.1', 10255))
take_all = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(('', 10255))
print([error_of(call) for call in (raw, udp, syn, take, take_all)])
"#;
    let free = land.python(&agent, probe);
    assert_eq!(free.trim(), "['done', 'done', 'EINPROGRESS', 'done', 'done']", "the control");
    let before = land.frames();
    assert_eq!(before, 3, "the control: three frames leave where nothing holds them");
    // The kernel sends the third one again and again, as long as its socket lives; that has ended with the probe.

    let daemon = land.daemon();
    land.closed(&cgroup);
    wait_for("service, or a refusal of the device", || {
        let is_settled =
            land.fetch(&agent) == SERVED || !land.records_of("workload_refused").is_empty();
        is_settled.then_some(())
    });
    let is_served = land.fetch(&agent) == SERVED;
    daemon.signal(Signal::SIGKILL);
    daemon.finish();
    let held = land.python(&agent, probe);
    let refused = "['EPROTONOSUPPORT', 'ECONNREFUSED', 'ECONNREFUSED'";
    assert!(held.starts_with(refused), "{held}");
    if is_served {
        assert_eq!(held.trim(), format!("{refused}, 'EPERM', 'EPERM']"));
    }
    assert_eq!(land.frames(), before, "frames left");
}

#[test]
fn a_daemon_that_is_asked_to_end_ends_well_and_leaves_the_same_closed_state() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.finish().status.success());
    assert_eq!(land.fetch(&agent), REFUSED);
    // The control, in the same network, of a cgroup that nobody governs: the port is free.
    let take = "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); \
                print(error_of(lambda: s.bind(('127.0.0.1', 10255))))";
    assert_eq!(land.python(&agent, take).trim(), "EPERM");
    assert_eq!(land.python_outside(&agent, take).trim(), "done", "the control");
}

#[test]
fn an_agent_that_tried_too_often_while_no_daemon_lived_is_served_by_the_next_one() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    daemon.signal(Signal::SIGKILL);
    daemon.finish();
    // More connections than the table of flows has room for, each from a port of its own.
    let flood = r#"
refused = 0
for port in range(20000, 40000):
    s = socket.socket(); s.bind(('127.0.0.1', port))
    refused += s.connect_ex(('203.0.113.9', 80)) == errno.ECONNREFUSED
    s.close()
print(refused)
"#;
    assert_eq!(land.python(&agent, flood).trim(), "20000");
    let _daemon = land.daemon();
    land.served(&agent);
    let all = "print({fetch() for _ in range(50)})";
    assert_eq!(land.python(&agent, all).trim(), "{'403'}");
}

#[test]
fn maps_of_another_layout_are_left_behind_and_the_agent_is_served_with_new_ones() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    daemon.signal(Signal::SIGKILL);
    daemon.finish();
    let pins = land.pins(id_of(&cgroup));
    let old: Vec<(PathBuf, PathBuf)> = fs::read_dir(&pins)
        .unwrap()
        .filter_map(|pin| {
            let name = pin.unwrap().file_name().into_string().unwrap();
            let map = name.strip_prefix(&format!("map-v{}-", gateway_ebpf::abi::VERSION))?;
            Some((pins.join(&name), pins.join(format!("map-v0-{map}"))))
        })
        .collect();
    assert!(old.len() >= 4, "{old:?}");
    for (new, old) in &old {
        fs::rename(new, old).unwrap();
    }
    let _daemon = land.daemon();
    land.served(&agent);
    for (new, old) in &old {
        assert!(new.exists() && !old.exists(), "{}", old.display());
    }
}

#[test]
fn rules_are_read_again_on_sighup_and_a_mistake_in_them_changes_nothing() {
    let Some(land) = Land::new() else { return };
    let cgroup = land.cgroup("agent");
    let daemon = land.daemon();
    let agent = land.agent(&cgroup);
    land.served(&agent);
    let mut mistaken = fs::File::options().append(true).open(land.host.config()).unwrap();
    writeln!(mistaken, "no such key").unwrap();
    daemon.signal(Signal::SIGHUP);
    assert_eq!(land.fetch(&agent), SERVED);
    land.configure(&land.glob("nobody"));
    daemon.signal(Signal::SIGHUP);
    wait_for("the agent is nobody's", || (land.fetch(&agent) == REFUSED).then_some(()));
    land.configure(&land.glob("*"));
    daemon.signal(Signal::SIGHUP);
    land.served(&agent);
    drop(agent);
    destroy(&cgroup);
    daemon.signal(Signal::SIGTERM);
    let said = daemon.finish().stderr;
    assert!(said.contains("was not read again"), "{said}");
}
