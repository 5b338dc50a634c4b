//! TCP: every way to connect arrives at the gateway with the destination that was meant.

use serde_json::Value;

use crate::tollgate::{Host, finish};

/// A request for whatever the probe connected to; the answer's body names what the gateway takes for the host.
const ASK: &str = r#"
import errno, json, os, select, socket, struct, sys
def ask(s, host):
    s.settimeout(20)
    s.sendall(b"GET /probe HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode())
    return answer(s)
def answer(s):
    s.settimeout(20)
    data = b""
    while True:
        more = s.recv(65536)
        if not more: break
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    return json.loads(body).get("host")
"#;

fn probe(host: &Host, code: &str) -> String {
    host.python(&format!("{ASK}{code}"))
}

/// Host and port of the requests that were audited, in order.
fn requested(host: &Host) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    host.records()
        .iter()
        .filter(|record| record["kind"] == "request")
        .map(|record| format!("{} {}", text(&record["host"]), record["port"]))
        .collect()
}

#[test]
fn the_first_instructions_of_a_static_binary_are_governed() {
    let Some(host) = Host::new("") else { return };
    let source = host.folder().join("first.c");
    let program = host.folder().join("first");
    std::fs::write(
        &source,
        r#"#include <arpa/inet.h>
        #include <sys/socket.h>
        #include <unistd.h>
        int main(void) {
            struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(80) };
            inet_pton(AF_INET, "203.0.113.9", &to.sin_addr);
            int s = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(s, (struct sockaddr *)&to, sizeof to)) return 3;
            char ask[] = "GET / HTTP/1.0\r\nHost: 203.0.113.9\r\n\r\n", answer[4096];
            if (write(s, ask, sizeof ask - 1) < 0) return 4;
            for (int n; (n = read(s, answer, sizeof answer)) > 0;) write(1, answer, n);
            return 0;
        }"#,
    )
    .unwrap();
    let (source, program) = (source.to_str().unwrap(), program.to_str().unwrap());
    finish(std::process::Command::new("cc").args(["-static", "-o", program, source])).success();
    let answer = finish(&mut host.run(&[program])).success();
    assert!(answer.contains("blocked_by_default_policy"), "{answer}");
    assert_eq!(requested(&host), ["203.0.113.9 80"]);
    assert_eq!(finish(&mut host.plain([program])).status.code(), Some(3), "the control: no way");
}

#[test]
fn the_peer_that_a_socket_sees_is_the_one_it_asked_for_in_every_family() {
    let Some(host) = Host::new("") else { return };
    let seen = probe(
        &host,
        r#"
for family, address in [(socket.AF_INET, "203.0.113.9"), (socket.AF_INET6, "2001:db8::9"), (socket.AF_INET6, "::ffff:203.0.113.9")]:
    s = socket.socket(family)
    s.connect((address, 80))
    print(*s.getpeername()[:2])
    print(ask(s, "203.0.113.9" if "." in address else "[2001:db8::9]"))
"#,
    );
    assert_eq!(
        seen,
        "203.0.113.9 80\n203.0.113.9\n2001:db8::9 80\n[2001:db8::9]\n::ffff:203.0.113.9 80\n203.0.113.9\n"
    );
    assert_eq!(requested(&host), ["203.0.113.9 80", "[2001:db8::9] 80", "203.0.113.9 80"]);
}

