//! Address → may it be dialled without a rule that names it? Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether `address` is private, loopback, link-local, metadata, multicast or the like, in any of the forms in
/// which an IPv6 address can carry an IPv4 one.
#[must_use]
pub fn is_refused_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_refused_v4(address),
        IpAddr::V6(address) => is_refused_v6(address),
    }
}

fn is_refused_v4(address: Ipv4Addr) -> bool {
    let bits = address.to_bits();
    REFUSED_V4
        .iter()
        .any(|&(network, length)| bits >> (32 - length) == network.to_bits() >> (32 - length))
}

fn is_refused_v6(address: Ipv6Addr) -> bool {
    let bits = address.to_bits();
    let in_network = |(network, length): (Ipv6Addr, u32)| {
        bits >> (128 - length) == network.to_bits() >> (128 - length)
    };
    REFUSED_V6.into_iter().any(in_network) || embedded_v4(address).into_iter().any(is_refused_v4)
}

/// The IPv4 address that a translating or tunnelling network would reach through `address`.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let join =
        |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match [a, b, c, d, e, f] {
        // v4-mapped, v4-compatible, NAT64.
        [0, 0, 0, 0, 0, 0xFFFF | 0] | [0x64, 0xFF9B, 0, 0, 0, 0] => join(g, h),
        // 6to4.
        [0x2002, ..] => join(b, c),
        _ => None,
    }
}

/// Networks whose addresses mean something else on the gateway's host than on the Internet.
const REFUSED_V4: [(Ipv4Addr, u32); 11] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

const REFUSED_V6: [(Ipv6Addr, u32); 5] = [
    (Ipv6Addr::UNSPECIFIED, 128),
    (Ipv6Addr::LOCALHOST, 128),
    (Ipv6Addr::new(0xFC00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xFF00, 0, 0, 0, 0, 0, 0, 0), 8),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_the_internet_are_refused_up_to_their_networks_edges() {
        for text in [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.0.0",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.0",
            "192.0.0.255",
            "192.168.0.0",
            "192.168.255.255",
            "198.18.0.0",
            "198.19.255.255",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "fc00::",
            "fdff::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2002:a9fe:a9fe::",
        ] {
            assert!(is_refused_address(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn addresses_of_the_internet_and_of_documentation_are_dialable() {
        for text in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.2.1",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.100.7",
            "203.0.113.9",
            "223.255.255.255",
            "8.8.8.8",
            "2001:db8::1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "fec0::1",
        ] {
            assert!(!is_refused_address(text.parse().unwrap()), "{text}");
        }
    }
}
