//! A sealed network, which is what every agent has without further words.

use aya::programs::{SchedClassifier, TcAttachType};
use gateway::capture::{Attachment, BpfFs, Closed, Gate, Pins, Wires};
use gateway::net::Openings;
use nix::sched::CloneFlags;

use crate::common::place::Place;
use crate::common::running::Running;
use crate::common::wait_until;
use crate::scene::{Scene, holds, ip};

/// A frame of the workload's to everybody.
const SEND: &str = "
try: packet().sendto(b'\\xff' * 6 + mac('eth1') + b'\\x88\\xb5ESCAPED' + bytes(40), ('eth1', 0))
except OSError as error: print(error.errno)";

#[test]
fn neither_frames_nor_packets_leave_and_none_come_in() {
    let Some(mut scene) = Scene::new("") else { return };
    scene.add_interface(1);
    let listen = "s = packet(); s.bind(('eth1', 3)); s.settimeout(4); print('up', flush=True)
try:
    while b'COMMAND' not in s.recv(2000): pass
    print('got it')
except TimeoutError: print('nothing')";
    let send = "
import threading
def quiet(work):
    try: work()
    except OSError: pass
raw = lambda family, kind, proto, to: quiet(lambda: socket.socket(family, kind, proto).sendto(b'ESCAPED' + bytes(33), to))
raw(2, 2, 0, ('10.9.0.3', 9)); raw(2, 2, 136, ('10.9.0.3', 9)); raw(2, 3, 255, ('10.9.0.3', 0)); raw(2, 2, 1, ('10.9.0.3', 0))
quiet(lambda: socket.socket().setsockopt(0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('239.69.83.67') + socket.inet_aton('10.9.0.11')))
m = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
quiet(lambda: m.setsockopt(0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('239.69.83.67') + socket.inet_aton('10.9.0.11')))
time.sleep(0.5)
print('tried')";
    let rounds = |scene: &Scene| {
        let mut listening = scene.start(listen);
        listening.wait_until_printed("up");
        scene.settle();
        scene.tap.forget();
        scene.inside(SEND);
        scene.inside(send);
        scene.neighbour.run(|| {
            let socket = std::net::UdpSocket::bind(("10.9.0.3", 0)).unwrap();
            socket.set_broadcast(true).unwrap();
            socket.send_to(b"COMMAND", ("10.9.0.255", 9)).unwrap();
        });
        (listening.wait().ok().to_owned(), scene.escaped())
    };
    let (heard, escaped) = rounds(&scene);
    assert_eq!(heard, "up\ngot it\n", "the control");
    assert!(escaped.iter().filter(|frame| holds(frame, b"ESCAPED")).count() >= 3, "{escaped:x?}");
    assert!(escaped.iter().any(|frame| frame[23] == 2), "an IGMP report: {escaped:x?}");

    scene.govern();
    let (heard, escaped) = rounds(&scene);
    assert_eq!(heard, "up\nnothing\n");
    assert_eq!(escaped, Vec::<Vec<u8>>::new());
    let said = scene.records("wire_was_open");
    assert_eq!(said.len(), 1, "that it was open before is told: {said:?}");
    assert!(said[0].starts_with("its interface `eth1` may have sent "), "{said:?}");

    scene.kill_daemon();
    let (heard, escaped) = rounds(&scene);
    assert_eq!(heard, "up\nnothing\n", "without a daemon");
    assert_eq!(escaped, Vec::<Vec<u8>>::new(), "without a daemon");
}

