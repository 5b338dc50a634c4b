//! Sockets that are not plain TCP or UDP, and plain ones with options that would send them elsewhere.

use crate::isolation::with_device;
use crate::tollgate::Host;

#[test]
fn a_socket_that_is_neither_tcp_nor_udp_is_refused_as_unsupported_and_audited() {
    let Some(host) = Host::new("") else { return };
    // Ping sockets are refused by default to everybody; container engines open them, and so does this.
    let code = r#"
for name, family, kind, protocol in [
    ("raw icmp", 2, 3, 1), ("raw any", 2, 3, 255), ("raw tcp", 2, 3, 6), ("raw6", 10, 3, 58), ("ping", 2, 2, 1), ("ping6", 10, 2, 58),
    ("udplite", 2, 2, 136), ("udplite6", 10, 2, 136), ("sctp", 2, 1, 132), ("sctp packets", 2, 5, 132), ("mptcp", 2, 1, 262), ("mptcp6", 10, 1, 262),
]:
    try: socket.socket(family, kind, protocol); print(name, "made")
    except OSError as error: print(name, errno.errorcode[error.errno])
for family in (2, 10):
    for kind in (1, 2): socket.socket(family, kind)
socket.socketpair()
print("tcp, udp, unix made")
"#;
    let (seen, _frames) = with_device(&host, code, true);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines.last(), Some(&"tcp, udp, unix made"));
    for line in &lines[..lines.len() - 1] {
        // A kernel without SCTP says so itself.
        let own_word = line.starts_with("sctp") && line.ends_with("ESOCKTNOSUPPORT");
        assert!(line.ends_with("EPROTONOSUPPORT") || own_word, "{seen}");
    }
    let (free, _frames) = with_device(&host, code, false);
    let made = free.lines().filter(|line| line.ends_with(" made")).count();
    assert!(made >= 10, "the control: without Tollgate this kernel makes them: {free}");
    assert!(host.records_of("kernel_refused").len() >= 10);
}

#[test]
fn a_socket_that_is_bound_to_another_device_is_refused() {
    let Some(host) = Host::new("") else { return };
    // The workload has no other device; the programs do not rely on it. One is put into its namespace from outside.
    let code = r#"
for device in (b"out0", b"lo"):
    for family, address in [(socket.AF_INET, "203.0.113.9"), (socket.AF_INET6, "2001:db8::9"), (socket.AF_INET, "127.0.0.1")]:
        s = socket.socket(family); s.settimeout(2)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        try: s.connect((address, 80)); print(device, "connected")
        except OSError as error: print(device, errno.errorcode.get(error.errno))
"#;
    let (seen, frames) = with_device(&host, code, true);
    let lo = "b'lo' connected\nb'lo' connected\nb'lo' ECONNREFUSED\n";
    assert_eq!(seen, "b'out0' EPERM\n".repeat(3) + lo);
    assert_eq!(frames, 0);
    let (free, frames) = with_device(&host, code, false);
    assert!(frames > 0, "the control: {free}");
}

#[test]
fn nothing_leaves_by_a_device_that_appears_in_the_workload() {
    let Some(host) = Host::new("") else { return };
    // The redirect cannot see any of these; the fence looks at the device that a packet is about to leave by.
    let rows = [
        (
            "a datagram to the own loopback with packet info",
            r#"
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
info = struct.pack("i4s4s", socket.if_nametoindex("out0"), bytes(4), bytes(4))
tried(lambda: u.sendmsg([b"x"], [(socket.SOL_IP, 8, info)], 0, ("127.0.0.1", 9)))"#,
        ),
        (
            "the device chosen for the socket's unicasts",
            r#"
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setsockopt(socket.SOL_IP, 50, struct.pack("!I", socket.if_nametoindex("out0")))
tried(lambda: u.sendto(b"x", ("127.0.0.1", 9)))"#,
        ),
        (
            "a connected socket that is bound to the device afterwards",
            r#"
server = socket.socket(); server.bind(("127.0.0.1", 0)); server.listen()
s = socket.socket(); s.bind(("203.0.113.200", 0)); s.connect(server.getsockname())
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"out0"); tried(lambda: s.send(b"leak"))
time.sleep(0.5)"#,
        ),
    ];
    for (name, row) in rows {
        let code = format!(
            "def tried(what):\n  try: what(); print('sent')\n  except OSError as error: print(error)\n{row}"
        );
        let (seen, frames) = with_device(&host, &code, true);
        assert_eq!(frames, 0, "{name}: {seen}");
        let (free, frames) = with_device(&host, &code, false);
        assert!(frames > 0, "the control of {name}: {free}");
    }
}

#[test]
fn a_destination_that_cannot_be_stored_is_refused_and_never_goes_unrecorded() {
    let Some(host) = Host::new("") else { return };
    // Each key is charged to the socket's option memory, until the storage of the destination has no room left.
    let code = r#"
import errno, socket, struct
TCP_MD5SIG = 14
s = socket.socket()
keys = 0
try:
    for i in range(100000):
        address = struct.pack("!HH4s", 0, 0, struct.pack("!I", 0xC6120000 + i)); address = struct.pack("H", 2) + address[2:]
        s.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, address.ljust(128, b"\0") + struct.pack("BBHI", 0, 0, 4, 0) + b"key!".ljust(80, b"\0"))
        keys += 1
except OSError as error: print(errno.errorcode[error.errno], keys > 10)
try: s.connect(("203.0.113.9", 80)); print("connected")
except OSError as error: print(errno.errorcode[error.errno])
s = socket.create_connection(("203.0.113.9", 80), 10); print("another socket connects")
"#;
    let seen = host.python(code);
    if seen.starts_with("EPERM") || seen.starts_with("ENOPROTOOPT") || seen.contains("False") {
        println!("SKIPPED: this kernel has no TCP_MD5SIG for a process without rights: {seen}");
        return;
    }
    assert_eq!(seen, "ENOMEM True\nECONNREFUSED\nanother socket connects\n");
    let refused = host.records_of("kernel_refused");
    assert_eq!(refused.len(), 1, "{refused:#?}");
    assert_eq!(refused[0]["detail"], "the destination could not be recorded");
    assert_eq!(host.records_of("no_flow_record").len(), 0);
}
