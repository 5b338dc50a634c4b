//! One attempt of each class that a command under `tollgate run` can make.

use crate::probe::Probe;
use crate::tollgate::{Host, wait_for};

struct Row {
    class: &'static str,
    code: &'static str,
    /// What the probe says when it is governed, and when it is not.
    said: [&'static str; 2],
    scheme: &'static str,
    /// Host and port of the record.
    destination: Option<(&'static str, u16)>,
    /// Whether the record names the device.
    has_device: bool,
}

const ROWS: [Row; 9] = [
    Row {
        class: "udp",
        code: "u = socket.socket(2, 2); tried(lambda: u.sendto(b'x', ('203.0.113.9', 4433)))",
        said: ["ECONNREFUSED", "DONE"],
        scheme: "udp",
        destination: Some(("203.0.113.9", 4433)),
        has_device: false,
    },
    Row {
        class: "udp",
        code: "u = socket.socket(10, 2); tried(lambda: u.sendto(b'x', ('::ffff:203.0.113.9', 4433)))",
        said: ["ECONNREFUSED", "DONE"],
        scheme: "udp",
        destination: Some(("203.0.113.9", 4433)),
        has_device: false,
    },
    Row {
        class: "udp",
        code: "u = socket.socket(2, 2); u.connect(('203.0.113.53', 53)); tried(lambda: u.sendto(b'x', ('203.0.113.9', 4433)))",
        said: ["ECONNREFUSED", "DONE"],
        scheme: "udp",
        destination: Some(("203.0.113.9", 4433)),
        has_device: false,
    },
    Row {
        class: "socket_family",
        code: "tried(lambda: socket.socket(2, 3, 1))",
        said: ["EPROTONOSUPPORT", "DONE"],
        scheme: "icmp",
        destination: None,
        has_device: false,
    },
    Row {
        class: "gateway_port_connect",
        code: "
s = socket.socket()
try: s.bind(('127.0.0.1', 10255)); s.listen()
except OSError: pass
tried(lambda: socket.create_connection(('127.0.0.1', 10255), 5))",
        said: ["ECONNREFUSED", "DONE"],
        scheme: "tcp",
        destination: Some(("127.0.0.1", 10255)),
        has_device: false,
    },
    Row {
        class: "gateway_port_bind",
        code: "tried(lambda: socket.socket().bind(('127.0.0.2', 10255)))",
        said: ["EPERM", "DONE"],
        scheme: "tcp",
        destination: Some(("127.0.0.2", 10255)),
        has_device: false,
    },
    Row {
        class: "gateway_port_bind",
        code: "tried(lambda: socket.socket(10, 2).bind(('::ffff:127.0.0.2', 10255)))",
        said: ["EPERM", "DONE"],
        scheme: "udp",
        destination: Some(("127.0.0.2", 10255)),
        has_device: false,
    },
    Row {
        class: "device_bound",
        code: "
s = socket.socket(); s.setblocking(False); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'out0')
tried(lambda: s.connect(('203.0.113.9', 80)))",
        said: ["EPERM", "EINPROGRESS"],
        scheme: "tcp",
        destination: Some(("203.0.113.9", 80)),
        has_device: true,
    },
    Row {
        class: "fence_egress",
        code: "
u = socket.socket(2, 2); info = struct.pack('i4s4s', out0, bytes(4), bytes(4))
tried(lambda: u.sendmsg([b'x'], [(socket.SOL_IP, 8, info)], 0, ('127.0.0.1', 9)))",
        said: ["EPERM", "DONE"],
        scheme: "udp",
        destination: Some(("127.0.0.1", 9)),
        has_device: true,
    },
];

/// Whether this kernel tells the fence which process runs; without, its records name the cgroup alone.
pub(crate) fn fence_sees_processes() -> bool {
    use aya::sys::{BpfHelper, is_helper_supported};
    let kind = aya::programs::ProgramType::CgroupSkb;
    let helpers = [
        BpfHelper::BPF_FUNC_get_current_pid_tgid,
        BpfHelper::BPF_FUNC_get_current_comm,
        BpfHelper::BPF_FUNC_get_current_cgroup_id,
    ];
    helpers.into_iter().all(|helper| is_helper_supported(kind, helper).unwrap_or(false))
}

#[test]
fn each_refused_attempt_is_in_the_audit_with_its_class_its_process_and_its_destination() {
    for row in ROWS {
        let Some(host) = Host::new("") else { return };
        let probe = Probe::governed(&host, row.code).give_device();
        probe.go();
        let found = probe.records(row.class, 1);
        assert_eq!(found.len(), 1, "{found:#?}");
        let record = &found[0];
        if row.class == "fence_egress" && !fence_sees_processes() {
            assert!(record["process"].is_null(), "{record}");
        } else {
            probe.is_named_in(record);
        }
        assert_eq!(record["scheme"], row.scheme, "{record}");
        match row.destination {
            Some((host, port)) => {
                assert_eq!(record["host"], host, "{record}");
                assert_eq!(record["port"], port, "{record}");
            }
            None => assert!(record["host"].is_null() && record["port"].is_null(), "{record}"),
        }
        let device = row.has_device.then(|| probe.device());
        assert_eq!(record["device"].as_u64(), device, "{record}");
        assert!(record["count"].is_null(), "{record}");
        assert_eq!(probe.finish().trim(), row.said[0], "{}", row.class);

        let free = Probe::free(&host, row.code).give_device();
        free.go();
        assert_eq!(free.finish().trim(), row.said[1], "the control of {}", row.class);
    }
}

#[test]
fn a_datagram_from_outside_to_a_workload_s_socket_is_refused_and_named_with_its_source() {
    let Some(host) = Host::new("") else { return };
    let code = "
u = socket.socket(2, 2); u.bind(('203.0.113.200', 7777)); u.settimeout(5)
mark('bound'); wait('sent')
try: print(u.recv(100).decode())
except TimeoutError: print('nothing')";
    let send = "import socket\nu = socket.socket(2, 2); u.bind(('203.0.113.1', 6666)); u.sendto(b'command', ('203.0.113.200', 7777))";
    let attempt = |probe: &Probe<'_>| {
        probe.mark("go");
        wait_for("the socket", || host.folder().join("bound").exists().then_some(()));
        host.ungoverned_python(send);
        probe.mark("sent");
    };
    let probe = Probe::governed(&host, code).give_device();
    attempt(&probe);
    let record = &probe.records("fence_ingress", 1)[0];
    assert_eq!((&record["host"], &record["port"]), (&"203.0.113.200".into(), &7777.into()));
    assert_eq!(record["detail"], "a packet in by a device other than lo, from 203.0.113.1:6666");
    assert_eq!(record["device"], probe.device());
    assert!(record["process"].is_null(), "nobody in the workload did it: {record}");
    assert_eq!(probe.finish().trim(), "nothing");
    for mark in ["bound", "sent"] {
        std::fs::remove_file(host.folder().join(mark)).unwrap();
    }