#[test]
fn the_own_addresses_are_local_as_they_come_and_go_and_the_gateways_port_is_not_among_them() {
    let Some(mut scene) = Scene::new("") else { return };
    scene.govern();
    scene.add_interface(1);
    let probe =
        "s = socket.create_server(('10.9.0.11', 7000)); s2 = socket.create_server(('0.0.0.0', 0))
c = socket.create_connection(('10.9.0.11', 7000), 20); print(c.getpeername()[0])
print(tcp('10.9.0.11', 10255))
a, _ = s.accept(); a.sendall(b'own'); print(c.recv(9).decode())";
    let own = || scene.start(probe).wait().stdout.ends_with("own\n");
    wait_until("the address is local", own);
    assert_eq!(scene.inside(probe), "10.9.0.11\nECONNREFUSED\nown\n");
    // Somebody else's now: the gateway takes it.
    let gone = "print(tcp('10.9.0.11', 7000, 3))";
    let namespace = scene.namespace();
    let work = || -> Result<(), gateway::capture::NamespaceError> {
        ip("address del 10.9.0.11/24 dev eth1");
        Ok(())
    };
    namespace.run(work).unwrap();
    wait_until("the address is local no more", || scene.inside(gone).trim() != "ECONNREFUSED");
}

#[test]
fn what_cannot_be_fenced_is_set_down_and_everything_is_refused_until_it_is_gone() {
    let Some(mut scene) = Scene::new("") else { return };
    scene.add_interface(1);
    scene.govern();
    let third = Place::new("third", CloneFlags::CLONE_NEWNET);
    let tap = third.run(crate::tap::Tap::here);
    let served = "print(tcp('203.0.113.99', 80, 3))";
    let is_served = |scene: &Scene| scene.inside(served).trim() != "ECONNREFUSED";
    assert!(is_served(&scene));

    let makes: [(&str, &str, String); 3] = [
        ("out1", "macvlan", "link add out1 link br0 netns WORKLOAD type macvlan".to_owned()),
        (
            "out1",
            "veth",
            format!(
                "link add out1 netns WORKLOAD type veth peer name out1 netns {}",
                third.network.display()
            ),
        ),
        ("out1", "tun", "tun".to_owned()),
    ];
    for (name, kind, line) in makes {
        let namespace = scene.namespace();
        let path = format!("/proc/{}/ns/net", scene.workload_pid());
        let is_tun = kind == "tun";
        scene.world.host.run(move || {
            if !is_tun {
                ip(&line.replace("WORKLOAD", &path));
            }
        });
        namespace
            .run(move || -> Result<(), gateway::capture::NamespaceError> {
                if is_tun {
                    ip("tuntap add out1 mode tun");
                }
                ip(&format!("link set {name} up"));
                Ok(())
            })
            .unwrap();
        wait_until("everything is refused", || !is_served(&scene));
        let up = || {
            let mut there = gateway::capture::Netlink::of(&scene.namespace()).unwrap();
            there.link_named(name).unwrap().unwrap().is_up
        };
        wait_until("the interface is down", || !up());
        scene.inside(&SEND.replace("eth1", "out1"));
        assert!(!up());
        let told = format!("its interface `{name}` ({kind}) cannot be fenced: ");
        wait_until("it is told", || {
            scene.records("wire_unfenceable").iter().any(|detail| detail.starts_with(&told))
        });
        namespace
            .run(move || -> Result<(), gateway::capture::NamespaceError> {
                ip(&format!("link del {name}"));
                Ok(())
            })
            .unwrap();
        wait_until("it is served again", || is_served(&scene));
    }
    assert_eq!(scene.records("wire_unfenceable").len(), 3, "each is told once");
    assert_eq!(tap.count(|frame| holds(frame, b"ESCAPED")), 0);
}

#[test]
fn a_host_end_that_is_moved_away_closes_the_workload() {
    let Some(mut scene) = Scene::new("") else { return };
    scene.add_interface(1);
    scene.govern();
    let third = Place::new("third", CloneFlags::CLONE_NEWNET);
    let tap = third.run(crate::tap::Tap::here);
    scene.on_host(&format!("link set w1 netns {}", third.network.display()));
    third.run(|| ip("link set w1 up"));
    wait_until("it is told", || {
        scene.records("wire_unfenceable").iter().any(|detail| detail.contains("`eth1` (veth)"))
    });
    tap.forget();
    scene.inside(SEND);
    assert_eq!(tap.workloads(), Vec::<Vec<u8>>::new());
    assert_eq!(scene.inside("print(tcp('203.0.113.99', 80, 3))"), "ECONNREFUSED\n");
}