#[test]
fn a_nonblocking_connect_arrives_with_its_destination() {
    let Some(host) = Host::new("") else { return };
    let seen = probe(
        &host,
        r#"
s = socket.socket(); s.setblocking(False)
print(errno.errorcode[s.connect_ex(("203.0.113.10", 8080))])
select.select([], [s], [], 20)
print(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
print(ask(s, "203.0.113.10:8080"))
"#,
    );
    assert_eq!(seen, "EINPROGRESS\n0\n203.0.113.10\n");
    assert_eq!(requested(&host), ["203.0.113.10 8080"]);
}

#[test]
fn fast_open_in_both_forms_arrives_with_its_destination() {
    let Some(host) = Host::new("") else { return };
    let seen = probe(
        &host,
        r#"
TCP_FASTOPEN_CONNECT, MSG_FASTOPEN = 30, 0x20000000
for round in range(2):
    s = socket.socket(); s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    s.connect(("203.0.113.11", 80)); print(ask(s, "203.0.113.11"))
    for family, address, name in [(socket.AF_INET, "203.0.113.12", "203.0.113.12"), (socket.AF_INET6, "2001:db8::12", "[2001:db8::12]")]:
        s = socket.socket(family)
        s.sendto(b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % name.encode(), MSG_FASTOPEN, (address, 80))
        print(answer(s))
"#,
    );
    let round = "203.0.113.11\n203.0.113.12\n[2001:db8::12]\n";
    assert_eq!(seen, round.repeat(2));
    assert_eq!(
        requested(&host),
        ["203.0.113.11 80", "203.0.113.12 80", "[2001:db8::12] 80"].repeat(2)
    );
}

#[test]
fn a_socket_that_is_used_again_has_its_new_destination() {
    let Some(host) = Host::new("") else { return };
    let seen = probe(
        &host,
        r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def dissolve(s):
    unspec = struct.pack("H14x", 0)
    assert libc.connect(s.fileno(), unspec, 16) == 0, os.strerror(ctypes.get_errno())
own = socket.socket(); own.bind(("127.0.0.1", 0)); own.listen()
s = socket.socket()
s.connect(("203.0.113.20", 80)); print(*s.getpeername())
dissolve(s)
s.connect(own.getsockname()); print(s.getpeername() == own.getsockname())
own.accept()[0].close(); dissolve(s)
s.connect(("203.0.113.21", 81)); print(*s.getpeername())
print(ask(s, "203.0.113.21:81"))
"#,
    );
    assert_eq!(seen, "203.0.113.20 80\nTrue\n203.0.113.21 81\n203.0.113.21\n");
    assert_eq!(requested(&host), ["203.0.113.21 81"]);
}

#[test]
fn connections_that_share_a_port_by_different_sources_are_kept_apart() {
    let Some(host) = Host::new("") else { return };
    let seen = probe(
        &host,
        r#"
sockets = []
for last in range(2, 12):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.%d" % last, 40000)); s.connect(("203.0.113.%d" % last, 80)); sockets.append(s)
for last, s in reversed(list(enumerate(sockets, 2))):
    print(ask(s, "203.0.113.%d" % last))
"#,
    );
    let expected: Vec<String> = (2..12).rev().map(|last| format!("203.0.113.{last}")).collect();
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_source_that_is_not_the_workload_s_own_gets_nowhere() {
    let Some(host) = Host::new("") else { return };
    let code = r#"
import socket
IP_FREEBIND, IP_TRANSPARENT, IPV6_FREEBIND, IPV6_TRANSPARENT = 15, 19, 78, 75
for family, level, option, source, to in [
    (socket.AF_INET, socket.SOL_IP, IP_FREEBIND, "203.0.113.77", "203.0.113.9"),
    (socket.AF_INET, socket.SOL_IP, IP_TRANSPARENT, "203.0.113.77", "203.0.113.9"),
    (socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_FREEBIND, "2001:db8::77", "2001:db8::9"),
    (socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_TRANSPARENT, "2001:db8::77", "2001:db8::9"),
]:
    s = socket.socket(family)
    try:
        s.setsockopt(level, option, 1); s.bind((source, 0)); s.settimeout(2); s.connect((to, 80)); s.recv(1)
        print("through")
    except OSError as error: print("refused")
"#;
    assert_eq!(host.python(code), "refused\n".repeat(4));
    assert_eq!(requested(&host), Vec::<String>::new());
}

#[test]
fn the_gateway_s_port_can_be_neither_taken_nor_called() {
    let Some(host) = Host::new("") else { return };
    let code = r#"
import errno, socket
def tried(what):
    try: return what() or "done"
    except OSError as error: return errno.errorcode[error.errno]
for family, kind, address in [
    (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"), (socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0"),
    (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.2"), (socket.AF_INET6, socket.SOCK_STREAM, "::"),
    (socket.AF_INET6, socket.SOCK_STREAM, "::ffff:127.0.0.2"), (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.2"),
    (socket.AF_INET6, socket.SOCK_DGRAM, "::1"),
]:
    s = socket.socket(family, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    print("bind", tried(lambda: s.bind((address, 10255))))
for family, address in [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::ffff:127.0.0.1")]:
    print("tcp", tried(lambda: socket.socket(family).connect((address, 10255))))
    u = socket.socket(family, socket.SOCK_DGRAM)
    print("udp", tried(lambda: u.sendto(b"x", (address, 10255)) and None))
print("bind", tried(lambda: socket.socket().bind(("127.0.0.2", 10256))))
"#;
    let seen = host.python(code);
    let lines: Vec<&str> = seen.lines().collect();
    // The listener's own addresses are in use; every other one on its port is refused by the program.
    for line in &lines[..7] {
        assert!(["bind EPERM", "bind EADDRINUSE"].contains(line), "{seen}");
    }
    assert!(lines[..7].contains(&"bind EPERM"), "{seen}");
    for line in &lines[7..15] {
        assert!(line.ends_with(" ECONNREFUSED"), "{seen}");
    }
    assert_eq!(lines[15], "bind done", "another port is the workload's own");
    let free = host.ungoverned_python(code);
    assert!(free.lines().take(7).all(|line| line == "bind done"), "the control: {free}");
}

#[test]
fn the_workload_s_own_servers_work_on_every_loopback_address() {
    let Some(host) = Host::new("") else { return };
    let code = r#"
import socket
for family, bound, called in [
    (socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET, "127.0.0.1", "0.0.0.0"),
    (socket.AF_INET, "127.9.9.9", "127.9.9.9"), (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
    (socket.AF_INET6, "::1", "::1"), (socket.AF_INET6, "::1", "::"), (socket.AF_INET6, "::", "::ffff:127.0.0.1"),
]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        server = socket.socket(family, kind); server.bind((bound, 0)); server.settimeout(10)
        client = socket.socket(family, kind); client.settimeout(10)
        if kind == socket.SOCK_STREAM: server.listen()
        client.connect((called, server.getsockname()[1])); client.send(b"hello")
        taken = server.accept()[0] if kind == socket.SOCK_STREAM else server
        data, sender = taken.recvfrom(9)
        if kind == socket.SOCK_STREAM: taken.send(b"back")
        else: taken.sendto(b"back", sender)
        print(called, data, client.recv(9), client.getpeername()[1] == server.getsockname()[1])
"#;
    let seen = host.python(code);
    assert_eq!(seen.lines().count(), 14, "{seen}");
    assert!(seen.lines().all(|line| line.ends_with("b'hello' b'back' True")), "{seen}");
    assert_eq!(seen, host.ungoverned_python(code), "as without Tollgate");
    assert_eq!(host.records(), Vec::<Value>::new(), "nothing to audit");
}