    let free = Probe::free(&host, code).give_device();
    attempt(&free);
    assert_eq!(free.finish().trim(), "command", "the control");
}

#[test]
fn an_attempt_out_of_a_nested_namespace_is_in_the_audit() {
    let Some(host) = Host::new("") else { return };
    let code = r#"
inner = "import socket\ntry: socket.socket(2, 2).sendto(b'x', ('127.0.0.1', 9)); print('DONE')\nexcept OSError as e: print(e.errno)"
nested = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "ip link set lo up && exec python3 -c \"$1\"", "sh", inner]
print(subprocess.run(nested, stdout=subprocess.PIPE).stdout.decode())"#;
    let free = Probe::free(&host, code);
    free.go();
    let control = free.finish();
    if control.trim() != "DONE" {
        println!("SKIPPED: this kernel gives no user namespaces: {control}");
        return;
    }
    let probe = Probe::governed(&host, code);
    probe.go();
    let record = &probe.records("unknown_namespace", 1)[0];
    assert_eq!((&record["host"], &record["port"]), (&"127.0.0.1".into(), &9.into()));
    assert!(record["process"]["comm"].as_str().unwrap().starts_with("python"), "{record}");
    assert_eq!(record["cgroup"], probe.cgroup);
    assert_eq!(probe.finish().trim(), "111");
}

#[test]
fn a_destination_that_could_not_be_stored_is_in_the_audit() {
    let Some(host) = Host::new("") else { return };
    // Each key is charged to the socket's option memory, until there is none left for the destination.
    let code = r#"
s = socket.socket()
try:
    for i in range(100000):
        address = struct.pack("H", 2) + struct.pack("!HI", 0, 0xC6120000 + i)
        s.setsockopt(socket.IPPROTO_TCP, 14, address.ljust(128, b"\0") + struct.pack("BBHI", 0, 0, 4, 0) + b"key!".ljust(80, b"\0"))
except OSError as error:
    if error.errno == errno.ENOMEM and i > 10: mark("exhausted")
tried(lambda: s.connect(("203.0.113.9", 80)))"#;
    let probe = Probe::governed(&host, code);
    probe.go();
    if !host.folder().join("exhausted").exists() {
        println!("SKIPPED: this kernel has no TCP_MD5SIG for a process without rights");
        probe.finish();
        return;
    }
    let record = &probe.records("storage_exhausted", 1)[0];
    probe.is_named_in(record);
    assert_eq!((&record["host"], &record["port"]), (&"203.0.113.9".into(), &80.into()));
    assert_eq!(probe.finish(), "ECONNREFUSED\n");
}

#[test]
fn each_connection_more_than_the_table_holds_is_in_the_audit() {
    let Some(host) = Host::new("") else { return };
    host.configure_without_rate();
    // Every source address and port is a record of its own; the gateway, which would take them out, stands still.
    let max = gateway_ebpf::abi::FLOWS_MAX;
    let code = format!(
        r#"
made = 0
for i in range({max} + 40):
    s = socket.socket(); s.setblocking(False)
    s.bind(("127.%d.%d.1" % (1 + i // 250, i % 250), 0))
    if s.connect_ex(("203.0.113.9", 80)) == errno.EINPROGRESS: made += 1
    s.close()
print(made == {max} + 40)"#
    );
    let probe = Probe::governed(&host, &code);
    let tollgate = nix::unistd::Pid::from_raw(i32::try_from(probe.parent()).unwrap());
    nix::sys::signal::kill(tollgate, nix::sys::signal::Signal::SIGSTOP).unwrap();
    probe.go();
    nix::sys::signal::kill(tollgate, nix::sys::signal::Signal::SIGCONT).unwrap();
    let record = &probe.records("flow_table_full", 1)[0];
    probe.is_named_in(record);
    assert_eq!((&record["host"], &record["port"]), (&"203.0.113.9".into(), &80.into()));
    assert_eq!(probe.finish().trim(), "True");
    assert_eq!(crate::probe::refusals(&host, "flow_table_full"), 40);
}