#[test]
fn interfaces_of_others_are_let_go() {
    let Some(mut scene) = Scene::new("") else { return };
    scene.govern();
    let other = Place::new("other", CloneFlags::CLONE_NEWNET);
    scene.on_host(&format!(
        "link add o1 type veth peer name o1p
         link set o1 master br0 up
         link set o1p netns {}",
        other.network.display()
    ));
    other.run(|| {
        ip("link set o1p up
            address add 10.9.0.77/24 dev o1p");
    });
    scene.serve("10.9.0.3", 80);
    wait_until("it reaches the neighbour", || {
        other.run(|| {
            let to = "10.9.0.3:80".parse().unwrap();
            std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_secs(1)).is_ok()
        })
    });
    // A pair that stays on the host.
    scene.on_host(
        "link add h1 type veth peer name h2
         link set h1 master br0 up
         link set h2 up
         address add 10.9.0.78/24 dev h2",
    );
    let attached = || -> usize {
        ["h1", "h2", "o1"]
            .iter()
            .flat_map(|name| [TcAttachType::Ingress, TcAttachType::Egress].map(|way| (name, way)))
            .map(|(name, way)| SchedClassifier::query_tcx(name, way).unwrap().1.len())
            .sum()
    };
    wait_until("nothing is attached", || scene.world.host.run(attached) == 0);
}

/// Fences the workload's wires by the library, as the daemon does, with pins in the directory `wires`.
fn fenced(scene: &Scene, how: Attachment, sockets: &'static str, wires: Pins) -> Wires {
    let (namespace, cgroup) = (scene.namespace(), scene.open_cgroup());
    scene.world.host.run(move || {
        let gate = Gate::open(how).unwrap();
        let pins = BpfFs::find_or_mount().unwrap().create(sockets).unwrap();
        let mut closed = Closed::close(&cgroup, &pins, 0).unwrap();
        let fenced = closed.fence(&namespace, &wires, &Openings::default(), &gate).unwrap();
        let watched = fenced.watch(1).unwrap();
        // The sockets of this one are let go: the wires alone are looked at.
        drop(closed);
        pins.remove().unwrap();
        watched
    })
}

fn new_pins(scene: &Scene) -> Pins {
    scene.world.host.run(|| BpfFs::find_or_mount().unwrap().create("wires").unwrap())
}

/// The frames of [`SEND`] that arrive.
fn arriving(scene: &Scene) -> usize {
    scene.tap.forget();
    scene.inside(SEND);
    scene.escaped().iter().filter(|frame| holds(frame, b"ESCAPED")).count()
}

#[test]
fn the_next_gateway_replaces_the_programs_of_a_pinned_fence() {
    let Some(scene) = Scene::new("") else { return };
    scene.add_interface(1);
    assert_eq!(arriving(&scene), 1, "the control");
    let programs = |scene: &Scene| {
        scene.world.host.run(|| {
            [TcAttachType::Ingress, TcAttachType::Egress].map(|way| {
                let (_, all) = SchedClassifier::query_tcx("w1", way).unwrap();
                all.iter().map(aya::programs::ProgramInfo::id).collect::<Vec<u32>>()
            })
        })
    };
    let pins = new_pins(&scene);
    drop(fenced(&scene, Attachment::Probed, "one", pins.clone()));
    let before = programs(&scene);
    assert!(before.iter().all(|all| all.len() == 1), "{before:?}");
    assert_eq!(arriving(&scene), 0, "without a gateway");
    drop(fenced(&scene, Attachment::Probed, "two", pins.clone()));
    let after = programs(&scene);
    assert!(after.iter().all(|all| all.len() == 1), "{after:?}");
    assert_ne!(before, after);
    assert_eq!(arriving(&scene), 0);
    scene.world.host.run(move || pins.remove().unwrap());
    assert_eq!(arriving(&scene), 1, "let go, it is open");
}

