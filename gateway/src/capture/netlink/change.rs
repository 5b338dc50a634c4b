//! What can be changed about the interfaces of a namespace.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError};
use crate::capture::Namespace;

impl Netlink {
    /// Makes a veth pair: `name` here, `peer` in `namespace`. Both are down.
    ///
    /// # Errors
    /// When a name is taken, or the kernel refuses.
    pub fn add_veth(
        &mut self,
        name: &str,
        peer: &str,
        namespace: &Namespace,
    ) -> Result<(), NetlinkError> {
        let mut there = LinkMessage::default();
        there.attributes = vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()),
        ];
        let mut here = LinkMessage::default();
        here.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(there))),
            ]),
        ];
        self.create("make a veth pair", &RouteNetlinkMessage::NewLink(here))
    }

    /// Makes an interface of any kind that needs no parameters: `bridge`, `dummy`, ….
    ///
    /// # Errors
    /// When the name is taken, or the kernel refuses.
    pub fn add(&mut self, name: &str, kind: &str) -> Result<(), NetlinkError> {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Other(kind.to_owned()))]),
        ];
        self.create("make an interface", &RouteNetlinkMessage::NewLink(link))
    }

    /// Gives an interface an address.
    ///
    /// # Errors
    /// When it has it, or the kernel refuses.
    pub fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let mut address = AddressMessage::default();
        address.header.family = family_of(ip);
        address.header.prefix_len = prefix;
        address.header.index = index;
        address.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        self.create("add an address", &RouteNetlinkMessage::NewAddress(address))
    }

    /// Routes everything that has no other route through `gateway`.
    ///
    /// # Errors
    /// When there is such a route, or the kernel refuses.
    pub fn add_default_route(&mut self, gateway: IpAddr) -> Result<(), NetlinkError> {
        let mut route = RouteMessage::default();
        route.header.address_family = family_of(gateway);
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        let gateway = match gateway {
            IpAddr::V4(ip) => RouteAddress::Inet(ip),
            IpAddr::V6(ip) => RouteAddress::Inet6(ip),
        };
        route.attributes = vec![RouteAttribute::Gateway(gateway)];
        self.create("add a default route", &RouteNetlinkMessage::NewRoute(route))
    }

    /// Sets an interface up or down.
    ///
    /// # Errors
    /// When it is gone, or the kernel refuses.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.change_mask = LinkFlags::Up;
        link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.change("set an interface up or down", &RouteNetlinkMessage::SetLink(link))
    }

    /// Makes an interface a port of the bridge `master`.
    ///
    /// # Errors
    /// When one is gone, or the kernel refuses.
    pub fn set_master(&mut self, index: u32, master: u32) -> Result<(), NetlinkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::Controller(master)];
        self.change("make an interface a port", &RouteNetlinkMessage::SetLink(link))
    }

    /// Moves an interface to another namespace, where it is down.
    ///
    /// # Errors
    /// When it is gone, its name is taken there, or the kernel refuses.
    pub fn move_to(&mut self, index: u32, namespace: &Namespace) -> Result<(), NetlinkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd())];
        self.change("move an interface", &RouteNetlinkMessage::SetLink(link))
    }

    /// Gives an interface, which must be down, another name.
    ///
    /// # Errors
    /// When it is gone, up, or the name is taken.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.change("rename an interface", &RouteNetlinkMessage::SetLink(link))
    }

    /// Removes an interface; of a veth pair, both.
    ///
    /// # Errors
    /// When it is gone, or the kernel refuses.
    pub fn delete(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.change("remove an interface", &RouteNetlinkMessage::DelLink(link))
    }
}

fn family_of(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
