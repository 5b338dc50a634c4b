//! Interfaces and addresses as the kernel describes them.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name in its namespace.
    pub name: String,
    /// What made it: `veth`, `macvlan`, …; empty for hardware and `lo`.
    pub kind: String,
    /// Hardware address; empty where it has none.
    pub hardware: Vec<u8>,
    /// Whether it is set up.
    pub is_up: bool,
    /// Whether it is a loopback device.
    pub is_loopback: bool,
    /// Index of the interface that it hangs on: the other end of a veth pair, the parent of a macvlan.
    pub peer: Option<u32>,
    /// The id, in the namespace that was asked, of the namespace that [`Self::peer`] is in; none for the same one.
    pub peer_nsid: Option<i32>,
    /// Index of the bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// Packets and bytes that it has received and sent.
    pub counters: Counters,
}

/// What an interface has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// One address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnAddress {
    /// Index of the interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of its network's prefix.
    pub prefix: u8,
}

pub(super) fn link_of(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        hardware: Vec::new(),
        is_up: flags.contains(LinkFlags::Up),
        is_loopback: flags.contains(LinkFlags::Loopback),
        peer: None,
        peer_nsid: None,
        master: None,
        counters: Counters::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(hardware) => link.hardware.clone_from(hardware),
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::LinkNetNsId(id) => link.peer_nsid = Some(*id),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            LinkAttribute::Stats64(stats) => {
                link.counters = Counters {
                    rx_packets: stats.rx_packets,
                    tx_packets: stats.tx_packets,
                    rx_bytes: stats.rx_bytes,
                    tx_bytes: stats.tx_bytes,
                };
            }
            _other => {}
        }
    }
    link
}

/// On a point-to-point interface the own address is the local one, and `Address` is the other end's.
pub(super) fn address_of(message: &AddressMessage) -> Option<OwnAddress> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _other => None,
    });
    let ip = local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _other => None,
        })
    })?;
    Some(OwnAddress { index: message.header.index, ip, prefix: message.header.prefix_len })
}

/// None for IPv6, and where nobody has answered.
pub(super) fn neighbour_of(message: &NeighbourMessage) -> Option<(Ipv4Addr, [u8; 6])> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(*ip),
        _other => None,
    })?;
    let hardware = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _other => None,
    })?;
    Some((address, hardware))
}
