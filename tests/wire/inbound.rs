//! `inbound = […]`: connections come in to the ports that are named, and from those ports nothing else goes out.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::common::wait_until;
use crate::scene::Scene;

/// A server that upper-cases what it gets on the port.
fn server(port: u16) -> String {
    format!(
        "s = socket.create_server(('0.0.0.0', {port})); print('up', flush=True)
import threading
def serve(c):
    with c:
        while data := c.recv(65536): c.sendall(data.upper())
while True: threading.Thread(target=serve, args=[s.accept()[0]], daemon=True).start()"
    )
}

/// A connection from the calling thread's namespace to a port of the workload.
fn connected(port: u16) -> TcpStream {
    let to = SocketAddr::from(([10, 9, 0, 11], port));
    TcpStream::connect_timeout(&to, Duration::from_secs(20)).unwrap()
}

/// What a connection of the neighbour's to a port of the workload answers, after so many bytes.
fn asks(scene: &Scene, port: u16, bytes: usize) -> Option<usize> {
    scene.neighbour.run(move || {
        let to = format!("10.9.0.11:{port}").parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            writer.write_all(&vec![b'a'; bytes]).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        writing.join().unwrap();
        assert!(answer.iter().all(|byte| *byte == b'A'));
        Some(answer.len())
    })
}

#[test]
fn a_named_port_is_reached_from_outside_and_no_other_and_none_without_words() {
    for (agent, expected) in [("inbound = [8080]", Some(300_000)), ("", None)] {
        let Some(mut scene) = Scene::new(agent) else { return };
        scene.add_interface(1);
        let servers = [8080, 8081].map(|port| {
            let mut server = scene.start(&server(port));
            server.wait_until_printed("up");
            server
        });
        assert_eq!(asks(&scene, 8080, 10), Some(10), "the control");
        assert_eq!(asks(&scene, 8081, 10), Some(10), "the control");
        scene.govern();
        assert_eq!(asks(&scene, 8080, 300_000), expected, "{agent} {}", scene.complaints());
        assert_eq!(asks(&scene, 8081, 10), None, "{agent}");
        drop(servers);
    }
}

/// Segments from the published port to somebody who has not connected, and to somebody who has but elsewhere.
const TRICKS: &str = r"
own = mac('eth1'); there = bytes.fromhex(sys.argv[1]); far_port = int(sys.argv[2])
def checksum(data):
    total = sum(struct.unpack('>%dH' % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return 0xffff - (total + (total >> 16))
def ip(payload, dst='10.9.0.3'):
    head = lambda sum: struct.pack('>BBHHHBBH4s4s', 0x45, 0, 20 + len(payload), 7, 0x4000, 64, 6, sum,
        socket.inet_aton('10.9.0.11'), socket.inet_aton(dst))
    return head(checksum(head(0))) + payload
def seg(dport, sport=8080, flags=0x18):
    return struct.pack('>HHIIBBHHH', sport, dport, 1, 1, 0x50, flags, 1000, 0, 0) + b'ESCAPED!'
s = packet()
for packet, to in [(ip(seg(far_port + 1)), there), (ip(seg(far_port, flags=2)), there), (ip(seg(far_port, sport=8081)), there),
                   (ip(seg(far_port), dst='10.9.0.4'), there), (ip(seg(far_port)), b'\x02\x99\0\0\0\x01'),
                   (ip(seg(far_port)), b'\xff' * 6), (ip(seg(443, flags=0x12)), there), (ip(seg(443, flags=4)), there)]:
    s.sendto(to + own + b'\x08\0' + packet, ('eth1', 0))
# Out of a socket that is bound to the port: only the gateway may be reached.
c = socket.socket(); c.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); c.setsockopt(socket.SOL_SOCKET, 15, 1)
c.settimeout(3)
try:
    c.bind(('10.9.0.11', 8080)); c.connect(('10.9.0.3', 9999)); c.sendall(b'ESCAPED')
except OSError: pass
print('tried')
";

#[test]
fn from_a_named_port_nobody_is_reached_who_has_not_connected() {
    let Some(mut scene) = Scene::new("inbound = [8080, 8081]") else { return };
    scene.add_interface(1);
    let code = server(8080).replace(
        "s = socket.create_server(('0.0.0.0', 8080))",
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, 15, 1); s.bind(('0.0.0.0', 8080)); s.listen()",
    );
    let mut server = scene.start(&code);
    server.wait_until_printed("up");
    let tricks = |scene: &Scene| {
        // One connection that is open meanwhile.
        let (there, port) = scene.neighbour.run(|| {
            let mut here = gateway::capture::Netlink::here().unwrap();
            let hardware = here.link_named("n0").unwrap().unwrap().hardware;
            let mut stream = connected(8080);
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            let port = stream.local_addr().unwrap().port();
            tokio::spawn(async move {
                // It lives as long as the neighbour.
                std::future::pending::<()>().await;
                drop(stream);
            });
            (hardware, port)
        });
        let there: String = there.iter().map(|byte| format!("{byte:02x}")).collect();
        scene.settle();
        scene.tap.forget();
        let code = format!("sys.argv += ['{there}', '{port}']\n{TRICKS}");
        assert_eq!(scene.inside(&code), "tried\n");
        scene.escaped().into_iter().filter(|frame| crate::scene::holds(frame, b"ESCAPED")).count()
    };
    assert!(tricks(&scene) >= 7, "the control");
    scene.govern();
    assert_eq!(tricks(&scene), 0);
}

#[test]
fn a_workload_learns_that_who_has_come_in_has_left() {
    let Some(mut scene) = Scene::new("inbound = [8080]") else { return };
    scene.add_interface(1);
    scene.govern();
    let code = "s = socket.create_server(('0.0.0.0', 8080)); print('up', flush=True)
c, _ = s.accept(); c.recv(1)
try:
    while True: c.sendall(b'x' * 100); time.sleep(0.02)
except OSError as error: print(errno.errorcode[error.errno], flush=True)
";
    let mut server = scene.start(code);
    server.wait_until_printed("up");
    // A close with bytes unread is a reset.
    scene.neighbour.run(|| {
        let mut stream = connected(8080);
        stream.write_all(b"x").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    });
    // It learns of it, and nothing of it goes out any more, not even raw.
    assert!(server.wait().ok().contains("up\n"));
}

#[test]
fn a_workload_that_is_served_no_more_is_not_reached_at_a_named_port_either() {
    let Some(mut scene) = Scene::new("inbound = [8080]") else { return };
    scene.add_interface(1);
    let mut server = scene.start(&server(8080));
    server.wait_until_printed("up");
    scene.govern();
    wait_until("the control", || asks(&scene, 8080, 10) == Some(10));
    scene.disown();
    assert_eq!(asks(&scene, 8080, 10), None);
}
