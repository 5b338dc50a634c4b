//! `network = "neighbours"`: who is named is reached, by TCP to the named port, and nobody else, nor otherwise.

use crate::scene::{Scene, holds};

const NAMED: &str = "network = \"neighbours\"\nneighbours = [\"10.9.0.3:5432\"]";

fn scene(agent: &str) -> Option<Scene> {
    let scene = Scene::new(agent)?;
    scene.add_interface(1);
    for (address, port) in [("10.9.0.3", 5432), ("10.9.0.3", 5433), ("10.9.0.4", 5432)] {
        scene.serve(address, port);
    }
    Some(scene)
}

/// What a connection to each of the three says: the named one, another port, another address.
const CONNECTS: &str =
    "for to in [('10.9.0.3', 5432), ('10.9.0.3', 5433), ('10.9.0.4', 5432)]: print(tcp(*to, 20))";

#[test]
fn a_named_neighbour_is_reached_past_the_gateway_and_no_other() {
    let Some(mut scene) = scene(NAMED) else { return };
    assert_eq!(scene.inside(CONNECTS), "hello\nhello\nhello\n", "the control");
    scene.govern();
    scene.settle();
    scene.tap.forget();
    // The gateway takes the other two, and says nothing until it knows who is meant.
    let said = scene.inside(CONNECTS);
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(said[0], "hello", "{said:?} {}", scene.complaints());
    assert!(said[1..].iter().all(|answer| *answer != "hello"), "{said:?}");
    let frames = scene.escaped();
    assert!(!frames.is_empty());
    let strangers = frames.iter().filter(|frame| {
        let to_named = frame[12..14] == [8, 0]
            && frame[23] == 6
            && frame[30..34] == [10, 9, 0, 3]
            && frame[36..38] == 5432_u16.to_be_bytes();
        let arp = frame[12..14] == [8, 6] && frame[38..42] == [10, 9, 0, 3] && frame.len() == 42;
        !to_named && !arp
    });
    assert_eq!(strangers.count(), 0, "{frames:x?}");
}

/// Attempts to get `ESCAPED` out beside the connection, all from root with every tool of Docker's default rights. `{IP}`
/// builds a TCP segment.
const TRICKS: &str = r"
own, other = mac('eth1'), b'\xff' * 6
n = os.environ.get('N')
def checksum(data):
    total = sum(struct.unpack('>%dH' % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return 0xffff - (total + (total >> 16))
def ip(payload, src='10.9.0.11', dst='10.9.0.3', proto=6, options=b'', fragment=0x4000):
    head = lambda sum: struct.pack('>BBHHHBBH4s4s', 0x40 + 5 + len(options) // 4, 0, 20 + len(options) + len(payload), 7,
        fragment, 64, proto, sum, socket.inet_aton(src), socket.inet_aton(dst)) + options
    return head(checksum(head(0))) + payload
def seg(sport=40000, dport=5432, flags=0x18):
    return struct.pack('>HHIIBBHHH', sport, dport, 1, 1, 0x50, flags, 1000, 0, 0) + b'ESCAPED!'
def attempt(work):
    try: work()
    except OSError as error: pass
def udp(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(b'ESCAPED', (host, port))
def ping():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1) as s: s.sendto(b'\x08\0\0\0\0\0\0\0ESCAPED', ('10.9.0.3', 0))
def raw(proto, payload):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, proto) as s: s.sendto(payload, ('10.9.0.3', 0))
attempt(lambda: udp('10.9.0.3', 5432)); attempt(lambda: udp('10.9.0.3', 53)); attempt(ping)
attempt(lambda: raw(6, seg())); attempt(lambda: raw(255, ip(seg()))); attempt(lambda: raw(47, b'ESCAPED'))
s = packet()
def frame(packet, to=other, src=own, kind=b'\x08\0'): attempt(lambda: s.sendto(to + src + kind + packet, ('eth1', 0)))
there = bytes.fromhex(sys.argv[1]) if len(sys.argv) > 1 else other
frame(b'ESCAPED' + bytes(40), kind=b'\x88\xb5')
frame(ip(seg()), to=there, src=b'\x02\x77\0\0\0\x99')
frame(ip(seg()), to=other)
frame(ip(seg()), to=b'\x01\0\x5e\0\0\x01')
frame(ip(seg()), to=b'\x02\x99\0\0\0\x01')
frame(ip(seg(), src='10.9.0.99'), to=there)
frame(ip(seg(), dst='10.9.0.4'), to=there)
frame(ip(seg(dport=5433)), to=there)
frame(ip(seg(dport=0)), to=there)
frame(ip(seg(flags=0)), to=there)
frame(ip(seg(), options=b'\x83\x07\x04\x0a\x09\0\x04\0'), to=there)
frame(ip(seg(), fragment=0x2000), to=there)
frame(ip(seg(), fragment=0x0001), to=there)
frame(ip(seg(), proto=17), to=there)
frame(ip(b'ESCAPED!', proto=1), to=there)
frame(ip(ip(seg()), proto=4), to=there)
frame(ip(seg()) + b'ESCAPED', to=there)
frame(b'\0\x05\x08\0' + ip(seg()), to=there, kind=b'\x81\0')
def arp(op=1, sha=own, spa='10.9.0.11', tha=bytes(6), tpa='10.9.0.3', tail=b''):
    return struct.pack('>HHBBH', 1, 0x800, 6, 4, op) + sha + socket.inet_aton(spa) + tha + socket.inet_aton(tpa) + tail
for bad in [arp(tail=b'ESCAPED'), arp(sha=b'ESCAPE'), arp(tha=b'ESCAPE'), arp(spa='10.9.0.3', tpa='10.9.0.1'),
            arp(tpa='10.9.0.4'), arp(tpa='10.9.0.1'), arp(op=2, spa='10.9.0.3', tha=there), arp(op=3), arp(op=0x4553)]:
    frame(bad, kind=b'\x08\x06')
s6 = lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'ESCAPED', ('ff02::1', 9, 0, socket.if_nametoindex('eth1')))
attempt(s6)
print('tried')
";

