//! UDP: queries to any server are answered, and the answer seems to come from that server; the rest is refused.

use crate::tollgate::Host;

/// A query for an A record, and what became of it.
const QUERY: &str = r#"
import errno, socket, struct
def query(name):
    labels = b"".join(bytes([len(l)]) + l for l in name.encode().split(b".")) + b"\0"
    return struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">HH", 1, 1)
def code(reply):
    assert reply[:2] == b"\x12\x34", reply
    return reply[3] & 15
SERVERS = [(socket.AF_INET, "203.0.113.53"), (socket.AF_INET6, "2001:db8::53"),
           (socket.AF_INET6, "::ffff:203.0.113.53"), (socket.AF_INET, "127.0.0.53"), (socket.AF_INET, "127.0.0.1")]
"#;

#[test]
fn an_answer_comes_from_the_server_that_was_asked_whether_connected_or_not() {
    let Some(host) = Host::new("") else { return };
    let seen = host.python(&format!(
        r#"{QUERY}
for family, server in SERVERS:
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(20)
    s.sendto(query("denied.example.com"), (server, 53))
    reply, sender = s.recvfrom(512)
    print("unconnected", code(reply), sender[0] == server, sender[1])
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(20)
    s.connect((server, 53)); s.send(query("denied.example.com"))
    reply, sender = s.recvfrom(512)
    print("connected", code(reply), sender[0] == server, sender[1], s.getpeername()[0] == server)
    s.send(query("denied.example.com")); reply, _, _, sender = s.recvmsg(512)
    print("recvmsg", code(reply), sender[0] == server)
    s = socket.create_connection((server, 53)); s.settimeout(20)
    question = query("denied.example.com"); s.sendall(struct.pack(">H", len(question)) + question)
    print("tcp", code(s.recv(4096)[2:]), s.getpeername()[0] == server)
"#
    ));
    let one = "unconnected 0 True 53\nconnected 0 True 53 True\nrecvmsg 0 True\ntcp 0 True\n";
    assert_eq!(seen, one.repeat(5));
    // One record per query: five servers, four queries each.
    assert_eq!(host.records().iter().filter(|record| record["kind"] == "dns").count(), 20);
}

#[test]
fn one_socket_that_asks_two_servers_in_turn_sees_each_answer_from_its_server() {
    let Some(host) = Host::new("") else { return };
    let seen = host.python(&format!(
        r#"{QUERY}
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)
for server in ["203.0.113.53", "203.0.113.54", "203.0.113.53"]:
    s.sendto(query("denied.example.com"), (server, 53)); print(s.recvfrom(512)[1][0])
"#
    ));
    assert_eq!(seen, "203.0.113.53\n203.0.113.54\n203.0.113.53\n");
}

#[test]
fn the_c_library_s_resolver_works() {
    let Some(host) = Host::new("") else { return };
    let seen = host.python(
        "import socket\nprint(len(socket.getaddrinfo('denied.example.com', 80, type=socket.SOCK_STREAM)) > 0)\n\
         try: socket.getaddrinfo('2001:db8::9', 80)\nexcept OSError as error: print(error)",
    );
    assert_eq!(seen, "True\n");
}

#[test]
fn datagrams_to_anywhere_but_dns_and_the_own_loopback_are_refused_and_audited() {
    let Some(host) = Host::new("") else { return };
    let code = r#"
import errno, socket
def tried(what):
    try: what(); return "sent"
    except OSError as error: return errno.errorcode[error.errno]
for family, address, port in [
    (socket.AF_INET, "203.0.113.9", 443), (socket.AF_INET6, "2001:db8::9", 443), (socket.AF_INET6, "::ffff:203.0.113.9", 443),
    (socket.AF_INET, "224.0.0.251", 5353), (socket.AF_INET6, "ff02::fb", 5353), (socket.AF_INET, "255.255.255.255", 67),
]:
    s = socket.socket(family, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    print(tried(lambda: s.sendto(b"x", (address, port))))
    print(tried(lambda: s.sendmsg([b"x"], [], 0, (address, port))))
    print(tried(lambda: socket.socket(family, socket.SOCK_DGRAM).connect((address, port))))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); tried(lambda: s.connect(("203.0.113.53", 53)))
print(tried(lambda: s.sendto(b"x", ("203.0.113.9", 443))))
"#;
    assert_eq!(host.python(code), "ECONNREFUSED\n".repeat(19));
    let refused = host.records_of("kernel_refused");
    // A connect sends nothing and is not audited; two datagrams per row are, and the last one.
    assert_eq!(refused.len(), 13, "{refused:#?}");
    assert!(
        refused.iter().all(|record| record["scheme"] == "udp" && record["decision"] == "block")
    );
    assert_eq!(refused[0]["host"], "203.0.113.9");
    assert_eq!(refused[0]["port"], 443);
    assert_eq!(refused[0]["process"]["comm"], "python3");
    // The control: with the addresses on a namespace's own lo, datagrams arrive there without Tollgate.
    let own = host.plain("ip addr add 203.0.113.9/32 dev lo".split(' ')).status().unwrap();
    assert!(own.success());
    let free = host.ungoverned_python(code);
    assert!(free.starts_with("sent\nsent\nsent\n"), "{free}");
}
