//! Neighbours that are known without asking.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError};

impl Netlink {
    /// Says for good which hardware address `ip` has on an interface, so that nobody has to ask.
    ///
    /// # Errors
    /// When it is known already, or the kernel refuses.
    pub fn add_neighbour(
        &mut self,
        index: u32,
        ip: IpAddr,
        hardware: &[u8],
    ) -> Result<(), NetlinkError> {
        let mut neighbour = NeighbourMessage::default();
        let address = match ip {
            IpAddr::V4(ip) => {
                neighbour.header.family = AddressFamily::Inet;
                NeighbourAddress::Inet(ip)
            }
            IpAddr::V6(ip) => {
                neighbour.header.family = AddressFamily::Inet6;
                NeighbourAddress::Inet6(ip)
            }
        };
        neighbour.header.ifindex = index;
        neighbour.header.state = NeighbourState::Permanent;
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(address),
            NeighbourAttribute::LinkLayerAddress(hardware.to_vec()),
        ];
        self.create("add a neighbour", &RouteNetlinkMessage::NewNeighbour(neighbour))
    }
}