/// How many of [`TRICKS`]' frames must arrive where nobody governs: all that the kernel does not refuse itself.
const ARRIVING: usize = 30;

fn tricks(scene: &Scene) -> Vec<Vec<u8>> {
    let there = scene.neighbour.run(|| {
        let mut here = gateway::capture::Netlink::here().unwrap();
        here.link_named("n0").unwrap().unwrap().hardware
    });
    let there: String = there.iter().map(|byte| format!("{byte:02x}")).collect();
    scene.settle();
    scene.tap.forget();
    let said = scene.inside(&format!("sys.argv.append('{there}')\n{TRICKS}"));
    assert_eq!(said, "tried\n");
    scene.escaped()
}

#[test]
fn what_looks_like_the_named_connection_and_is_not_reaches_nobody() {
    let Some(mut scene) = scene(NAMED) else { return };
    let free = tricks(&scene);
    assert!(free.len() >= ARRIVING, "the control: {} {free:x?}", free.len());
    scene.govern();
    // The named neighbour is known, as it would be to an agent that talks to it.
    assert_eq!(scene.inside("print(tcp('10.9.0.3', 5432, 20))"), "hello\n");
    let escaped = tricks(&scene);
    // A whole segment to the neighbour itself is what is open.
    let beside: Vec<_> = escaped.iter().filter(|frame| !is_open(frame)).collect();
    assert_eq!(beside, Vec::<&Vec<u8>>::new());
}

/// A segment of the named connection, or a question who has the neighbour's address.
fn is_open(frame: &[u8]) -> bool {
    let exact = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let segment = frame[12..14] == [8, 0]
        && frame[14] == 0x45
        && frame[20] & 0xbf == 0
        && frame[21] == 0
        && frame[23] == 6
        && frame[30..34] == [10, 9, 0, 3]
        && frame[36..38] == 5432_u16.to_be_bytes()
        && frame[0] != 0xff
        && frame.len() == exact;
    let question = frame[12..14] == [8, 6]
        && frame[28..32] == [10, 9, 0, 11]
        && frame[38..42] == [10, 9, 0, 3]
        && frame.len() == 42
        && !holds(frame, b"ESCAPE");
    segment || question
}

#[test]
fn a_neighbour_cannot_connect_back() {
    let Some(mut scene) = scene(NAMED) else { return };
    let listen = "s = socket.create_server(('0.0.0.0', 7000)); print('up', flush=True); s.accept(); print('in')";
    let mut control = scene.start(listen);
    control.wait_until_printed("up");
    assert!(scene.connects("10.9.0.11", 7000), "the control");
    assert_eq!(control.wait().ok(), "up\nin\n");
    scene.govern();
    assert_eq!(scene.inside("print(tcp('10.9.0.3', 5432, 20))"), "hello\n");
    let mut guarded = scene.start(listen);
    guarded.wait_until_printed("up");
    assert!(!scene.connects("10.9.0.11", 7000));
    assert!(!guarded.stdout().contains("in"));
}
