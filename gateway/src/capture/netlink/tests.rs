use std::net::IpAddr;

use super::*;

/// A namespace of the test's own; `None` at a desk without the right to make one.
fn namespace() -> Option<Namespace> {
    if nix::unistd::geteuid().is_root() {
        return Some(Namespace::isolated().unwrap());
    }
    assert!(std::env::var_os("CI").is_none(), "a privileged test cannot run: not root");
    println!("SKIPPED: not root, so no namespaces");
    None
}

#[test]
fn both_ends_of_a_pair_name_each_other_across_namespaces() {
    let Some(host) = namespace() else { return };
    let inside = Namespace::isolated().unwrap();
    let mut here = Netlink::of(&host).unwrap();
    let mut there = Netlink::of(&inside).unwrap();
    assert_eq!(there.nsid_of(&host).unwrap(), None, "they know nothing of each other");
    here.add_veth("host0", "eth0", &inside).unwrap();

    let outer = here.link_named("host0").unwrap().unwrap();
    let inner = there.link_named("eth0").unwrap().unwrap();
    assert_eq!((outer.kind.as_str(), inner.kind.as_str()), ("veth", "veth"));
    assert_eq!((outer.peer, inner.peer), (Some(inner.index), Some(outer.index)));
    assert_eq!(inner.peer_nsid, there.nsid_of(&host).unwrap());
    assert_eq!(outer.peer_nsid, here.nsid_of(&inside).unwrap());
    assert!(inner.peer_nsid.is_some());
    assert!(!inner.is_up && !inner.is_loopback);
    assert_eq!(inner.hardware.len(), 6);
    assert_eq!(there.links().unwrap().iter().filter(|link| !link.is_loopback).count(), 1);
    assert_eq!(here.link(outer.index + 1000).unwrap(), None);
}

#[test]
fn links_are_changed_as_asked_and_a_monitor_tells() {
    let Some(host) = namespace() else { return };
    let inside = Namespace::isolated().unwrap();
    let (mut here, mut there) = (Netlink::of(&host).unwrap(), Netlink::of(&inside).unwrap());
    let monitor = Monitor::of(&inside).unwrap();
    assert!(!monitor.drain().unwrap());
    here.add_veth("host0", "pair0", &host).unwrap();
    assert!(!monitor.drain().unwrap(), "another namespace's changes are not told");
    let pair = here.link_named("pair0").unwrap().unwrap();
    assert_eq!(pair.peer_nsid, None, "both ends are here");
    here.move_to(pair.index, &inside).unwrap();
    assert!(monitor.drain().unwrap());
    assert!(!monitor.drain().unwrap());

    let moved = there.link_named("pair0").unwrap().unwrap();
    there.rename(moved.index, "eth0").unwrap();
    let ip: IpAddr = "203.0.113.5".parse().unwrap();
    there.add_address(moved.index, ip, 24).unwrap();
    assert!(monitor.drain().unwrap());
    let found = there.addresses().unwrap();
    assert!(found.contains(&OwnAddress { index: moved.index, ip, prefix: 24 }), "{found:?}");
    there.set_up(moved.index, true).unwrap();
    there.add_default_route("203.0.113.1".parse().unwrap()).unwrap();
    assert!(there.link(moved.index).unwrap().unwrap().is_up);

    here.add("br0", "bridge").unwrap();
    let bridge = here.link_named("br0").unwrap().unwrap();
    assert_eq!(bridge.kind, "bridge");
    let outer = here.link_named("host0").unwrap().unwrap();
    here.set_master(outer.index, bridge.index).unwrap();
    assert_eq!(here.link(outer.index).unwrap().unwrap().master, Some(bridge.index));

    here.delete(outer.index).unwrap();
    assert_eq!(there.link(moved.index).unwrap(), None, "both ends are gone");
    assert!(here.delete(outer.index).unwrap_err().is_gone());
}
