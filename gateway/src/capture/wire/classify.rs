//! Which interfaces of a workload are harmless, which are wires that can be fenced, and which are neither.

use super::{NOT_THE_HOSTS, VETH};
use crate::capture::Link;

/// What an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Nothing leaves through it.
    Harmless,
    /// One end of a veth pair whose other end has this index in the host's namespace.
    Wire {
        /// The other end's index.
        peer: u32,
    },
    /// Anything else.
    Unfenceable(&'static str),
}

/// Interfaces that tunnel modules put into every namespace when they are loaded, by name and kind. They are down and
/// have no other end; nothing leaves until somebody with CAP_NET_ADMIN sets one up, and then it is unfenceable.
const FALLBACK: [(&str, &str); 12] = [
    ("tunl0", "ipip"),
    ("sit0", "sit"),
    ("gre0", "gre"),
    ("gretap0", "gretap"),
    ("erspan0", "erspan"),
    ("ip_vti0", "vti"),
    ("ip6_vti0", "vti6"),
    ("ip6tnl0", "ip6tnl"),
    ("ip6gre0", "ip6gre"),
    ("ip6gretap0", "ip6gretap"),
    ("ifb0", "ifb"),
    ("ifb1", "ifb"),
];

/// Sorts an interface of the workload; `host` is the id of the host's namespace in the workload's.
pub(super) fn classify(link: &Link, host: Option<i32>) -> Class {
    let is_fallback = || {
        let is = |(name, kind): &(&str, &str)| *name == link.name && *kind == link.kind;
        FALLBACK.iter().any(is)
    };
    match link.kind.as_str() {
        "" if link.is_loopback => Class::Harmless,
        // It swallows what is sent to it.
        "dummy" => Class::Harmless,
        VETH => match link.peer {
            Some(peer) if host.is_some() && link.peer_nsid == host => Class::Wire { peer },
            _elsewhere => Class::Unfenceable(NOT_THE_HOSTS),
        },
        "" => Class::Unfenceable("it is a device of the machine's own"),
        _tunnel if is_fallback() && !link.is_up => Class::Harmless,
        _other => Class::Unfenceable("only veth pairs with the host can be"),
    }
}

/// Whether an interface leads out of its namespace to where only the host's root can have put its other end. Pairs
/// among namespaces that a workload makes for itself do not.
pub(super) fn leads_out(link: &Link, host: Option<i32>) -> bool {
    match classify(link, host) {
        Class::Harmless => false,
        Class::Wire { .. } => true,
        Class::Unfenceable(_) => {
            link.kind != VETH && (link.kind.is_empty() || link.peer_nsid.is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Counters;

    fn link(name: &str, kind: &str) -> Link {
        Link {
            index: 5,
            name: name.to_owned(),
            kind: kind.to_owned(),
            hardware: vec![2, 0, 0, 0, 0, 1],
            is_up: true,
            is_loopback: false,
            peer: Some(9),
            peer_nsid: Some(0),
            master: None,
            counters: Counters::default(),
        }
    }

    #[test]
    fn only_a_pair_with_the_host_is_a_wire() {
        let eth0 = link("eth0", "veth");
        assert_eq!(classify(&eth0, Some(0)), Class::Wire { peer: 9 });
        assert_eq!(classify(&eth0, Some(1)), Class::Unfenceable(NOT_THE_HOSTS));
        assert_eq!(classify(&eth0, None), Class::Unfenceable(NOT_THE_HOSTS));
        let both_inside = Link { peer_nsid: None, ..eth0.clone() };
        assert_eq!(classify(&both_inside, Some(0)), Class::Unfenceable(NOT_THE_HOSTS));
        assert_eq!(classify(&both_inside, None), Class::Unfenceable(NOT_THE_HOSTS));
        let alone = Link { peer: None, ..eth0 };
        assert_eq!(classify(&alone, Some(0)), Class::Unfenceable(NOT_THE_HOSTS));
        let kinds = [
            "",
            "macvlan",
            "ipvlan",
            "tun",
            "vxlan",
            "wireguard",
            "bridge",
            "vlan",
            "netkit",
            "nlmon",
            "ipip",
            "ifb",
        ];
        for kind in kinds {
            let said = classify(&link("eth1", kind), Some(0));
            assert!(matches!(said, Class::Unfenceable(_)), "{kind}: {said:?}");
        }
    }

    #[test]
    fn what_modules_put_everywhere_is_harmless_while_it_is_down() {
        for (name, kind) in FALLBACK {
            let down = Link { is_up: false, ..link(name, kind) };
            assert_eq!(classify(&down, None), Class::Harmless, "{name}");
            let up = Link { is_up: true, ..down.clone() };
            assert!(matches!(classify(&up, None), Class::Unfenceable(_)), "{name}");
            let renamed = Link { name: "eth1".to_owned(), ..down };
            assert!(matches!(classify(&renamed, None), Class::Unfenceable(_)), "{name}");
        }
        assert_eq!(classify(&link("none", "dummy"), None), Class::Harmless);
        assert_eq!(classify(&Link { is_loopback: true, ..link("lo", "") }, None), Class::Harmless);
    }
}
