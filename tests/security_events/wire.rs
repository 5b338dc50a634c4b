//! Attempts of a workload with a wire, as a container has one, under the daemon.

use crate::classes::fence_sees_processes;
use crate::probe::{Probe, records, refusals};
use crate::tollgate::{Host, finish, wait_for};

/// Frames that no hook of the workload's own side sees, made by hand.
const FRAMES: &str = r#"
def checksum(header):
    total = sum(struct.unpack("!%dH" % (len(header) // 2), header))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def udp(port, payload): return struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload
def v4(to, inner):
    head = lambda check: struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(inner), 1, 0, 64, 17, check, socket.inet_aton("203.0.113.200"), socket.inet_aton(to))
    return head(checksum(head(0))) + inner
def v6(to, inner):
    pton = lambda a: socket.inet_pton(10, a)
    return struct.pack("!IHBB16s16s", 6 << 28, len(inner), 17, 64, pton("2001:db8::200"), pton(to)) + inner
def ethernet(kind, inner): return b"\xff" * 6 + bytes.fromhex("020000000001") + struct.pack("!H", kind) + inner
def sender():
    packet = socket.socket(17, 3, 0); packet.bind(("out0", 0)); return packet
"#;

/// Index of the wire's end on the host.
fn host_device(host: &Host) -> u64 {
    let said = finish(&mut host.plain(["ip", "-o", "link", "show", "host0"])).success();
    said.split_once(':').unwrap().0.parse().unwrap()
}

#[test]
fn a_frame_past_every_hook_is_refused_at_the_wire_and_named_by_what_it_carries() {
    let Some(host) = Host::new("") else { return };
    let code = format!(
        "{FRAMES}
p = sender(); p.send(ethernet(0x0800, v4('203.0.113.1', udp(4433, b'leak'))))
p.send(ethernet(0x86dd, v6('2001:db8::9', udp(4434, b'leak'))))
p.send(ethernet(0x0806, bytes(28))); p.send(ethernet(0x88b5, bytes(50)))"
    );
    let listen = "import socket\nu = socket.socket(2, 2); u.bind(('203.0.113.1', 4433)); u.settimeout(2)\n\
                  open('LISTENS', 'w').close()\ntry: print(u.recv(100))\nexcept TimeoutError: print('nothing')";
    let listens = host.folder().join("listens");
    let listen = listen.replace("LISTENS", listens.to_str().unwrap());
    let heard = |probe: &Probe<'_>| {
        let listener = crate::tollgate::Running::start(&mut host.plain(["python3", "-c", &listen]));
        wait_for("the listener", || listens.exists().then_some(()));
        probe.go();
        std::fs::remove_file(&listens).unwrap();
        listener.finish().success()
    };
    let mut probe = Probe::contained(&host, &code).give_device().govern();
    assert_eq!(heard(&probe), "nothing\n");
    probe.release();
    let found = records(&host, "wire_out");
    let told: Vec<String> = found
        .iter()
        .map(|record| format!("{} {} {}", record["scheme"], record["host"], record["port"]))
        .collect();
    let expected = [
        r#""udp" "203.0.113.1" 4433"#,
        r#""udp" "2001:db8::9" 4434"#,
        r#""arp" null null"#,
        r#""other" null null"#,
    ];
    assert_eq!(told, expected);
    for record in &found {
        assert_eq!(record["device"], host_device(&host), "{record}");
        assert!(record["process"].is_null(), "nobody is named at the wire: {record}");
    }
    let detail = |number: usize| found[number]["detail"].as_str().unwrap().to_owned();
    assert_eq!(detail(0), "a frame out by the wire, from 203.0.113.200:4000");
    assert_eq!(detail(1), "a frame out by the wire, from [2001:db8::200]:4000");
    probe.finish();

    finish(&mut host.plain(["ip", "link", "del", "host0"]));
    let free = Probe::free(&host, &code).give_device();
    assert_eq!(heard(&free), "b'leak'\n", "the control");
    free.finish();
}

#[test]
fn a_frame_from_outside_is_refused_at_the_wire_and_named_with_its_source() {
    let Some(host) = Host::new("") else { return };
    let code = "
u = socket.socket(2, 2); u.bind(('203.0.113.200', 7777)); u.settimeout(2)
mark('bound'); wait('sent')
try: print(u.recv(100).decode())
except TimeoutError: print('nothing')";
    let send = "import socket\nu = socket.socket(2, 2); u.bind(('203.0.113.1', 6666))\n\
                try: u.sendto(b'command', ('203.0.113.200', 7777))\nexcept OSError as error: print(error)";
    let attempt = |probe: &Probe<'_>| {
        probe.mark("go");
        wait_for("the socket", || host.folder().join("bound").exists().then_some(()));
        host.ungoverned_python(send);
        probe.mark("sent");
    };
    let probe = Probe::contained(&host, code).give_device().govern();
    attempt(&probe);
    let record = &probe.records("wire_in", 1)[0];
    assert_eq!((&record["host"], &record["port"]), (&"203.0.113.200".into(), &7777.into()));
    assert_eq!(record["detail"], "a frame in by the wire, from 203.0.113.1:6666");
    assert_eq!(record["device"], host_device(&host));
    assert_eq!(probe.finish().trim(), "nothing");
    for mark in ["bound", "sent"] {
        std::fs::remove_file(host.folder().join(mark)).unwrap();
    }
    finish(&mut host.plain(["ip", "link", "del", "host0"]));
    let free = Probe::free(&host, code).give_device();
    attempt(&free);
    assert_eq!(free.finish().trim(), "command", "the control");
}

