//! What is not in the workload's cgroup or not in its namespace, and devices that somebody gives it.

use std::process::{Command, Stdio};

use crate::tollgate::{Host, Running, cgroup_of, finish, processes_in, run_name, wait_for};

/// Starts Python as the agent, in the host's folder, and waits until it says `up`. Ends when it likes.
pub(crate) fn held(host: &Host, code: &str) -> Running {
    let folder = host.folder().display();
    let code = format!("import os; os.chdir('{folder}')\n{code}");
    let mut run = host.run(&["python3", "-c", &code]);
    let run = Running::start(run.stdin(Stdio::null()));
    wait_for("the probe", || host.folder().join("up").exists().then_some(()));
    run
}

/// A process of the workload of the Tollgate process `pid`, as the host numbers it.
fn inside(pid: u32) -> String {
    let cgroup = cgroup_of(&run_name(pid));
    wait_for("the workload", || processes_in(&cgroup).first().copied()).to_string()
}

/// Runs a probe that finds, once it goes, a second device `out0` with an address and a default route in its network
/// namespace. Returns what it printed, and how many frames came out of the device.
pub(crate) fn with_device(host: &Host, code: &str, governed: bool) -> (String, u64) {
    let code = format!(
        "import errno, os, socket, struct, time\nopen('up', 'w').close()\n\
         while not os.path.exists('go'): time.sleep(0.02)\n{code}\nopen('done', 'w').close()\n\
         while not os.path.exists('end'): time.sleep(0.02)\n"
    );
    let (run, process) = if governed {
        let run = held(host, &code);
        let process = inside(run.pid());
        (run, process)
    } else {
        let run = held_without_tollgate(host, &code);
        let process = run.pid().to_string();
        (run, process)
    };
    give_device(host, &process);
    std::fs::write(host.folder().join("go"), "").unwrap();
    wait_for("the probe's end", || host.folder().join("done").exists().then_some(()));
    let frames = frames_out_of_device(host);
    std::fs::write(host.folder().join("end"), "").unwrap();
    let said = run.finish().success();
    for mark in ["up", "go", "done", "end"] {
        std::fs::remove_file(host.folder().join(mark)).unwrap();
    }
    (said, frames)
}

/// The same as [`held`] in a network namespace that is like a workload's, without Tollgate.
fn held_without_tollgate(host: &Host, code: &str) -> Running {
    let folder = host.folder().display();
    let code = format!("import os; os.chdir('{folder}')\n{code}");
    let script = "ip link set lo up; exec python3 -c \"$1\"";
    let mut free = host.plain(["unshare", "--net", "sh", "-c", script, "sh", &code]);
    let run = Running::start(free.stdin(Stdio::null()));
    wait_for("the probe", || host.folder().join("up").exists().then_some(()));
    run
}

/// Without ARP and IPv6 the kernel itself has nothing to say there: every frame is the probe's. Ping sockets are open
/// to everybody, as container engines have it.
fn give_device(host: &Host, process: &str) {
    let script = format!(
        "set -e
        ip link add host0 type veth peer name out0 netns {process}
        nsenter -t {process} -n sysctl -qw net.ipv6.conf.out0.disable_ipv6=1
        nsenter -t {process} -n sysctl -qw net.ipv4.ping_group_range='0 2147483647'
        sysctl -qw net.ipv6.conf.host0.disable_ipv6=1
        ip link set host0 up
        nsenter -t {process} -n sh -c '
        ip link set out0 arp off
        ip addr add 203.0.113.200/24 dev out0
        ip link set out0 up
        ip route add default via 203.0.113.1 dev out0'"
    );
    finish(&mut host.plain(["sh", "-c", &script])).success();
}

fn frames_out_of_device(host: &Host) -> u64 {
    let devices = finish(&mut host.plain(["cat", "/proc/net/dev"])).success();
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("host0:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_nested_network_namespace_gets_nowhere_not_even_to_itself() {
    let Some(host) = Host::new("") else { return };
    let probe = "import socket\n\
                 own = socket.socket(); own.bind(('127.0.0.1', 0)); own.listen()\n\
                 for to in [own.getsockname(), ('203.0.113.9', 80)]:\n  \
                 try: socket.create_connection(to, 5); print('connected')\n  \
                 except OSError as error: print(error.strerror)\n\
                 try: socket.socket(2, 2).sendto(b'x', own.getsockname()); print('sent')\n\
                 except OSError as error: print(error.strerror)\n";
    let nested = format!(
        "unshare --user --map-root-user --net sh -c 'ip link set lo up && python3 -c \"{probe}\"'"
    );
    let free = finish(&mut host.plain(["sh", "-c", &nested]));
    if !free.status.success() {
        println!("SKIPPED: this kernel gives no user namespaces: {free:?}");
        return;
    }
    assert_eq!(free.stdout, "connected\nNetwork is unreachable\nsent\n", "the control");
    let seen = host.sh(&nested);
    assert_eq!(seen.stdout, "Connection refused\n".repeat(3), "{seen:?}");
    let refused = host.records_of("kernel_refused");
    assert_eq!(refused.len(), 3, "{refused:#?}");
    assert_eq!(refused[0]["detail"], "a network namespace that is not armed");
    // Without a user namespace the command has no right to make one.
    let denied = host.sh("unshare --net true");
    assert!(denied.stderr.contains("Operation not permitted"), "{denied:?}");
}

#[test]
fn a_connection_from_outside_the_cgroup_has_no_record_and_is_reset_and_audited() {
    let Some(host) = Host::new("") else { return };
    let run = held(
        &host,
        "import time\nopen('up', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.02)\n",
    );
    // The reset may come before the handshake's end is seen.
    let forged = "import socket\ntry:\n  s = socket.create_connection(('127.0.0.1', 10255), 20)\n  \
                  s.sendall(b'hello'); print(s.recv(100))\nexcept OSError as error: print(error.strerror)";
    let process = inside(run.pid());
    let mut outside = Command::new("nsenter");
    outside.args(["-t", &process, "-n", "python3", "-c", forged]);
    assert_eq!(finish(&mut outside).success(), "Connection reset by peer\n");
    std::fs::write(host.folder().join("go"), "").unwrap();
    run.finish().success();
    let records = host.records();
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(
        (&records[0]["reason"], &records[0]["kind"]),
        (&"no_flow_record".into(), &"connection".into())
    );
    // The control: the same from inside the cgroup is refused before it begins.
    assert_eq!(host.python(forged), "Connection refused\n");
}