/// What the gateway does with a kernel without tcx.
#[test]
fn without_tcx_the_fence_is_a_filter_that_the_next_gateway_finds() {
    let Some(scene) = Scene::new("") else { return };
    scene.add_interface(1);
    assert_eq!(arriving(&scene), 1, "the control");
    let filters = |scene: &Scene| {
        scene.world.host.run(|| {
            ["ingress", "egress"].map(|way| {
                let mut tc = std::process::Command::new("tc");
                let said = tc.args(["filter", "show", "dev", "w1", way]).output().unwrap().stdout;
                String::from_utf8(said).unwrap().matches(" handle ").count()
            })
        })
    };
    let pins = new_pins(&scene);
    drop(fenced(&scene, Attachment::Clsact, "one", pins.clone()));
    assert_eq!(filters(&scene), [1, 1]);
    assert_eq!(arriving(&scene), 0, "without a gateway");
    let wires = fenced(&scene, Attachment::Clsact, "two", pins);
    assert_eq!(filters(&scene), [1, 1], "replaced, not doubled");
    assert_eq!(arriving(&scene), 0);
    scene.world.host.run(move || wires.release());
    assert_eq!(filters(&scene), [0, 0]);
    assert_eq!(arriving(&scene), 1, "let go, it is open");
}

#[test]
fn a_fence_that_somebody_takes_off_is_put_back() {
    let Some(mut scene) = Scene::new("") else { return };
    scene.add_interface(1);
    assert_eq!(arriving(&scene), 1, "the control");
    scene.govern();
    assert_eq!(arriving(&scene), 0);
    let id = scene.open_cgroup().id();
    let wires = move || -> Vec<std::path::PathBuf> {
        let pins = std::fs::read_dir(format!("/sys/fs/bpf/tollgate/cg-{id}")).unwrap();
        let pins = pins.map(|pin| pin.unwrap().path());
        pins.filter(|pin| pin.to_string_lossy().contains("/wire-")).collect()
    };
    let gone = scene.world.host.run(move || {
        let found = wires();
        for pin in &found {
            std::fs::remove_file(pin).unwrap();
        }
        found.len()
    });
    assert_eq!(gone, 2);
    wait_until("the fence is back", || scene.world.host.run(move || wires().len()) == 2);
    assert_eq!(arriving(&scene), 0);
}

#[test]
fn a_workload_with_wires_in_two_networks_is_closed_and_fenced_in_both_until_it_has_one() {
    // IFF_RUNNING of SIOCGIFFLAGS (netdevice(7)): before that the kernel drops what is sent.
    let send = "
with socket.socket() as s:
    while not fcntl.ioctl(s, 0x8913, struct.pack('256s', b'x2'))[16] & 0x40: time.sleep(0.01)
packet().sendto(b'\\xff' * 6 + mac('x2') + b'\\x88\\xb5ESCAPED' + bytes(40), ('x2', 0))";
    let second_wire = |scene: &Scene| {
        let mut other = scene.start_elsewhere("echo up; exec sleep 1000");
        other.wait_until_printed("up");
        let pid = other.pid();
        scene.on_host(&format!(
            "link add x1 type veth peer name x2 address 02:77:00:00:00:aa netns {pid}"
        ));
        other
    };
    let connect = |scene: &Scene, other: &Running| {
        scene.on_host("link set x1 master br0 up");
        scene.settle();
        scene.tap.forget();
        scene.inside_of(other, "ip link set x2 up", send);
        scene.escaped().iter().filter(|frame| holds(frame, b"ESCAPED")).count()
    };
    let Some(free) = Scene::new("") else { return };
    let other = second_wire(&free);
    assert_eq!(connect(&free, &other), 1, "the control");
    drop((other, free));

    let Some(mut scene) = Scene::new("") else { return };
    scene.add_interface(1);
    scene.govern();
    let mut nested =
        scene.start_elsewhere("ip link add a type veth peer name b; echo up; exec sleep 1000");
    nested.wait_until_printed("up");
    let other = second_wire(&scene);
    wait_until("it is closed", || scene.complaints().contains("several network namespaces"));
    wait_until("both are fenced", || scene.complaints().matches("x2").count() > 0);
    assert_eq!(connect(&scene, &other), 0);
    assert_eq!(arriving(&scene), 0);
    drop(other);
    wait_until("it is served again", || scene.complaints().matches(" governed ").count() == 2);
}