#[test]
fn of_a_flood_of_frames_every_one_is_recorded_or_counted() {
    let Some(host) = Host::new("") else { return };
    let code = format!(
        "{FRAMES}
p = sender(); frame = ethernet(0x0800, v4('203.0.113.1', udp(4433, b'leak'))); sent = 0
while sent < 50000:
    try: p.send(frame); sent += 1
    except OSError: pass
print(sent)"
    );
    let mut probe = Probe::contained(&host, &code).give_device().govern();
    probe.go();
    probe.release();
    assert_eq!(refusals(&host, "wire_out"), 50_000);
    assert!(records(&host, "wire_out").len() < 2000);
    assert_eq!(probe.finish().trim(), "50000");
}

#[test]
fn ipv6_without_a_listener_for_it_is_in_the_audit() {
    let Some(host) = Host::new("") else { return };
    // The listener stands a moment before the namespace is armed; until then everything is refused alike.
    let code = "
said = errno.ECONNREFUSED
while said == errno.ECONNREFUSED: said = socket.socket(10).connect_ex(('2001:db8::9', 443))
print(errno.errorcode[said])";
    let probe = Probe::contained(&host, code);
    let all = format!("nsenter -t {} -n sysctl -qw net.ipv6.conf.all.disable_ipv6=1", probe.pid);
    finish(&mut host.plain(["sh", "-c", &all])).success();
    let probe = probe.govern();
    probe.go();
    let record = &probe.records("no_ipv6", 1)[0];
    probe.is_named_in(record);
    assert_eq!((&record["host"], &record["port"]), (&"2001:db8::9".into(), &443.into()));
    assert_eq!(probe.finish().trim(), "ENETUNREACH");
}

#[test]
fn a_packet_that_the_fence_refuses_names_its_process_in_a_workload_that_came_later_as_well() {
    let Some(host) = Host::new("") else { return };
    // Everything is refused alike until the daemon has opened the way to the gateway.
    let code = "
u = socket.socket(2, 2); info = struct.pack('i4s4s', out0, bytes(4), bytes(4))
said = errno.ECONNREFUSED
while said == errno.ECONNREFUSED:
    try: u.sendmsg([b'x'], [(socket.SOL_IP, 8, info)], 0, ('127.0.0.1', 9)); said = 0
    except OSError as error: said = error.errno
print(errno.errorcode.get(said, 'DONE'))";
    let mut probe = Probe::contained(&host, code).give_device().govern();
    probe.move_to_a_later_cgroup();
    probe.go();
    let record = &probe.records("fence_egress", 1)[0];
    if fence_sees_processes() {
        probe.is_named_in(record);
    } else {
        assert!(record["process"].is_null(), "{record}");
    }
    assert_eq!(probe.finish().trim(), "EPERM");
    finish(&mut host.plain(["ip", "link", "del", "host0"]));

    let free = Probe::free(&host, code).give_device();
    free.go();
    assert_eq!(free.finish().trim(), "DONE", "the control");
}
